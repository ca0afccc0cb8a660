"""What was released against what is declared: which changes break whom. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from choreo.binding import BoundHandler
from choreo.errors import ConfigurationError
from choreo.schemas.comparing import CLOSED, differences
from choreo.schemas.exporting import Contract, Version, accepted, needs
from choreo.schemas.keywords import Difference

Policy = Literal["lenient", "backward", "forward", "full"]
Level = Literal["violation", "improvement", "information"]
Direction = Literal["backward", "forward", "now"]
POLICIES: tuple[Policy, ...] = ("lenient", "backward", "forward", "full")
TRANSITIVE = "_transitive"
MODES = (*POLICIES, *(f"{each}{TRANSITIVE}" for each in POLICIES))
"""Confluent's names, in lower case, and choreo's own `lenient`."""
Schemas = Mapping[Version, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know before a release.

    Attributes:
        id: A stable word: a rule of `Difference`, `version_removed`, `unknown_version`.
        level: `violation` fails the check; `improvement` and `information` do not.
        direction: `backward`: what was sent is read by today's consumers; `forward`: what is sent today is read by
            consumers as released; `now`: today's producer and today's consumer.
        path: The field, empty for the whole event.
        handlers: `service.handler` of those here that it breaks.
    """

    id: str
    level: Level
    type: str
    version: int
    direction: Direction
    path: str
    message: str
    handlers: tuple[str, ...] = ()


def policy_of(mode: str) -> tuple[Policy, bool]:
    """A mode's policy, and whether it looks at every state there was.

    Raises:
        ConfigurationError: There is no such mode.
    """
    for policy in POLICIES:
        if mode in (policy, policy + TRANSITIVE):
            return policy, mode != policy
    raise ConfigurationError(f"there is no mode {mode!r}; take one of {', '.join(MODES)}")


def changed(
    old: Mapping[str, Any], new: Mapping[str, Any], policy: Policy, *, taken: Mapping[str, Any] | None = None
) -> dict[Direction, list[Difference]]:
    """Differences of one version's schema changed in place, by direction; `full` and `lenient` look in both.

    Args:
        taken: Lenient only: what the classes of `new` take, where that is not just what they send. A decimal
            number is sent as text and taken as a number too.

    Raises:
        ValueError: A `$ref` cannot be followed.
    """
    lenient = policy == "lenient"
    found: dict[Direction, list[Difference]] = {}
    if policy != "forward":
        if lenient and taken is not None:
            found["backward"] = _newly(old, new, taken)
        else:
            found["backward"] = differences(old, new, lenient=lenient)
    if policy != "backward":
        found["forward"] = _mentioned(new, old) if lenient else differences(new, old, lenient=False)
    return found


def check(
    declared: Mapping[Version, Contract],
    states: Sequence[Schemas],
    handlers: Iterable[BoundHandler],
    policy: Policy,
) -> list[Finding]:
    """What the declarations break of what was released.

    Args:
        states: Released schemas, newest first; only the first says which versions there still are.

    Raises:
        ConfigurationError: A released schema cannot be understood.
    """
    handlers = list(handlers)
    found: dict[tuple[Any, ...], Finding] = {}
    for state in states:
        for version, old in state.items():
            if version in declared:
                for each in _in_place(declared[version], old, policy):
                    found.setdefault((each.id, version, each.direction, each.path), each)
    for version in states[0]:
        if version not in declared:
            each = _removed(version, handlers)
            found[each.id, version] = each
    for contract in declared.values():
        for each in _today(contract, handlers):
            found.setdefault((each.id, contract.version, each.direction, each.path, each.handlers), each)
    return sorted(found.values(), key=lambda each: (each.type, each.version, each.direction, each.path, each.id))


