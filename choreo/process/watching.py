"""`overdue`: calls a function for each flow that has no end by its deadline. It reduces to a process manager."""

import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from pydantic import AwareDatetime

from choreo.context import Context
from choreo.core.definition import CORRELATION
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.ports import FlowMark
from choreo.process.declaring import ProcessManager
from choreo.process.states import action
from choreo.service import Flow

CATCH_UP = timedelta(minutes=1)
"""The last part of a deadline, at most half of it, is counted anew by a watch that comes back: ends that came while
it was away are read before anybody is told."""

RUNNING = "running"
"""The state of a flow that has begun and is not over."""

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class FlowOverdue:
    """A flow that has come to none of its ends by its deadline.

    Attributes:
        flow: Its name, as declared.
        correlation_id: Which one: `choreo trace` finds it by that.
        key: Record key of the event that began it, such as an order's number; empty if it had none.
        started_at: When that event was made, by its sender's clock.
        deadline_s: What the flow declares, in seconds.
    """

    flow: str
    correlation_id: str
    key: str
    started_at: datetime
    deadline_s: float


class WatchInstance(ProcessManager, version=1, by=CORRELATION, name="watch"):
    """What a watch keeps of a flow: of the event that began it; or of its `end`, where that came first."""

    at: AwareDatetime
    key: str
    end: str


class Watch(Generic[_R]):
    """A function that is called when a flow is overdue. Made by `overdue`.

    Attributes:
        manager: What it reduces to: a process manager with an instance a flow, named by its correlation id.
        name: Of the process; part of keys and of what is stored.
    """

    def __init__(self, function: Callable[..., _R], flow: Flow, name: str | None) -> None:
        self._wants = action("overdue", function, "flow").wants
        _check_flow(function)
        if flow.deadline is None:
            raise DeclarationError(
                f"overdue(Flow({flow.name!r})): without a deadline it is never overdue; give it one, such as "
                "deadline=timedelta(days=2)"
            )
        self.name = name or function.__name__.replace("_", "-")
        self._function, self._flow, self._deadline = function, flow, flow.deadline
        options = {"version": 1, "by": CORRELATION, "name": self.name, "unexpected": "ignore"}
        class_name = re.sub(r"\W", "_", self.name.title())
        self.manager: type[WatchInstance] = types.new_class(class_name, (WatchInstance,), options)
        self._states()

    def __call__(self, *args: Any, **kwargs: Any) -> _R:
        """Call the plain function, as a test does."""
        return self._function(*args, **kwargs)

    def _states(self) -> None:
        made, starts, ends = self.manager, self._flow.starts, self._flow.ends
        running, due, overdue = made.state(RUNNING), made.state("nearly-due"), made.state("overdue")
        ended, late = made.final("ended"), made.final("ended-late")
        begun, over = self._begun(), self._ended(was_told=False)
        catch_up = min(CATCH_UP, self._deadline / 2)
        made.starts(starts, to=running)(begun)
        running.after(self._deadline - catch_up, to=due)(nearly_due)
        due.after(catch_up, to=overdue)(self._told())
        running.on(*ends, to=ended)(over)
        due.on(*ends, to=ended)(over)
        overdue.on(*ends, to=late)(self._ended(was_told=True))
        # Topics are read side by side: an end may come before its start, and some have none that is still there.
        early = made.state("end-first")
        made.starts(*ends, to=early)(begun)
        early.on(starts, to=ended)(over)
        early.after(self._deadline, to=ended)(forget_flow)

    def _begun(self) -> Callable[..., WatchInstance]:
        made, starts = self.manager, self._flow.starts

        def flow_begun(event: Event, ctx: Context) -> WatchInstance:
            key = (event.record_key() or b"").decode()
            return made(at=_made_at(ctx), key=key, end="" if isinstance(event, starts) else event.event_type)

        return flow_begun

    def _ended(self, *, was_told: bool) -> Callable[..., None]:
        flow, deadline_s = self._flow, self._deadline.total_seconds()

        def flow_ended(self: WatchInstance, event: Event, ctx: Context) -> None:
            began, ended = (_made_at(ctx), self.at) if self.end else (self.at, _made_at(ctx))
            took_s = max(0.0, (ended - began).total_seconds())  # clocks of two hosts
            ctx.flow = FlowMark(flow.name, self.end or event.event_type, took_s, took_s > deadline_s and not was_told)

        flow_ended.__name__ += "_late" if was_told else ""
        return flow_ended

    def _told(self) -> Callable[..., Any]:
        flow, deadline_s, wants = self._flow, self._deadline.total_seconds(), self._wants
        function = typing.cast(Callable[..., Any], self._function)

        def told(instance: WatchInstance, ctx: Context) -> Any:
            ctx.flow = FlowMark(flow.name, "", (ctx.now() - instance.at).total_seconds(), overdue=True)
            found = FlowOverdue(flow.name, ctx.correlation_id, instance.key, instance.at, deadline_s)
            return function(*(ctx if each == "context" else found for each in wants))

        told.__name__ = told.__qualname__ = self._function.__name__
        told.__annotations__["return"] = typing.get_type_hints(self._function)["return"]
        return told


def overdue(flow: Flow, *, name: str | None = None) -> Callable[[Callable[..., _R]], Watch[_R]]:
    """Call the function for each flow that has come to no end by its deadline, once, and emit what it returns.

        @overdue(order)
        def order_late(late: FlowOverdue) -> OrderDelayed:
            return OrderDelayed(order_id=late.key, since=late.started_at)

    The deadline counts from when the flow's first event is read, which is late only where the watch itself is. The
    function is a plain `def`, since it runs inside the commit, and may take a `Context`. One that returns nothing is
    for the metrics `choreo.flow.overdue` and `choreo.flow.duration`. What is returned is given to the App.

    Args:
        flow: With a deadline; it need not be among the App's.
        name: Of the process; the function's own, with dashes, unless given. Part of keys and of what is stored.

    Raises:
        DeclarationError: The message says what to write instead.
    """
    return lambda function: Watch(function, flow, name)


def nearly_due(self: WatchInstance) -> None:
    """What is left of the deadline counts from here."""


def forget_flow(self: WatchInstance) -> None:
    """The end of a flow that began before the watch did."""


def _check_flow(function: Callable[..., Any]) -> None:
    for parameter, hint in typing.get_type_hints(function).items():
        if parameter != "return" and hint not in (Context, FlowOverdue):
            raise DeclarationError(
                f"overdue: {function.__name__}: {parameter} is to be a FlowOverdue, from choreo.process, or a Context"
            )


def _made_at(ctx: Context) -> datetime:
    """When the event was made; now, where its sender says no time or what is none."""
    try:
        found = datetime.fromisoformat(ctx.envelope.time or "")
    except ValueError:
        return ctx.now()
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
