"""Whether data described by one JSON Schema can be read by whoever expects another. Pure.

`writer` describes data as it is sent, `reader` what is expected of it. Two policies:

- strict: Confluent's rules for JSON Schema (its `BACKWARD` with `writer` the old schema and `reader` the new one).
  An object is open unless `additionalProperties` or `patternProperties` say otherwise, and anything may have been
  sent under a name the writer does not mention.
- lenient: choreo's. Nothing is sent under a name the writer does not mention, so a reader may add what is optional
  or has a default; a reader ignores what it does not know, and may not become closed (`extra="forbid"`); `format`
  is part of a field's type, as it is for pydantic.

Source: Confluent Schema Registry, "JSON Schema compatibility rules", and the change types its checker names.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from choreo.schemas.keywords import JUDGED, Difference, bound_differences, value_differences
from choreo.schemas.shapes import Schema, Shape, canonical, resolved, shape

CLOSED = "closed"
"""Rule: the reader forbids unknown fields, and the writer does not say whether it sends any."""
_STRING = {"type": "string"}


def differences(writer: Schema, reader: Schema, *, lenient: bool) -> list[Difference]:
    """Why not; empty if every value of `writer` can be read as `reader`.

    Raises:
        ValueError: A `$ref` in one of them cannot be followed.
    """
    return _Comparison(writer, reader, lenient).compare(writer, reader, "")


class _Comparison:
    def __init__(self, writer: Schema, reader: Schema, lenient: bool) -> None:
        self._roots = writer, reader
        self._lenient = lenient
        self._under_way: set[tuple[str, str]] = set()

    def compare(self, writer: Schema, reader: Schema, path: str) -> list[Difference]:
        """Parts of the two documents. A pair met inside itself (recursive models) is taken to be well."""
        sent, expected = shape(writer, self._roots[0]), shape(reader, self._roots[1])
        pair = canonical(asdict(sent)), canonical(asdict(expected))
        if pair in self._under_way:
            return []
        self._under_way.add(pair)
        try:
            return self._shapes(sent, expected, path)
        finally:
            self._under_way.remove(pair)

    def _shapes(self, writer: Shape, reader: Shape, path: str) -> list[Difference]:
        if reader.kind == "anything" or writer.kind == "nothing":
            return []
        if reader.kind == "nothing":
            return [Difference(path, "not_allowed", "is sent, and the reader forbids it")]
        if writer.kind == "anything":
            return [Difference(path, "type_changed", f"may be anything, and {_said(reader)} is expected")]
        if writer.kind == "union":
            return self._from_union(writer, reader, path)
        if reader.kind == "union":
            return self._fits_one(_whole(writer), reader.branches, path)
        if reader.kind == "all":
            return self._to_all(writer, reader, path)
        if writer.kind == "all":
            return self._one_fits(writer.branches, _whole(reader), path)
        return list(self._plain(writer, reader, path))

    def _from_union(self, writer: Shape, reader: Shape, path: str) -> list[Difference]:
        if self._lenient:
            return [each for branch in writer.branches for each in self._branch(branch, reader, path)]
        if reader.kind != "union":
            return [Difference(path, "union_narrowed", f"was a union and is only {_said(reader)}")]
        if reader.exclusive and not writer.exclusive:
            return [Difference(path, "union_changed", "was an anyOf and is a oneOf")]
        if self._matched(writer.branches, reader.branches, path) < len(writer.branches):
            return [Difference(path, "union_changed", "has an alternative for which the reader has none left")]
        return []

    def _branch(self, branch: Schema, reader: Shape, path: str) -> list[Difference]:
        if reader.kind == "union":
            return self._fits_one(branch, reader.branches, path)
        return self.compare(branch, _whole(reader), path)

    def _fits_one(self, writer: Schema, readers: Sequence[Schema], path: str) -> list[Difference]:
        """One of the readers must take it; if none does, what is wrong with the nearest."""
        tried = [self.compare(writer, reader, path) for reader in readers]
        if not all(tried):
            return []
        near = [each for each in tried if not any(one.path == path and one.rule == "type_changed" for one in each)]
        if near:
            return min(near, key=len)
        said = _said(shape(writer, self._roots[0]))
        return [Difference(path, "type_changed", f"may be {said}, which is none of the alternatives expected")]

    def _one_fits(self, writers: Sequence[Schema], reader: Schema, path: str) -> list[Difference]:
        tried = [self.compare(writer, reader, path) for writer in writers]
        return min(tried, key=len)

    def _to_all(self, writer: Shape, reader: Shape, path: str) -> list[Difference]:
        writers = writer.branches if writer.kind == "all" else [_whole(writer)]
        if not self._lenient and len(reader.branches) > len(writers):
            return [Difference(path, "all_extended", "has to satisfy more schemas (allOf) than before")]
        return [each for branch in reader.branches for each in self._one_fits(writers, branch, path)]

    def _matched(self, writers: Sequence[Schema], readers: Sequence[Schema], path: str) -> int:
        """How many of the writer's alternatives find a reader's of their own: a maximum matching, by augmenting."""
        fits = [
            [index for index, reader in enumerate(readers) if not self.compare(writer, reader, path)]
            for writer in writers
        ]
        taken: dict[int, int] = {}

        def place(writer: int, seen: set[int]) -> bool:
            for reader in fits[writer]:
                if reader not in seen:
                    seen.add(reader)
                    if reader not in taken or place(taken[reader], seen):
                        taken[reader] = writer
                        return True
            return False

        return sum(place(writer, set()) for writer in range(len(writers)))

    def _plain(self, writer: Shape, reader: Shape, path: str) -> Iterator[Difference]:
        if reader.type not in (None, writer.type) and (writer.type, reader.type) != ("integer", "number"):
            yield Difference(path, "type_changed", f"is {_said(writer)}, and {_said(reader)} is expected")
            return
        sent, expected = writer.keywords, reader.keywords
        yield from value_differences(sent, expected, path, self._lenient)
        yield from bound_differences(sent, expected, path)
        if reader.type in ("object", None):
            yield from self._object(sent, expected, path)
        if reader.type in ("array", None):
            yield from self._array(sent, expected, path)
        if "not" in expected:
            turned = _Comparison(self._roots[1], self._roots[0], self._lenient)
            if turned.compare(expected["not"], sent.get("not", False), path):
                yield Difference(path, "not_extended", "is forbidden more than before (not)")
        for name in sorted(set(expected) - JUDGED):
            if canonical(expected[name]) != canonical(sent.get(name)):
                yield Difference(path, "keyword_changed", f"has another {name}, which has no rule but equality")

    def _object(self, sent: Mapping[str, Any], expected: Mapping[str, Any], path: str) -> Iterator[Difference]:
        had, has = sent.get("properties", {}), expected.get("properties", {})
        for name, reader in has.items():
            at = f"{path}.{name}" if path else name
            if name in expected.get("required", ()) and name not in (sent.get("required", ()) if name in had else ()):
                if not self._has_default(reader):
                    yield Difference(at, "required_added", "is required without a default, and need not be there")
                    continue
            if name in had:
                yield from self.compare(had[name], reader, at)
            else:
                yield from self._added(_covering(sent, name), reader, at)
        for name in had:
            if name not in has:
                at = f"{path}.{name}" if path else name
                for each in self.compare(had[name], _covering(expected, name), at):
                    closed = each.rule == "not_allowed"
                    message = "is sent, and the reader is closed (additionalProperties) and does not know it"
                    yield Difference(at, "removed_from_closed", message) if closed else each
        yield from self._rest_of_object(sent, expected, path)

    def _added(self, covering: Schema, reader: Schema, path: str) -> list[Difference]:
        """A property the writer does not mention, but may have sent under what covers its name."""
        if shape(covering, self._roots[0]).kind != "anything":
            return self.compare(covering, reader, path)
        if self._lenient or shape(reader, self._roots[1]).kind == "anything":
            return []
        message = "is new, and open data (additionalProperties) may hold anything under its name"
        return [Difference(path, "added_to_open", message)]

    def _rest_of_object(
        self, sent: Mapping[str, Any], expected: Mapping[str, Any], path: str
    ) -> Iterator[Difference]:
        had = sent.get("additionalProperties", True)
        for each in self.compare(had, expected.get("additionalProperties", True), f"{path}{{}}"):
            if each.rule == "not_allowed":
                told = "additionalProperties" in sent
                message = f"forbids unknown fields (additionalProperties), which {'are' if told else 'may be'} sent"
                each = Difference(path, "forbidden" if told else CLOSED, message)
            yield each
        for pattern, reader in expected.get("patternProperties", {}).items():
            writer = sent.get("patternProperties", {}).get(pattern, had)
            yield from self.compare(writer, reader, f"{path}{{{pattern}}}")
        if "propertyNames" in expected:
            yield from self.compare(sent.get("propertyNames", _STRING), expected["propertyNames"], f"{path}{{}}")
        for name, needed in expected.get("dependentRequired", {}).items():
            if not set(needed) <= set(sent.get("dependentRequired", {}).get(name, ())):
                yield Difference(path, "dependency_added", f"needs more beside {name} than before")
        for name, reader in expected.get("dependentSchemas", {}).items():
            yield from self.compare(sent.get("dependentSchemas", {}).get(name, True), reader, path)

    def _array(self, sent: Mapping[str, Any], expected: Mapping[str, Any], path: str) -> Iterator[Difference]:
        first, wanted = sent.get("prefixItems", []), expected.get("prefixItems", [])
        rest, wanted_rest = sent.get("items", True), expected.get("items", True)
        for index in range(max(len(first), len(wanted))):
            writer = first[index] if index < len(first) else rest
            reader = wanted[index] if index < len(wanted) else wanted_rest
            yield from self.compare(writer, reader, f"{path}[{index}]")
        yield from self.compare(rest, wanted_rest, f"{path}[]")
        if expected.get("uniqueItems") and not sent.get("uniqueItems"):
            yield Difference(path, "unique_added", "must hold no value twice, and may")

    def _has_default(self, reader: Schema) -> bool:
        found = resolved(reader, self._roots[1])
        return not isinstance(found, bool) and "default" in found


def _covering(keywords: Mapping[str, Any], name: str) -> Schema:
    """What an object says of a property it does not mention."""
    for pattern, schema in keywords.get("patternProperties", {}).items():
        if re.search(pattern, name):
            found: Schema = schema
            return found
    rest: Schema = keywords.get("additionalProperties", True)
    return rest


def _whole(found: Shape) -> Schema:
    """A shape that is no union, as a schema again."""
    return {"allOf": list(found.branches)} if found.kind == "all" else found.keywords


def _said(found: Shape) -> str:
    if found.kind == "plain":
        return found.type or "a set of values"
    return {"union": "a union", "all": "an allOf"}.get(found.kind, "anything")
