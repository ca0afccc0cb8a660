"""What a process does next: its definition, where an instance is, and what came, to a list of steps. Pure.

The caller calls the actions that the steps name, in their order, and stores the outcome in one transaction. Guards
are asked while it is decided, since they may look at the event and the instance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from choreo.core.definition import Definition, Rule, State, TimerRule

ENTRY = "(entry)"
"""A timer of no definition, set by hand: when it fires, the `entry` of the state is called."""


@dataclass(frozen=True, slots=True)
class Act:
    """Call `action` with the event or timer at hand; None: the start's rule, which makes the instance."""

    action: str
    kind: Literal["start", "event", "timer", "entry"]


@dataclass(frozen=True, slots=True)
class Enter:
    """The instance is in `state` from here on: timers of the one it leaves are cancelled, those of this one set."""

    state: State


@dataclass(frozen=True, slots=True)
class Next:
    """The timer fires again, as its rule says."""

    rule: TimerRule


@dataclass(frozen=True, slots=True)
class Spent:
    """The timer fires no more."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The event waits for another state."""


@dataclass(frozen=True, slots=True)
class Passed:
    """Nothing is done with the event, or it is rejected; `reason` is a word for programs."""

    reason: Literal["unexpected", "early", "late", "ignored", "stale_timer"]
    reject: bool = False


Step = Act | Enter | Next | Spent | Kept | Passed
Guard = Callable[[str], bool]


def on_event(definition: Definition, state: str | None, event: str, guard: Guard) -> Iterator[Step]:
    """What an event does to an instance in `state`; None: there is no instance yet.

    Args:
        guard: Whether the guard of this name holds; asked at most once a rule, in order.
    """
    if state is None:
        rule = _first(definition.starts, event, guard)
        if rule is None:
            yield _unexpected(definition, "early")
        else:
            assert rule.to is not None
            yield Act(rule.action, "start")
            yield from _entered(definition.state(rule.to))
        return
    at = definition.state(state)
    if at.final:
        yield Passed("late", definition.late == "reject")
    elif event in at.ignores:
        yield Passed("ignored")
    elif (rule := _first(at.rules, event, guard)) is not None:
        yield Act(rule.action, "event")
        if rule.to is not None:
            yield from _entered(definition.state(rule.to))
    elif at.takes(event):  # every guard refused it: this state has looked at it, and does nothing
        yield Passed("ignored")
    elif any(rule.event == event for rule in definition.starts) and not _taken_later(definition, event):
        yield Passed("unexpected", definition.unexpected == "reject")  # a second start, which no state waits for
    else:
        yield _unexpected(definition, "unexpected")


def on_timer(definition: Definition, state: str | None, timer: str, number: int) -> Iterator[Step]:
    """What the firing `number` (from 1) of a timer does; one that was cancelled never gets here."""
    rule = None
    if state is not None:
        rule = next((each for each in definition.state(state).timers if each.name == timer), None)
    if rule is None:
        entry = definition.state(state).entry if state is not None and timer == ENTRY else None
        yield Passed("stale_timer") if entry is None else Spent()
        if entry is not None:
            yield Act(entry, "entry")
        return
    again = rule.repeats and (rule.at_most is None or number < rule.at_most)
    yield Next(rule) if again else Spent()
    yield Act(rule.action, "timer")
    if rule.to is not None:
        yield from _entered(definition.state(rule.to))


def _entered(state: State) -> Iterator[Step]:
    yield Enter(state)
    if state.entry is not None:
        yield Act(state.entry, "entry")


def _first(rules: tuple[Rule, ...], event: str, guard: Guard) -> Rule | None:
    for rule in rules:
        if rule.event == event and (rule.guard is None or guard(rule.guard)):
            return rule
    return None


def _taken_later(definition: Definition, event: str) -> bool:
    return any(state.takes(event) for state in definition.states)


def _unexpected(definition: Definition, reason: Literal["unexpected", "early"]) -> Step:
    if definition.unexpected == "defer":
        return Kept()
    return Passed(reason, definition.unexpected == "reject")
