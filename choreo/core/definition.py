"""A process as data: states, what each does on events and timers, and what is wrong with such a definition.

Nothing here names a function's code, a broker or a store: a definition can be exported, drawn and checked, and any
runtime that reads the JSON can interpret it. `docs/definitions.md` has the format.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DEFERRED_MAX = 100
"""Events that one instance keeps for a later state; one more is rejected."""

CORRELATION = "(correlationid)"
"""In `correlate` in place of a field: an instance is named by the correlation id of its events, and is one a flow."""

Unexpected = Literal["defer", "ignore", "reject"]
"""What becomes of an event that the current state does not take: it waits for a state that does, is passed over, or
is dead-lettered."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Way(_Data):
    """Call `action`, which may emit events of the types `emits`; go to the state `to`, or stay where it is."""

    action: str
    to: str | None = None
    emits: tuple[str, ...] = ()


class Rule(Way):
    """A way taken on an event of type `event`, if `guard` holds. Rules of one state are tried in order."""

    event: str
    guard: str | None = None


class TimerRule(Way):
    """A way taken once the instance has been in its state for `delay_s`; if it `repeats`, so often, `at_most`."""

    name: str
    delay_s: float = Field(gt=0)
    repeats: bool = False
    at_most: int | None = Field(default=None, ge=1)


class State(_Data):
    """`entry` is called whenever the state is entered. `ignores`: event types that mean nothing here."""

    name: str
    final: bool = False
    rules: tuple[Rule, ...] = ()
    timers: tuple[TimerRule, ...] = ()
    entry: str | None = None
    entry_emits: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()

    def takes(self, event: str) -> bool:
        """Whether it has a rule for the type."""
        return any(rule.event == event for rule in self.rules)


class Definition(_Data):
    """One version of one process.

    Attributes:
        correlate: For each event type, the field that names the instance, or CORRELATION.
        starts: What begins an instance; `to` is set in each.
        unexpected: Of events that the state does not take; those before the start, too.
        late: Of events that come when the instance has ended.
    """

    format: Literal[1] = 1
    name: str
    version: int = Field(ge=1)
    correlate: dict[str, str]
    starts: tuple[Rule, ...]
    states: tuple[State, ...]
    unexpected: Unexpected = "defer"
    late: Literal["ignore", "reject"] = "ignore"

    def state(self, name: str) -> State:
        """The state of that name.

        Raises:
            KeyError: There is none.
        """
        for state in self.states:
            if state.name == name:
                return state
        raise KeyError(name)

    def hastened(self, times: float) -> "Definition":
        """The same with all its delays divided: for a simulation, in which a day need not take one."""
        states = tuple(
            state.model_copy(
                update={
                    "timers": tuple(
                        timer.model_copy(update={"delay_s": timer.delay_s / times}) for timer in state.timers
                    )
                }
            )
            for state in self.states
        )
        return self.model_copy(update={"states": states})

    def events(self) -> set[str]:
        """Types of the events it takes."""
        return {rule.event for rule in self.starts} | {rule.event for state in self.states for rule in state.rules}

    def emits(self) -> set[str]:
        """Types of the events it may emit."""
        on_entry = {type_ for state in self.states for type_ in state.entry_emits}
        return on_entry | {type_ for way in _ways(self) for type_ in way.emits}


def problems(definition: Definition) -> Iterator[str]:
    """What is wrong with it, a sentence each; found without running anything."""
    names = [state.name for state in definition.states]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two states are named {name!r}"
    if not definition.starts:
        yield "no event starts it"
    yield from _targets(definition, set(names))
    reached = _reached(definition)
    for state in definition.states:
        if state.name not in reached:
            yield f"no way leads to the state {state.name!r}"
        yield from _of_state(state)
    for type_ in sorted(definition.events()):
        if type_ not in definition.correlate:
            yield f"no field of {type_} names the instance"
    if not any(state.final for state in definition.states):
        yield "no state is final, so no instance ever ends"


def _targets(definition: Definition, names: set[str]) -> Iterator[str]:
    for start in definition.starts:
        if start.to is None:
            yield f"the start on {start.event} leads nowhere"
    for rule in _ways(definition):
        if rule.to is not None and rule.to not in names:
            yield f"{rule.action} leads to the state {rule.to!r}, which there is not"


def _ways(definition: Definition) -> Iterator[Way]:
    yield from definition.starts
    for state in definition.states:
        yield from state.rules
        yield from state.timers


def _of_state(state: State) -> Iterator[str]:
    ways: list[Way] = [*state.rules, *state.timers]
    if state.final:
        if ways:
            yield f"the final state {state.name!r} has a rule or a timer: nothing happens in it any more"
        return
    if not any(way.to not in (None, state.name) for way in ways):
        yield f"no way leads out of the state {state.name!r}, which is not final"
    plain: set[str] = set()
    for rule in state.rules:
        if rule.event in plain:
            where = f"in the state {state.name!r} the rule of {rule.action} on {rule.event}"
            yield f"{where} comes behind one without guard"
        if rule.guard is None:
            plain.add(rule.event)
        if rule.event in state.ignores:
            yield f"the state {state.name!r} both takes and ignores {rule.event}"
    timers = [timer.name for timer in state.timers]
    for name in sorted({name for name in timers if timers.count(name) > 1}):
        yield f"two timers of the state {state.name!r} are named {name!r}"
    for timer in state.timers:
        if timer.repeats and timer.to is not None:
            yield f"the timer {timer.name!r} repeats and leaves the state {state.name!r}: it is one or the other"


def _reached(definition: Definition) -> set[str]:
    reached: set[str] = set()
    waiting = [rule.to for rule in definition.starts if rule.to is not None]
    ways: dict[str, list[str]] = {}
    for state in definition.states:
        found: list[Way] = [*state.rules, *state.timers]
        ways[state.name] = [way.to for way in found if way.to is not None]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += ways.get(name, [])
    return reached