def _in_place(contract: Contract, old: Mapping[str, Any], policy: Policy) -> list[Finding]:
    """Findings about one version whose schema may have changed since it was released."""
    try:
        found = changed(old, contract.document, policy, taken=accepted(contract))
        broken = {direction: _broken(contract, old, direction) for direction in found}
    except _NO_SCHEMA as error:
        type_, version = contract.version
        raise ConfigurationError(
            f"the released schema of {type_} v{version} cannot be understood ({error}); compare with what "
            "`choreo schemas export` wrote"
        ) from None
    if policy == "lenient" and not contract.emitted:
        found.pop("forward")  # nobody here sends it, and a consumer that takes more harms no one
    return [
        _finding(contract, each, direction, _SENTENCES[direction], broken[direction])
        for direction, all_ in found.items()
        for each in all_
    ]


_NO_SCHEMA = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, re.error)
"""What JSON that is no JSON Schema leads to: a list for an object, a text for a number, a broken pattern."""
_SENTENCES: Mapping[Direction, str] = {
    "backward": "what was sent as released cannot be read as declared",
    "forward": "what is sent as declared cannot be read as released",
}


def _broken(contract: Contract, old: Mapping[str, Any], direction: Direction) -> tuple[str, ...]:
    """Handlers of the class that changed, and those of another class that cannot read one side of the change."""
    sides = (old, contract.document) if direction == "backward" else (contract.document, old)
    return tuple(
        label
        for label, event in contract.consumers.items()
        if event in contract.classes or _newly(*sides, needs(event))
    )


def _mentioned(writer: Mapping[str, Any], reader: Mapping[str, Any]) -> list[Difference]:
    """Of a producer whose classes are known: it sends the fields they have, so a closed reader of these is well."""
    return [each for each in differences(writer, reader, lenient=True) if each.rule != CLOSED]


def _newly(sent: Mapping[str, Any], well: Mapping[str, Any], reader: Mapping[str, Any]) -> list[Difference]:
    before = differences(well, reader, lenient=True)
    return [each for each in differences(sent, reader, lenient=True) if each not in before]


def _removed(version: Version, handlers: Iterable[BoundHandler]) -> Finding:
    type_, number = version
    broken = _cannot_read(version, handlers)
    if broken:
        message = (
            f"is declared no more, and records of it are dead-lettered; keep the class, or upcast them: "
            f"@YourEvent.upcast(from_version={number})"
        )
        return Finding("version_removed", "violation", type_, number, "backward", "", message, broken)
    message = "is declared no more; no handler here needs it, those in other repositories are not known"
    return Finding("version_removed", "information", type_, number, "backward", "", message)


def _today(contract: Contract, handlers: Iterable[BoundHandler]) -> list[Finding]:
    """Today's producers against today's consumers."""
    if not contract.emitted:
        return []
    findings = []
    for label, event in contract.consumers.items():
        if event not in contract.classes:
            for each in _mentioned(contract.document, needs(event)):
                said = f"{event.__name__}, the class {label} has of it, cannot read what is sent"
                findings.append(_finding(contract, each, "now", said, (label,)))
    unread = _cannot_read(contract.version, handlers)
    if unread:
        message = "is emitted here, and dead-lettered by handlers of other versions; let them handle it too"
        findings.append(Finding("unknown_version", "improvement", *contract.version, "now", "", message, unread))
    return findings


def _cannot_read(version: Version, handlers: Iterable[BoundHandler]) -> tuple[str, ...]:
    """Handlers of the type that have neither a class nor an upcaster for the version."""
    type_, number = version
    return tuple(
        bound.handler.label
        for bound in handlers
        if (classes := [event for event in bound.handler.events if event.event_type == type_])
        and not any(event.event_version == number or event.upcasts_from(number) for event in classes)
    )


def _finding(
    contract: Contract, difference: Difference, direction: Direction, said: str, handlers: tuple[str, ...]
) -> Finding:
    message = f"{difference.message}: {said}"
    return Finding(difference.rule, "violation", *contract.version, direction, difference.path, message, handlers)
