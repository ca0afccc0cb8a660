"""What a handler may know of the event it is handling, beside the event."""

import logging
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from choreo.envelope import Envelope
from choreo.ports import FlowMark

_log = logging.getLogger("choreo.handler")


class Context:
    """One invocation of one handler. Ask for it by annotating a parameter with `Context`.

    Attributes:
        idempotency_key: The same text for every attempt and redelivery of this (event, handler): give it to
            whatever is called outside, since no transaction of choreo's covers that.
        envelope: Id, source, correlation id and the rest of the event's attributes.
        attempt: 1 at the first invocation.
        correlation_id: Of the flow that what is emitted belongs to: the event's own, or that of a process's instance.
        transaction: The unit's transaction as the store's own driver has it, in a plain handler that asks for one.
        flow: What a watch has found of the flow in this invocation, if anything.
        log: A logger that adds `about` to each record.
        about: Service, handler, event id, type, correlation id and attempt: what log records say of the invocation.
    """

    __slots__ = (
        *("_handler", "_log", "_now", "_service"),
        *("attempt", "correlation_id", "envelope", "flow", "idempotency_key", "transaction"),
    )

    def __init__(
        self,
        idempotency_key: str,
        envelope: Envelope,
        attempt: int,
        now: Callable[[], datetime],
        service: str,
        handler: str,
        transaction: Any = None,
    ) -> None:
        self.idempotency_key = idempotency_key
        self.envelope = envelope
        self.attempt = attempt
        self.correlation_id = envelope.correlationid
        self.transaction = transaction
        self.flow: FlowMark | None = None
        self._now = now
        self._service, self._handler = service, handler
        self._log: _EventLog | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What is said of the invocation; made when asked for, as most are never logged about."""
        return {
            "service": self._service,
            "handler": self._handler,
            "event_id": self.envelope.id,
            "event_type": self.envelope.type,
            "correlation_id": self.envelope.correlationid,
            "attempt": self.attempt,
        }

    @property
    def log(self) -> "_EventLog":
        """The invocation's logger."""
        if self._log is None:
            self._log = _EventLog(_log, self.about)
        return self._log

    def now(self) -> datetime:
        """The time, in UTC, by the app's clock: virtual in `TestApp`. Use it instead of `datetime.now`."""
        return self._now()

    @classmethod
    def fake(
        cls,
        *,
        idempotency_key: str = "fake-key",
        envelope: Envelope | None = None,
        attempt: int = 1,
        now: datetime | None = None,
        transaction: Any = None,
    ) -> "Context":
        """A context for calling a handler as a function in a test."""
        moment = now or datetime.now(UTC)
        return cls(
            idempotency_key=idempotency_key,
            envelope=envelope or Envelope("fake-id", "/fake", "fake.event", correlationid="fake-id"),
            attempt=attempt,
            now=lambda: moment,
            service="fake",
            handler="fake",
            transaction=transaction,
        )


invocation: ContextVar[Context | None] = ContextVar("choreo_invocation", default=None)
"""The invocation that is running here, on whatever thread: what a log record is about."""


class _EventLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the event's coordinates beside what the caller passes as `extra`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
