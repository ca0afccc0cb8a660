"""The Publisher of asyncio applications."""

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Self

from choreo.errors import ConfigurationError, RecordTooLarge, TransportError
from choreo.event import Event
from choreo.opening import open_transport
from choreo.ports import Clock, Instrument, Transport
from choreo.publisher.stamping import Reference, Stamped, stamped, topic_names
from choreo.runtime.clock import SystemClock
from choreo.runtime.routing import PAYLOAD_BYTES_MAX
from choreo.runtime.sending import BYTES_MAX, OrderedSender
from choreo.telemetry.setup import instrument_from_environment
from choreo.topic import wire_record

SLICE_EVENTS = 500
"""So many of `publish_many` are on their way at once."""


class Publisher:
    """Publishes events from an application, in order a key.

        async with Publisher() as publisher:
            reference = await publisher.publish(OrderPlaced(...), id=request_key)

    Leaving the block waits for what is on its way. Events of one key in one topic reach the log in the order of the
    calls, those of concurrent tasks too; where one of them fails, those of its key that wait behind it fail with it.

    Args:
        broker: As `choreo run --broker` takes it, `CHOREO_BROKER` unless given; or a transport that is open, and
            stays its owner's.
        instrument: Records `send` spans and counts; as the OTEL_* variables say unless given.
        clock: The system's unless given.
        topics: Logical to actual topic name, as `App(topics=...)`.
        topic: The same as a function, such as `app.topic`, instead of `topics`.
        source: CloudEvents `source` of what is published: it and the id are what a duplicate is known by.
        timeout_s: After so long a publication fails.
        bytes_max: Publications wait while so many bytes are not acknowledged.
    """

    def __init__(
        self,
        broker: str | Transport | None = None,
        instrument: Instrument | None = None,
        clock: Clock | None = None,
        *,
        topics: Mapping[str, str] | None = None,
        topic: Callable[[str], str] | None = None,
        source: str = "/publisher",
        timeout_s: float = 30.0,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._broker = broker
        self._instrument = instrument
        self._clock = clock or SystemClock()
        self._topic = topic or topic_names(topics)
        self._source = source
        self._timeout_s = timeout_s
        self._bytes_max = bytes_max
        self._sender: OrderedSender | None = None
        self._stack = AsyncExitStack()
        if broker is not None and not isinstance(broker, str) and instrument is not None:
            self._sender = OrderedSender(broker.send, bytes_max=bytes_max)

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ConfigurationError: There is no broker to go to.
            TransportError: It cannot be reached; says what to check.
        """
        transport = self._broker or os.environ.get("CHOREO_BROKER")
        if transport is None:
            raise ConfigurationError("there is no broker to publish to: write Publisher(URL), or set CHOREO_BROKER")
        async with AsyncExitStack() as stack:
            if isinstance(transport, str):
                transport = open_transport(transport, clock=self._clock)
                await transport.open()
                stack.push_async_callback(transport.close)
            if self._instrument is None:
                name = self._source.strip("/") or "publisher"
                self._instrument = instrument = instrument_from_environment(
                    name, system=transport.system, peer=transport.peer, alone=True
                )
                stack.callback(setattr, self, "_instrument", None)  # opened again, it gets a new one
                stack.push_async_callback(asyncio.to_thread, instrument.close)
            self._sender = OrderedSender(transport.send, bytes_max=self._bytes_max)
            stack.push_async_callback(self._sender.flush)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for what is on its way, and disconnect."""
        await self._stack.aclose()
        self._sender = None

    async def publish(self, event: Event, *, id: str | None = None, correlation_id: str | None = None) -> Reference:
        """Publish one event and return when the broker has it.

        Args:
            id: Your own id for it: publish again with the same one after a failure, and it is handled once.
            correlation_id: The flow it belongs to; by default it begins one, under its own id.

        Raises:
            TransportError: It is not known to be on the log; publish again with the same `id`.
            RecordTooLarge: No service would take it; nothing was sent.
        """
        (reference,) = await self.publish_many([(event, id)], correlation_id=correlation_id)
        return reference

    async def publish_many(
        self, events: Iterable[Event | tuple[Event, str | None]], *, correlation_id: str | None = None
    ) -> list[Reference]:
        """Publish several, each an event or (event, its id), in order; the references are in the same order.

        Of a long iterable no more than `SLICE_EVENTS` are held at a time.

        Raises:
            TransportError: Some may be on the log, some not; publish all again with the same ids.
        """
        if self._sender is None or self._instrument is None:
            raise ConfigurationError("the publisher is not open: write `async with Publisher(...) as publisher:`")
        references: list[Reference] = []
        left = iter(events)
        while part := list(islice(left, SLICE_EVENTS)):
            pairs = [(each, None) if isinstance(each, Event) else each for each in part]
            references += await self._publish(self._sender, self._instrument, pairs, correlation_id)
        return references

    async def _publish(
        self,
        sender: OrderedSender,
        instrument: Instrument,
        events: list[tuple[Event, str | None]],
        correlation_id: str | None,
    ) -> list[Reference]:
        now_s = self._clock.now_s()
        references, records, ends = [], [], []
        going = [
            stamped(each, id=id, correlation_id=correlation_id, topic=self._topic, source=self._source, now_s=now_s)
            for each, id in events
        ]
        _refuse_oversized(going)
        for found in going:
            topic = found.reference.topic
            envelope, end = instrument.publish(topic, found.envelope, found.key)
            ends.append(end)
            records.append(wire_record(topic, envelope, found.key, found.value))
            references.append(found.reference)
        try:
            async with asyncio.timeout(self._timeout_s):
                errors = await sender.send(records)
        except TimeoutError as error:
            _end(ends, [error] * len(ends))
            raise TransportError(
                f"{records[0].topic}: not acknowledged within {self._timeout_s:g} s; publish again with the same id"
            ) from None
        except BaseException as error:
            _end(ends, [error] * len(ends))
            raise
        _end(ends, errors)
        for failure in errors:
            if failure is not None:
                raise failure
        return references


def _refuse_oversized(events: Sequence[Stamped]) -> None:
    """RecordTooLarge for the first that would be a dead letter of every service."""
    for index, event in enumerate(events):
        if len(event.value) > PAYLOAD_BYTES_MAX:
            raise RecordTooLarge(
                f"the {event.envelope.type} has {len(event.value)} bytes, and no service takes more than "
                f"{PAYLOAD_BYTES_MAX}: keep what is large elsewhere, and send where it is",
                index=index,
            )


def _end(ends: Sequence[Callable[[BaseException | None], None]], errors: Sequence[BaseException | None]) -> None:
    for end, error in zip(ends, errors, strict=True):
        end(error)
