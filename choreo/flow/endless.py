"""Where a process waits for the answer to a command, and nothing but that answer would ever end it."""

from collections.abc import Iterator, Sequence

from choreo.event import Command
from choreo.flow.findings import Finding
from choreo.process.interpreting import Process
from choreo.process.versions import Version
from choreo.process.watching import RUNNING, WatchInstance


def endless(processes: Sequence[Process]) -> Iterator[Finding]:
    """States whose entry sends a command and that have no timer, of processes whose flows no watch is on."""
    watches = [process.newest for process in processes if issubclass(process.newest.made, WatchInstance)]
    watched = {rule.event for watch in watches for rule in watch.definition.starts if rule.to == RUNNING}
    for process in processes:
        states = list(_without_limit(process.newest))
        if states and not {rule.event for rule in process.newest.definition.starts} <= watched:
            message = (
                f"it waits in {', '.join(states)} for the answer to a command, and has no timer there: if the "
                "command becomes a dead letter it stands still until somebody replays that; give the state a timer, "
                "in a saga Step(timeout=), or have a watch tell of it (@overdue of a Flow with a deadline)"
            )
            yield Finding("endless_wait", process.name, message)


def _without_limit(version: Version) -> Iterator[str]:
    commands = {event.event_type for event in version.made.emits() if issubclass(event, Command)}
    for state in version.definition.states:
        if not state.final and not state.timers and commands.intersection(state.entry_emits):
            yield state.name
