"""Declarations: services, handlers, flows. Nothing here runs anything or names a broker."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

from choreo.core.breaker import Breaker
from choreo.core.retry import Delayed, RetryPolicy
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.ports import Start

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}\Z")
Retry = RetryPolicy | Delayed
Order = Literal["key"]
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Handler:
    """One function of one service, subscribed to one or more events. Made by `Service.handler`."""

    service: str
    name: str
    events: tuple[type[Event], ...]
    function: Callable[..., Any]
    emits: tuple[type[Event], ...] | None
    idempotency_key: str | None
    retry: Retry
    breaker: Breaker | None = None
    order: Order | None = None

    @property
    def label(self) -> str:
        """`service.handler`, as messages and spans name it."""
        return f"{self.service}.{self.name}"


class Service:
    """One independently deployed participant: a consumer group and its handlers.

    Args:
        name: Lower-case letters, digits, `.`, `_`, `-`. Part of every idempotency key: keep it for ever.
        group: Consumer group, `name` unless given; to inherit the offsets of a group that exists.
        start: Where a group without a committed offset begins: "earliest", "latest" or ms since the epoch.
        source: CloudEvents `source` of what it emits, `/<name>` unless given.
        retry: Default of its handlers.

    Raises:
        DeclarationError: The message says what to write instead.
    """

    def __init__(
        self,
        name: str,
        *,
        group: str | None = None,
        start: Start = "earliest",
        source: str | None = None,
        retry: Retry | None = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME.match(name):
            raise DeclarationError(
                f'Service({name!r}): a name is lower-case letters, digits, ".", "_" and "-", such as "inventory"'
            )
        if start not in ("earliest", "latest") and not (isinstance(start, int) and start >= 0):
            raise DeclarationError(
                f'Service({name!r}): start={start!r} must be "earliest", "latest" or milliseconds since the epoch'
            )
        self.name = name
        self.group = group or name
        self.start = start
        self.source = source or f"/{name}"
        self.retry = _checked(f"Service({name!r})", retry or RetryPolicy())
        self.handlers: dict[str, Handler] = {}
        self.on_start_functions: list[Callable[..., Any]] = []

    @property
    def dlq_topic(self) -> str:
        """Logical topic of its dead letters."""
        return f"{self.name}.dlq"

    @property
    def replay_topic(self) -> str:
        """Logical topic of what is replayed to it, and of what else became of its dead letters."""
        return f"{self.name}.replay"

    @property
    def delays_s(self) -> list[int]:
        """Delays of its delay topics, in seconds: each has one topic, whichever handlers use it."""
        retries = (handler.retry for handler in self.handlers.values() if handler.order is None)
        return sorted({delay for retry in retries if isinstance(retry, Delayed) for delay in retry.delays_s})

    @property
    def parks(self) -> bool:
        """Whether one of its handlers parks keys: then it needs its topic of replays."""
        return any(handler.order is not None for handler in self.handlers.values())

    def delay_topic(self, delay_s: int) -> str:
        """Logical topic of what is handled again `delay_s` seconds later."""
        return f"{self.name}.retry.{delay_s}"

    def handler(
        self,
        *events: type[Event],
        name: str | None = None,
        emits: type[Event] | Sequence[type[Event]] | None = None,
        idempotency_key: str | None = None,
        retry: Retry | None = None,
        breaker: Breaker | None = None,
        order: Order | None = None,
    ) -> Callable[[_Function], _Function]:
        """Subscribe a function to `events`. The function itself is returned, so that tests can call it.

        Args:
            name: The function's unless given. Part of keys and derived ids: keep it when you rename the function.
            emits: What it may emit, where its return annotation cannot say it.
            idempotency_key: Field of the event that stands for the whole event: a second event with the same
                value is a duplicate whatever its id.
            retry: `RetryPolicy` or `Delayed`; the service's unless given.
            breaker: When it fails in a row it is left alone for a while, not tried again and again.
            order: "key": what it gives up is no dead letter but parks its key, and later events of the key wait
                behind it in the store until it was handled. With `Delayed` the event waits there, too.
        """
        if len(events) == 1 and not isinstance(events[0], type) and callable(events[0]):
            raise DeclarationError(
                f"@{self.name}.handler: name the event's class: write @{self.name}.handler(OrderPlaced)"
            )
        if not events:
            raise DeclarationError(f"@{self.name}.handler(): name at least one event class to subscribe to")
        for event in events:
            self._check_event(event)

        def register(function: _Function) -> _Function:
            self._register(function, events, name, emits, idempotency_key, retry, breaker, order)
            return function

        return register

    def on_start(self, function: _Function) -> _Function:
        """Run a plain function once at the start, in a transaction of the store: to create the service's tables."""
        if inspect.iscoroutinefunction(function):
            raise DeclarationError(
                f"{self.name}.on_start: {function.__qualname__} must be a plain def: it runs inside a transaction"
            )
        self.on_start_functions.append(function)
        return function

    def _check_event(self, event: object) -> None:
        if not (isinstance(event, type) and issubclass(event, Event)):
            raise DeclarationError(f"@{self.name}.handler({event!r}): that is no Event class")
        if not event.event_type:
            raise DeclarationError(
                f"@{self.name}.handler({event.__name__}): the class has no type; write "
                f'class {event.__name__}(Event, type="...", version=1, topic="...")'
            )

    def _register(
        self,
        function: Callable[..., Any],
        events: tuple[type[Event], ...],
        name: str | None,
        emits: type[Event] | Sequence[type[Event]] | None,
        idempotency_key: str | None,
        retry: Retry | None,
        breaker: Breaker | None,
        order: Order | None,
    ) -> None:
        if not callable(function):
            raise DeclarationError(f"@{self.name}.handler decorates a function, not {function!r}")
        name = name or str(getattr(function, "__name__", ""))
        if not re.match(r"[A-Za-z_][A-Za-z0-9_.-]{0,126}\Z", name):
            raise DeclarationError(f"{self.name}: {name!r} is no handler name; give name= to the decorator")
        if name in self.handlers:
            raise DeclarationError(
                f"{self.name}: there is a handler named {name!r} already, and a name is part of idempotency keys; "
                "rename the function or give name= to the decorator"
            )
        if idempotency_key is not None:
            for event in events:
                if idempotency_key not in event.model_fields:
                    raise DeclarationError(
                        f"{self.name}.{name}: idempotency_key={idempotency_key!r} names no field of {event.__name__}"
                    )
        if breaker is not None and not isinstance(breaker, Breaker):
            raise DeclarationError(f"{self.name}.{name}: breaker={breaker!r} must be Breaker(failures=5, pause_s=30)")
        if order is not None:
            _check_order(f"{self.name}.{name}", order, events)
        if isinstance(emits, type):
            emits = (emits,)
        self.handlers[name] = Handler(
            self.name,
            name,
            events,
            function,
            None if emits is None else tuple(emits),
            idempotency_key,
            _checked(f"{self.name}.{name}", retry or self.retry),
            breaker,
            order,
        )


