"""Publishing from outside of handlers: the event that begins a flow."""

import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import DeclarationError, RecordTooLarge
from choreo.event import Event
from choreo.ports import Clock, Instrument, Transport
from choreo.record import ProducerRecord
from choreo.runtime.routing import PAYLOAD_BYTES_MAX


class Reference(NamedTuple):
    """Where a published event can be found again; `correlation_id` follows its whole flow."""

    id: str
    correlation_id: str
    topic: str


class Publisher:
    """Publishes events, in order a key.

    Args:
        topic: Logical to actual topic name.
        source: CloudEvents `source` of what is published.
    """

    def __init__(
        self,
        transport: Transport,
        instrument: Instrument,
        clock: Clock,
        *,
        topic: Callable[[str], str] = str,
        source: str = "/publisher",
    ) -> None:
        self._transport = transport
        self._instrument = instrument
        self._clock = clock
        self._topic = topic
        self._source = source

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
        self, events: Sequence[tuple[Event, str | None]], *, correlation_id: str | None = None
    ) -> list[Reference]:
        """Publish several (event, id or None) in one go; the references are in the same order."""
        records: list[ProducerRecord] = []
        references, ends = [], []
        for event, id_ in events:
            if not event.event_type:
                raise DeclarationError(f"{type(event).__name__} has no type and topic, so it cannot be published")
            payload = event.payload()
            if len(payload) > PAYLOAD_BYTES_MAX:
                raise RecordTooLarge(
                    f"the {event.event_type} has {len(payload)} bytes, and no service takes more than "
                    f"{PAYLOAD_BYTES_MAX}: keep what is large elsewhere, and send where it is",
                    index=len(records),
                )
            id_ = id_ or str(uuid.uuid4())
            topic = self._topic(event.event_topic)
            envelope = Envelope(
                id_,
                self._source,
                event.event_type,
                version=event.event_version,
                time=cloudevents.rfc3339(self._clock.now_s()),
                correlationid=correlation_id or id_,
            )
            key = event.record_key()
            envelope, end = self._instrument.publish(topic, envelope, key)
            ends.append(end)
            records.append(ProducerRecord(topic, key, payload, cloudevents.write(envelope)))
            references.append(Reference(id_, envelope.correlationid, topic))
        try:
            await self._transport.send(records)
        except BaseException as error:
            for end in ends:
                end(error)
            raise
        for end in ends:
            end(None)
        return references
