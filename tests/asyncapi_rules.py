"""What has to be true of an AsyncAPI document and no schema of AsyncAPI says: references, membership, emits."""

from collections.abc import Iterator
from typing import Any


def broken_rules(document: dict[str, Any]) -> list[str]:
    """A sentence for each thing that is wrong."""
    return [*_references(document, document, "#"), *_operations(document)]


def resolved(document: dict[str, Any], pointer: str) -> Any:
    """What a local reference points to; None if nothing is there."""
    if not pointer.startswith("#/"):
        return None
    at: Any = document
    for part in pointer[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        at = at.get(name) if isinstance(at, dict) else None
    return at


def _references(document: dict[str, Any], part: Any, where: str) -> Iterator[str]:
    if isinstance(part, list):
        for number, each in enumerate(part):
            yield from _references(document, each, f"{where}/{number}")
    elif isinstance(part, dict):
        for name, each in part.items():
            if name == "$defs":
                yield f"{where} has $defs, which belong to components"
            if name == "$ref" and isinstance(each, str) and resolved(document, each) is None:
                yield f"{where} refers to {each}, where nothing is"
            yield from _references(document, each, f"{where}/{name}")


def _operations(document: dict[str, Any]) -> Iterator[str]:
    operations = document["operations"]
    for id_, operation in operations.items():
        channel = operation["channel"]["$ref"]
        if not operation["messages"]:
            yield f"{id_} has no message"
        for message in operation["messages"]:
            if not message["$ref"].startswith(f"{channel}/messages/"):
                yield f"{id_}: {message['$ref']} is not in {channel}"
        for emit in operation.get("x-choreo-emits", ()):
            target = operations.get(emit["operation"])
            if operation["action"] != "receive" or target is None or target["action"] != "send":
                yield f"{id_} emits by {emit['operation']}, which is no send operation"
            if emit["max"] is not None and emit["min"] > emit["max"]:
                yield f"{id_} emits at least {emit['min']} and at most {emit['max']}"
            if (emit["when"] == "always") != (emit["min"] > 0):
                yield f"{id_} emits {emit['when']}, at least {emit['min']}"