def _check_order(who: str, order: object, events: Sequence[type[Event]]) -> None:
    if order != "key":
        raise DeclarationError(f'{who}: order={order!r} must be "key", or left out')
    for event in events:
        if event.event_key is None:
            raise DeclarationError(
                f'{who}: order="key" keeps the order of the events of a key, and {event.__name__} has none; write '
                f'class {event.__name__}(Event, ..., key="order_id"), or leave order= out'
            )


def _checked(who: str, retry: object) -> Retry:
    if not isinstance(retry, RetryPolicy | Delayed):
        raise DeclarationError(f"{who}: retry={retry!r} must be RetryPolicy(...) or Delayed(...)")
    return retry


@dataclass(frozen=True)
class Flow:
    """A business process as the people who ask for it see it: what begins it, what ends it, and by when.

    Raises:
        DeclarationError: It has no end, or a deadline that is not positive.
    """

    name: str
    starts: type[Event]
    ends: tuple[type[Event], ...] = field()
    deadline: timedelta | None = None

    def __init__(
        self,
        name: str,
        *,
        starts: type[Event],
        ends: type[Event] | Sequence[type[Event]],
        deadline: timedelta | None = None,
    ) -> None:
        ends = (ends,) if isinstance(ends, type) else tuple(ends)
        if not ends:
            raise DeclarationError(f"Flow({name!r}): ends= names the events that end it; give at least one")
        for event in (starts, *ends):
            if not (isinstance(event, type) and issubclass(event, Event) and event.event_type):
                raise DeclarationError(f"Flow({name!r}): {event!r} is no Event class with a type")
        if deadline is not None and deadline <= timedelta(0):
            raise DeclarationError(f"Flow({name!r}): deadline={deadline} must be longer than nothing")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "ends", ends)
        object.__setattr__(self, "deadline", deadline)
