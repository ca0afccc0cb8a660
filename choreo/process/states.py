"""States as they are declared: a state's decorators take functions, and remember what they are for."""

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from choreo.context import Context
from choreo.core.definition import Rule, State, TimerRule
from choreo.emits import declared_emits
from choreo.errors import DeclarationError
from choreo.event import Event

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Action:
    """A function of a process, with what its parameters are to be filled with, in order.

    `wants`: `self` (the instance), `event` or `context` for each parameter.
    """

    name: str
    function: Callable[..., Any]
    wants: tuple[str, ...]
    emits: tuple[type[Event], ...]

    def call(self, instance: Any, event: Any, context: Context) -> Any:
        """Call it."""
        given = {"self": instance, "event": event, "context": context}
        return self.function(*(given[each] for each in self.wants))


@dataclass
class Declared:
    """One state; made by `ProcessManager.state` and `ProcessManager.final`.

    Decorated functions are plain: they run inside the commit. They take the instance, then the event where there is
    one, and a `Context` if they ask for it; what they return is emitted, as a handler's return is.
    """

    process: str
    name: str
    is_final: bool = False
    _rules: list[tuple[type[Event], "Declared | None", Callable[..., bool] | None, Action]] = field(
        default_factory=list
    )
    _timers: list[tuple[timedelta, bool, int | None, "Declared | None", Action]] = field(default_factory=list)
    _entry: Action | None = None
    _ignored: list[type[Event]] = field(default_factory=list)

    def on(
        self, *events: type[Event], to: "Declared | None" = None, guard: Callable[..., bool] | None = None
    ) -> Callable[[_Function], _Function]:
        """On one of these events, if `guard(instance, event)` holds: call the function, and go `to` another state.

        Rules are tried in the order they are written in. Without `to` the instance stays, and its timers go on.
        """
        check_events(f"{self.label}.on", events)

        def register(function: _Function) -> _Function:
            made = action(f"{self.label}.on", function, "self", "event")
            self._rules += [(event, to, guard, made) for event in events]
            return function

        return register

    def after(self, delay: timedelta, *, to: "Declared | None" = None) -> Callable[[_Function], _Function]:
        """Once the instance has been in this state for so long: call the function, and go `to` another state."""
        return self._timer("after", delay, False, None, to)

    def every(self, delay: timedelta, *, at_most: int | None = None) -> Callable[[_Function], _Function]:
        """Each time the instance has been in this state for so much longer, `at_most` so many times."""
        return self._timer("every", delay, True, at_most, None)

    def entry(self, function: _Function) -> _Function:
        """Call the function whenever an instance comes into this state; after what led it here."""
        if self._entry is not None:
            raise DeclarationError(f"{self.label}.entry: there is {self._entry.name} already, and one is called")
        self._entry = action(f"{self.label}.entry", function, "self")
        return function

    def ignores(self, *events: type[Event]) -> None:
        """In this state these mean nothing."""
        check_events(f"{self.label}.ignores", events)
        self._ignored += events

    @property
    def label(self) -> str:
        """`process.state`, as messages name it."""
        return f"{self.process}.{self.name}"

    @property
    def events(self) -> list[type[Event]]:
        """Classes it has a rule for."""
        return [event for event, *_ in self._rules]

    @property
    def actions(self) -> list[Action]:
        """All of it."""
        found = [*(each[-1] for each in self._rules), *(each[-1] for each in self._timers)]
        return [*found, *([self._entry] if self._entry is not None else [])]

    @property
    def guards(self) -> list[Callable[..., bool]]:
        """All of it."""
        return [guard for _, _, guard, _ in self._rules if guard is not None]

    def as_data(self) -> State:
        """Without its functions."""
        return State(
            name=self.name,
            final=self.is_final,
            rules=tuple(rule(event, to, guard, made) for event, to, guard, made in self._rules),
            timers=tuple(
                TimerRule(
                    name=made.name,
                    delay_s=delay.total_seconds(),
                    action=made.name,
                    repeats=repeats,
                    at_most=at_most,
                    to=to.name if to is not None else None,
                    emits=types_of(made),
                )
                for delay, repeats, at_most, to, made in self._timers
            ),
            entry=self._entry.name if self._entry is not None else None,
            entry_emits=types_of(self._entry) if self._entry is not None else (),
            ignores=tuple(event.event_type for event in self._ignored),
        )

    def _timer(
        self, kind: str, delay: timedelta, repeats: bool, at_most: int | None, to: "Declared | None"
    ) -> Callable[[_Function], _Function]:
        if delay <= timedelta(0):
            raise DeclarationError(f"{self.label}.{kind}({delay}): it must be longer than nothing")
        if at_most is not None and at_most < 1:
            raise DeclarationError(f"{self.label}.{kind}(at_most={at_most}): at least 1, or leave it out")

        def register(function: _Function) -> _Function:
            made = action(f"{self.label}.{kind}", function, "self")
            self._timers.append((delay, repeats, at_most, to, made))
            return function

        return register


def rule(event: type[Event], to: Declared | None, guard: Callable[..., bool] | None, made: Action) -> Rule:
    """One rule as data."""
    return Rule(
        event=event.event_type,
        action=made.name,
        to=to.name if to is not None else None,
        guard=guard.__name__ if guard is not None else None,
        emits=types_of(made),
    )


def types_of(made: Action) -> tuple[str, ...]:
    """Types of what it may emit."""
    return tuple(event.event_type for event in made.emits)


def check_events(where: str, events: Sequence[object]) -> None:
    """That each is an Event class with a type."""
    if not events:
        raise DeclarationError(f"{where}(): name at least one event class")
    for event in events:
        if not (isinstance(event, type) and issubclass(event, Event) and event.event_type):
            raise DeclarationError(f"{where}({event!r}): that is no Event class with a type")


def action(where: str, function: Callable[..., Any], *first: str, emits: bool = True) -> Action:
    """A function and how to call it; `first`: what its parameters are, of which later ones may be left out.

    Raises:
        DeclarationError: It is a coroutine function, or takes what it cannot be given.
    """
    name = getattr(function, "__name__", "")
    if not inspect.isfunction(function) or name == "<lambda>":
        raise DeclarationError(f"{where} decorates a function with a name, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(
            f"{where}: {name} must be a plain def, since it runs inside the commit; what waits for the outside "
            "belongs in a handler of a service, which the process sends an event or a command"
        )
    label = f"{where}: {name}"
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise DeclarationError(
            f"{label}: the name {error.name!r} in its annotations is not defined at run time; import it outside of "
            "`if TYPE_CHECKING:`"
        ) from None
    wants, left = [], list(first)
    for parameter in inspect.signature(function).parameters.values():
        if hints.get(parameter.name) is Context:
            wants.append("context")
        elif left:
            wants.append(left.pop(0))
        else:
            raise DeclarationError(
                f"{label} cannot be given {parameter.name!r}: it takes {', '.join(first)} and a Context"
            )
    return Action(name, function, tuple(wants), tuple(declared_emits(label, hints).counts) if emits else ())
