"""Instances in flight against what an app declares: which of them a deploy would strand."""

from collections.abc import Iterator, Sequence

from choreo.flow.findings import Finding
from choreo.instances import Count
from choreo.process.interpreting import Process
from choreo.process.operating import NO_RULES


def stranded(process: Process, counts: Sequence[Count]) -> Iterator[Finding]:
    """Versions, states and timers of instances in flight that the app does not have; those that ended want nothing.

    Args:
        counts: What `OperatedStore.census` says of the process.
    """
    for each in counts:
        if each.ended:
            continue
        message = _missing(process, each)
        if message is not None:
            keys = ", ".join(each.keys) + (", ..." if each.number > len(each.keys) else "")
            plural = "instance" if each.number == 1 else "instances"
            yield Finding("stranded_instances", process.name, f"{each.number:,} {plural} ({keys}) {message}")


def _missing(process: Process, count: Count) -> str | None:
    """What of it is not there; None if all is, or it is said of the same instances already."""
    version = process.versions.get(count.version)
    where = f"of {process.name} v{count.version} in the state {count.state or '(not begun)'}"
    if version is None and count.timer is None:
        return (
            f"{where}, and the app holds {process.known}: keep that class in previous= until they have ended, or "
            "move them with `choreo instances migrate` from a build that has both"
        )
    if version is None or not count.state:
        return None
    if not version.has(count.state):
        if count.timer is not None:
            return None
        return (
            f"{where}, which that version has no more: put it back, and raise version= for the new definition; or "
            "move them with `choreo instances set-state`"
        )
    known = {timer.name for timer in version.definition.state(count.state).timers}
    if count.timer is None or count.timer in known or count.timer in NO_RULES:
        return None
    return (
        f"{where} with the timer {count.timer}, which that state has no more: it would fire and do nothing. Keep the "
        "function's name, or raise version="
    )
