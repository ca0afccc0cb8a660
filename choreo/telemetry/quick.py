"""`process` and `send` spans the quick way: a few fields are kept of one, and it is encoded when it is exported.

For what happens to nearly every event: its sender was sampled, and its spans go by OTLP and nowhere else. All other
spans are the SDK's, and leave in the same requests.
"""

from collections.abc import Callable, Sequence
from random import getrandbits
from time import time_ns
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from choreo.envelope import Envelope, TraceContext
from choreo.ports import UnitInfo
from choreo.record import new
from choreo.telemetry import encoding
from choreo.telemetry.attributes import Attributes, type_name
from choreo.telemetry.kinds import Kind, Kinds, of_offset
from choreo.telemetry.live import LiveSpan
from choreo.telemetry.nesting import attach
from choreo.telemetry.watching import contain

SENDS_MAX = 1
"""So many `send` spans wait for their export as one with the `process` span above them: to be put into the queue by
itself would cost it more than all the rest."""

Send = tuple[Kind, str, str, str, bytes | None, bytes, int]
"""Of a `send` span: its kind, topic, event's id and correlation id, key, own id, and when it began."""


class Quick:
    """Makes the spans of one service.

    Args:
        always: Attributes of all its spans.
        provider: Whose resource they have.
        puts: Each takes what is Queued, for its export.
        sends_max: How many `send` spans go there with the one above them.
    """

    def __init__(
        self,
        always: Attributes,
        provider: TracerProvider,
        puts: Sequence[Callable[[Any], object]],
        sends_max: int = SENDS_MAX,
    ) -> None:
        self.provider = provider
        self.kinds = Kinds(always)
        self.sends_max = sends_max
        self.puts = puts

    def begin(self, unit: UnitInfo, sender: str) -> "QuickUnit | None":
        """A unit begins; None where it is not one of the usual ones.

        `sender`: `traceparent` of the span that sent the event: sampled, and a usual one.
        """
        envelope, (topic, partition, offset, key, value, _, _) = unit.envelope, unit.record
        if envelope is None or not envelope[0] or value is None:
            return None
        kinds, name = self.kinds, (topic, partition, unit.handler, envelope[1:4])
        kind = kinds.known.get(name) or kinds.process(name, unit)
        return QuickUnit(self, kind, envelope, key, offset, sender)


class Queued:
    """Spans that have ended and wait for their export, as our exporter takes them.

    Attributes:
        service: Whose they are.
    """

    __slots__ = ()
    service: Quick

    @property
    def count(self) -> int:
        """How many."""
        raise NotImplementedError

    def encoded(self) -> bytes:
        """Fields of `ScopeSpans`."""
        raise NotImplementedError


class QuickUnit(LiveSpan, Queued):
    """One `process` span that is open, and the `send` spans below it, as `choreo.ports.Span`; queued once finished.

    It holds what the spans say and no more: the record's payload may be large, and what is freed early is made of
    memory that is still in the processor's caches.
    """

    __slots__ = (
        *("_correlation_id", "_ending", "_id", "_key", "_kind", "_offset", "_sends", "_sends_ending", "_start_ns"),
        "service",
    )
    silent = False

    def __init__(
        self, service: Quick, kind: Kind, envelope: Envelope, key: bytes | None, offset: int, sender: str
    ) -> None:
        self.service = service
        self._kind = kind
        self._id, self._correlation_id = envelope[0], envelope[7]
        self._key = key
        self._offset = offset
        self._sender = sender
        self._span_id = (getrandbits(64) or 1).to_bytes(8, "big")
        self._start_ns = time_ns()
        self._end_ns = 0
        self._sends: list[Send] = []

    def attempt_failed(self, attempt: int, error: BaseException) -> None:
        """An event of the span; what the attempt began to send was never sent."""
        self._sends.clear()
        told: Attributes = {"choreo.attempt": attempt, "error.type": type_name(error)}
        try:
            self.add_event("choreo.attempt_failed", told)
        except Exception as failure:
            contain("attempt_failed", failure)

    def sending(self, topic: str, envelope: Envelope, key: bytes | None = None) -> TraceContext:
        """A `send` span begins."""
        span_id, sender = self._span_id, self._sender
        if not self._end_ns:
            try:
                kinds, name = self.service.kinds, (topic, envelope[1:4])
                kind = kinds.known.get(name) or kinds.send(name, topic, envelope, key)
            except Exception as error:
                contain("sending", error)
            else:
                span_id = (getrandbits(64) or 1).to_bytes(8, "big")
                self._sends.append((kind, topic, envelope[0], envelope[7], key, span_id, time_ns()))
        return new(TraceContext, (f"{sender[:36]}{span_id.hex()}{sender[52:]}", None))

    def attach(self) -> None:
        """The current span of what runs in this context."""
        if self._sends:
            self._sends.clear()
        attach(self)

    def finish(self, outcome: str, *, attempts: int, error_type: str | None = None) -> None:
        """End it and what was sent below it."""
        if self._end_ns:
            return
        self._end_ns = time_ns()
        try:
            failed = (error_type or "_OTHER") if outcome == "dead_letter" else None
            self._ending = encoding.ending(outcome, attempts, failed)
            self._sends_ending = encoding.ending(outcome, None, None) if outcome == "dropped" else b""
            sent = len(self._sends)
            if sent > 1 or sent > self.service.sends_max:
                self._split()
            for put in self.service.puts:
                put(self)
        except Exception as error:
            contain("end", error)

    def _split(self) -> None:
        """Send spans that are more than go with their process span go before it."""
        service = self.service
        sends = self._sends = list({send[1:3]: send for send in self._sends}.values())  # twice to be sent, once sent
        if len(sends) > service.sends_max:
            self._sends = []
            most = service.sends_max + 1
            for at in range(0, len(sends), most):
                for put in service.puts:
                    put(Sends(self, sends[at : at + most]))

    @property
    def count(self) -> int:
        """How many spans it is."""
        return 1 + len(self._sends)

    def encoded(self) -> bytes:
        """The process span behind what it sent."""
        sender, offset, ending = self._sender, of_offset(self._offset), self._ending
        trace_id = bytes.fromhex(sender[3:35])
        ids = trace_id, self._span_id, bytes.fromhex(sender[36:52])
        about = ids, self._start_ns, self._end_ns, self._id, self._correlation_id, self._key
        if self.changed:
            own: tuple[bytes, ...] = (self.completed(b"".join(self._kind.pieces(*about, offset)), ending),)
        else:
            own = self._kind.pieces(*about, offset + ending)
        return b"".join(self.pieces_of(self._sends, trace_id) + own if self._sends else own)

    def pieces_of(self, sends: Sequence[Send], trace_id: bytes) -> tuple[bytes, ...]:
        """Some that it sent."""
        own_id, end_ns, ending = self._span_id, self._end_ns, self._sends_ending
        found: tuple[bytes, ...] = ()
        for kind, _, id_, flow, key, span_id, start_ns in sends:
            found += kind.pieces((trace_id, span_id, own_id), start_ns, end_ns, id_, flow, key, ending)
        return found


class Sends(Queued):
    """Some `send` spans of a unit that has many."""

    __slots__ = ("_sends", "_unit", "service")

    def __init__(self, unit: QuickUnit, sends: Sequence[Send]) -> None:
        self.service = unit.service
        self._unit = unit
        self._sends = sends

    @property
    def count(self) -> int:
        """How many."""
        return len(self._sends)

    def encoded(self) -> bytes:
        """One behind the other."""
        return b"".join(self._unit.pieces_of(self._sends, bytes.fromhex(self._unit._sender[3:35])))
