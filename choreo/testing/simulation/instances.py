"""What must hold of the instances of processes: their journal is compared with their definitions.

Nothing here asks the interpreter of a definition what it did.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from choreo.core.definition import Definition, State, TimerRule
from choreo.errors import DecodeError
from choreo.testing.simulation.journal import Entry, journal

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World


class Set(NamedTuple):
    """A timer as it is set."""

    token: str
    number: int
    due_ms: int


def unended(world: "World") -> Iterator[str]:
    """Every instance has ended. For apps whose processes wait for nobody for ever; give it to `checkers`."""
    for (process, key), entries in journal(world).items():
        stored = [entry for entry in entries if entry.what == "stored"]
        if not stored or not stored[-1].ended:
            yield f"{process} {key} is in the state {stored[-1].state or '(none)' if stored else '(none)'} for ever"


def timers(world: "World") -> Iterator[str]:
    """A timer is set with its state, is due when it must be, fires not before, and is gone with its state."""
    sent, known = _sent(world), journal(world)
    for (process, key), entries in known.items():
        dues = {(entry.token, entry.number): entry.at_ms for entry in entries if entry.what == "set"}
        for (token, number), sent_ms in sent.get((process, key), {}).items():
            due_ms = dues.get((token, number))
            if due_ms is None:
                yield f"a timer of {process} {key} was sent, and never set"
            elif sent_ms < due_ms:
                yield f"a timer of {process} {key} was sent {due_ms - sent_ms} ms before it was due"
    for life in _lives(world, known, sent):
        yield from life.late


def versions(world: "World") -> Iterator[str]:
    """An instance keeps the version it began under, goes the ways of that version only, and stays where it ended."""
    for life in _lives(world, journal(world), _sent(world)):
        yield from life.lost


Sent = Mapping[tuple[str, str], Mapping[tuple[str, int], int]]
"""When the first record of each firing came on the log, by instance, then by token and number."""


def _sent(world: "World") -> Sent:
    dues = {process.due.event_type: process for process in world.processes}
    found: dict[tuple[str, str], dict[tuple[str, int], int]] = defaultdict(dict)
    for record, envelope in world.events():
        process = None if envelope is None else dues.get(envelope.type)
        if process is None:
            continue
        with suppress(DecodeError):
            due = process.due.from_payload(record.value or b"")
            found[process.name, due.key].setdefault((due.token, due.number), record.timestamp_ms)
    return found


def _lives(world: "World", known: Mapping[tuple[str, str], list[Entry]], sent: Sent) -> Iterator["_Life"]:
    definitions = {
        (process.name, number): version.definition
        for process in world.processes
        for number, version in process.versions.items()
    }
    for (process, key), entries in known.items():
        life = _Life(f"{process} {key}", definitions, sent.get((process, key), {}))
        for entry in entries:
            life.take(entry)
        life.stayed()
        yield life


@dataclass
class _Life:
    """One instance, entry by entry. `lost`: what is wrong with its way; `late`: with its timers."""

    name: str
    definitions: Mapping[tuple[str, int], Definition]
    sent: Mapping[tuple[str, int], int]
    lost: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    at: Entry | None = None
    held: dict[str, Set] = field(default_factory=dict)
    """Timers when it was last stored."""
    now: dict[str, Set] = field(default_factory=dict)
    entered: bool = False

    def take(self, entry: Entry) -> None:
        """The next change: what was set or is gone belongs to the instance that is stored behind it."""
        if entry.what == "gone":
            self.now.pop(entry.name, None)
            return
        if entry.what == "set":
            self._set(entry)
            return
        before_, self.at = self.at, entry
        if before_ is not None and entry.version != before_.version:
            self.lost.append(f"{self.name} was of version {before_.version}, and then of {entry.version}")
        if before_ is not None and before_.ended:
            self.lost.append(f"{self.name} had ended as {before_.state}, and came to be {entry.state}")
        definition = self.definitions.get((entry.process, entry.version))
        state = next((each for each in definition.states if each.name == entry.state), None) if definition else None
        if definition is None or (state is None and entry.state):
            self.lost.append(f"{self.name} is in {entry.state}, which version {entry.version} does not have")
        elif state is not None:
            came_from = before_.state if before_ is not None else ""
            if self.entered or state.name != came_from:
                self._check_way(definition, came_from, state)
                self._check_entered(state, entry.at_ms)
            else:
                self.stayed()
        self.held, self.entered = dict(self.now), False

    def _check_way(self, definition: Definition, came_from: str, state: State) -> None:
        """Events lead on from wherever the first one, or a timer that was sent, has led to."""
        if came_from:
            origin = definition.state(came_from)
            firsts = {rule.to for rule in origin.rules}
            firsts |= {rule.to for rule in origin.timers if self._fired(rule)}
        else:
            firsts = {rule.to for rule in definition.starts}
        if state.name not in _reached(definition, firsts):
            self.lost.append(f"{self.name} went from {came_from or '(none)'} to {state.name}, and no way leads there")

    def _fired(self, rule: TimerRule) -> bool:
        held = self.held.get(rule.name)
        return held is not None and (held.token, held.number) in self.sent

    def _check_entered(self, state: State, at_ms: int) -> None:
        wanted = {rule.name: at_ms + round(rule.delay_s * 1000) for rule in state.timers}
        found = {name: each.due_ms for name, each in self.now.items()}
        if found != wanted:
            self.late.append(f"{self.name} came to {state.name} at {at_ms}: timers {found}, and wanted {wanted}")

    def _set(self, entry: Entry) -> None:
        before, new = self.held.get(entry.name), Set(entry.token, entry.number, entry.at_ms)
        self.now[entry.name] = new
        if before is None or before.token != new.token:
            self.entered = True
            return
        self.held[entry.name] = new
        rule = self._rules().get(entry.name)
        if (before.token, before.number) not in self.sent:
            self.late.append(f"{self.name}: {entry.name} was set again, and not sent for the {before.number}. time")
        elif rule is None or not rule.repeats or (rule.at_most is not None and new.number > rule.at_most):
            self.late.append(f"{self.name}: {entry.name} was set for the {new.number}. time, which is once too often")
        elif new.due_ms - before.due_ms != round(rule.delay_s * 1000):
            self.late.append(f"{self.name}: {entry.name} was due after {new.due_ms - before.due_ms} ms more")

    def stayed(self) -> None:
        """It stayed in its state: what is gone has fired for the last time."""
        rules = self._rules()
        for name, before in self.held.items():
            if name in self.now or name not in rules:
                continue
            if (before.token, before.number) not in self.sent:
                self.late.append(f"{self.name}: {name} is gone, and was never sent")
            elif rules[name].repeats and before.number != rules[name].at_most:
                self.late.append(f"{self.name}: {name} fired {before.number} times, and then no more")
        self.held = dict(self.now)

    def _rules(self) -> Mapping[str, TimerRule]:
        """Of the timers of the state it is in."""
        at = self.at
        definition = None if at is None else self.definitions.get((at.process, at.version))
        states = definition.states if definition is not None and at is not None else ()
        return {
            rule.name: rule for state in states if at is not None and state.name == at.state for rule in state.timers
        }


def _reached(definition: Definition, firsts: set[str | None]) -> set[str]:
    """States that events lead to, from these."""
    found: set[str] = set()
    waiting = [name for name in firsts if name is not None]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [rule.to for rule in definition.state(name).rules if rule.to is not None]
    return found
