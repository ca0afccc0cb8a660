"""`join`: waits for one event of each class, in any order. It reduces to a process manager, and runs as one."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Generic, ParamSpec, TypeVar

from choreo.context import Context
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.process.declaring import RETENTION, ProcessManager
from choreo.process.states import Declared, action

_P = ParamSpec("_P")
_R = TypeVar("_R")


class JoinInstance(ProcessManager, version=1, by="?", name="join"):
    """What a join keeps of an instance: what has come so far, by event type, as JSON."""

    got: dict[str, str]


class Join(Generic[_P, _R]):
    """A function that is called when all it takes has come, or when the time is up. Made by `join`.

    Attributes:
        manager: What it reduces to: a process manager that waits in `waiting`, and ends in `complete` or `partial`.
        name: Of the process; part of keys and of what is stored.
    """

    def __init__(
        self,
        function: Callable[_P, _R],
        *,
        by: str | Mapping[type[Event], str],
        within: timedelta,
        name: str | None,
        version: int,
        retention: timedelta | None,
    ) -> None:
        self.name = name or function.__name__.replace("_", "-")
        self._function = function
        self._events, self._first, self._contexts = _parameters(function)
        options = {"version": version, "by": by, "name": self.name, "unexpected": "defer", "retention": retention}
        class_name = re.sub(r"\W", "_", self.name.title())
        self.manager: type[JoinInstance] = types.new_class(class_name, (JoinInstance,), options)
        waiting = self.manager.state("waiting")
        complete, partial = self.manager.final("complete"), self.manager.final("partial")
        self._begin(waiting)
        self._wait(waiting, complete)
        waiting.after(within, to=partial)(time_out)
        joined = self._joined()
        complete.entry(joined)
        partial.entry(joined)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call the plain function, as a test does."""
        return self._function(*args, **kwargs)

    def _begin(self, waiting: Declared) -> None:
        made = self.manager
        starts = [self._events[self._first]] if self._first else list(self._events.values())

        def begin(event: Event) -> JoinInstance:
            return made(got={event.event_type: event.payload().decode()})

        made.starts(*starts, to=waiting)(begin)

    def _wait(self, waiting: Declared, complete: Declared) -> None:
        wanted = {event.event_type for event in self._events.values()}
        awaited = [event for name, event in self._events.items() if name != self._first]

        def is_last(self: JoinInstance, event: Event) -> bool:
            return {event.event_type, *self.got} == wanted

        if len(awaited) == 1:
            waiting.on(*awaited, to=complete)(take)
            return
        waiting.on(*awaited, to=complete, guard=is_last)(take)
        waiting.on(*awaited)(take)

    def _joined(self) -> Callable[..., Any]:
        def joined(instance: JoinInstance, ctx: Context) -> Any:
            given: dict[str, Any] = dict.fromkeys(self._contexts, ctx)
            for parameter, event in self._events.items():
                payload = instance.got.get(event.event_type)
                given[parameter] = None if payload is None else event.from_payload(payload.encode())
            return typing.cast(Callable[..., Any], self._function)(**given)

        joined.__name__ = joined.__qualname__ = self._function.__name__
        joined.__annotations__["return"] = typing.get_type_hints(self._function)["return"]
        return joined


def join(
    *,
    by: str | Mapping[type[Event], str],
    within: timedelta,
    name: str | None = None,
    version: int = 1,
    retention: timedelta | None = RETENTION,
) -> Callable[[Callable[_P, _R]], Join[_P, _R]]:
    """Call the function once one event of each class that its parameters name has come, and emit what it returns.

    A parameter is annotated with an event class and None, which it is given for what did not come in time. One of
    them may be without None: its event begins the wait, and those that come before it are kept for it. If none is,
    whichever comes first begins the wait. Of two events of one class the first counts; late ones are ignored.

        @join(by="lead_id", within=timedelta(seconds=30))
        def enrich(lead: LeadReceived, geo: GeoFound | None, credit: CreditScored | None) -> LeadEnriched: ...

    The function is a plain `def`, since it runs inside the commit, and may take a `Context`. What is returned is
    given to the App.

    Args:
        by: Field of every event that names what belongs together; or a mapping of event class to field.
        within: How long to wait, from the event that began it.
        name: Of the process; the function's own, with dashes, unless given. Part of keys and of what is stored.
        version: Raised when the events change while instances are in flight.
        retention: How long an instance is kept when it has ended, in log time; None: for ever.

    Raises:
        DeclarationError: The message says what to write instead.
    """
    return lambda function: Join(function, by=by, within=within, name=name, version=version, retention=retention)


def take(self: JoinInstance, event: Event) -> None:
    """Keep an event; of one class the first."""
    self.got = {event.event_type: event.payload().decode(), **self.got}


def time_out(self: JoinInstance) -> None:
    """What has come by now is all there will be."""


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, type[Event]], str, list[str]]:
    """Parameter to event class; the parameter whose event begins the wait, or nothing; those that take a Context."""
    name = getattr(function, "__name__", repr(function))
    action("join", function, *(inspect.signature(function).parameters if callable(function) else ()))
    events: dict[str, type[Event]] = {}
    firsts, contexts = [], []
    for parameter, hint in typing.get_type_hints(function).items():
        if parameter == "return":
            continue
        if hint is Context:
            contexts.append(parameter)
            continue
        kinds = [each for each in (typing.get_args(hint) or (hint,)) if each is not type(None)]
        event = kinds[0]
        if len(kinds) > 1 or not (isinstance(event, type) and issubclass(event, Event) and event.event_type):
            raise DeclarationError(
                f"join: {name}: {parameter}: {hint} is to be one event class, with `| None` for what may not come in "
                "time"
            )
        events[parameter] = event
        if event is hint:
            firsts.append(parameter)
    if len(set(events.values())) < 2 or len(set(events.values())) < len(events):
        raise DeclarationError(f"join: {name} takes at least two parameters, each of an event class of its own")
    if len(firsts) > 1:
        raise DeclarationError(
            f"join: {name}: {firsts[1]} may not have come when the time is up: write "
            f"`{firsts[1]}: {events[firsts[1]].__name__} | None`. Only the event that begins the wait is always there"
        )
    return events, firsts[0] if firsts else "", contexts
