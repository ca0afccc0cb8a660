"""What `choreo graph` and `choreo check` say about declarations: one shape, so that all of it is silenced one way."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from choreo.errors import ConfigurationError

Level = Literal["violation", "improvement", "information"]
LEVELS: tuple[Level, ...] = ("violation", "improvement", "information")
PAGE = "docs/check.md"

LEVEL_OF: Mapping[str, Level] = {
    # declarations against each other: choreo.flow.consistency
    "unreachable_end": "violation",
    "endless_cycle": "violation",
    "version_mismatch": "violation",
    "topic_mismatch": "violation",
    "key_mismatch": "violation",
    "shared_group": "violation",
    "unemitted_event": "improvement",
    "unread_event": "improvement",
    "dead_end": "improvement",
    "unreachable_handler": "improvement",
    "command_for_several": "improvement",
    "cycle": "information",
    "no_flow": "information",
    # against a released capability: choreo.flow.released
    "vanished_service": "violation",
    "vanished_handler": "violation",
    "changed_group": "violation",
    "changed_source": "violation",
    "changed_key": "violation",
    "changed_idempotency_key": "violation",
    "changed_topic": "violation",
    "dropped_version": "violation",
    "dropped_type": "violation",
    "dropped_emission": "violation",
    "early_emission": "violation",
    "narrowed_handler": "improvement",
    # against instances in flight: choreo.flow.inflight
    "stranded_instances": "violation",
    # processes: choreo.flow.endless
    "endless_wait": "information",
    # anti-patterns: choreo.flow.advice
    "god_service": "improvement",
    "twin_services": "improvement",
    "long_chain": "improvement",
    "wide_fan_out": "information",
}
"""Every id there is. Each has a section of its own name in `PAGE`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        id: Stable word, one of `LEVEL_OF`; a heading of `page`.
        where: A handler (`service.name`), a service, an event type or a flow: what `--ignore ID:where` names.
        message: What is so, why it matters and what to write instead.
    """

    id: str
    where: str
    message: str

    @property
    def level(self) -> Level:
        """Only a violation makes `choreo check` fail."""
        return LEVEL_OF[self.id]

    @property
    def page(self) -> str:
        """Where this finding is explained."""
        return f"{PAGE}#{self.id}"

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {name: getattr(self, name) for name in ("id", "level", "where", "message", "page")}


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Each once, violations first."""
    return sorted(dict.fromkeys(findings), key=lambda each: (LEVELS.index(each.level), each.id, each.where))


class _Named(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def where(self) -> str: ...


_Found = TypeVar("_Found", bound=_Named)


def silence(
    findings: Sequence[_Found], ignored: Sequence[str], ids: Collection[str] = LEVEL_OF
) -> tuple[list[_Found], list[str]]:
    """Findings that stand, and the entries of `ignored` that silenced none.

    Args:
        ignored: `ID`, or `ID:where` for one place.
        ids: All there are.

    Raises:
        ConfigurationError: An entry names no id: a typing error would silence nothing for ever.
    """
    for entry in ignored:
        if entry.partition(":")[0] not in ids:
            raise ConfigurationError(f"--ignore {entry}: there is no such id; there are: {', '.join(sorted(ids))}")
    stand = [each for each in findings if not {each.id, f"{each.id}:{each.where}"} & set(ignored)]
    silenced = {name for each in findings for name in (each.id, f"{each.id}:{each.where}")}
    return stand, [entry for entry in ignored if entry not in silenced]
