"""Metrics through OpenTelemetry's API: counts kept in plain dicts, and read by whoever collects.

A counter of the SDK costs some 10 us a call, so what happens to every event is counted by hand and read by
observable instruments, and `messaging.process.duration` gets many durations at once. Whether an event is sampled has
no part in it.

Nothing here knows exporters or the environment: see `choreo.telemetry.setup`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from choreo.ports import Backlog, Consumer, IdempotencyStore, Instrument, Levels, Peer, Transport
from choreo.record import ProducerRecord, Record
from choreo.telemetry.attributes import SCHEMA_URL, Attributes, of_client, type_name
from choreo.telemetry.durations import Durations
from choreo.telemetry.metered import MeteredInstrument
from choreo.telemetry.tally import COUNTERS, GAUGES, Read, Tally, count, of_error, of_operation
from choreo.telemetry.timing import TimedConsumer, TimedStore, TimedTransport

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""What the messaging conventions advise."""
MINUTE_S, HOUR_S, DAY_S = 60.0, 3_600.0, 86_400.0
FLOW_BUCKETS_S = (
    *(1.0, 5.0, 15.0, MINUTE_S, 5 * MINUTE_S, 15 * MINUTE_S, HOUR_S, 4 * HOUR_S, 12 * HOUR_S),
    *(DAY_S, 2 * DAY_S, 4 * DAY_S, 7 * DAY_S, 14 * DAY_S, 30 * DAY_S),
)
"""From what a machine takes to what people do."""
HISTOGRAMS = {
    "messaging.process.duration": ("From the begin of processing an event until its result is durable.", BUCKETS_S),
    "messaging.client.operation.duration": (
        "Calls to the broker: send, commit, and polls that returned something.",
        BUCKETS_S,
    ),
    "choreo.store.operation.duration": ("Calls to the idempotency store.", BUCKETS_S),
    "choreo.flow.duration": ("Watched flows, from their first event to the one that ends them.", FLOW_BUCKETS_S),
}


class Meters:
    """What counts for the services of one process; made by `meters`."""

    def __init__(
        self, instruments: "Instruments", system: str, peer: Peer, on_close: Callable[[], None] | None
    ) -> None:
        self._instruments = instruments
        _, self._operation, self._store, self._flow = instruments.histograms
        self._always = of_client(system, Peer(address=peer.address, port=peer.port))
        self._on_close = on_close

    def instrument(self, service: str, inner: Instrument) -> Instrument:
        """One that counts, and has `inner` trace."""
        return MeteredInstrument(inner, self._tally(service), self._instruments.durations, self._flow)

    def store(self, service: str, store: IdempotencyStore) -> IdempotencyStore:
        """The store, its calls timed."""
        always = {**self._tally(service).own, "choreo.store.name": store.name}

        def took(name: str, took_s: float, error: BaseException | None) -> None:
            self._store.record(took_s, _ended({**always, "choreo.store.operation": name}, error))

        return cast(IdempotencyStore, TimedStore(store, took))

    def transport(self, service: str, transport: Transport) -> Transport:
        """The transport, and the consumers it makes, their calls timed and what they fetch counted."""
        tally = self._tally(service)

        def sent(records: Sequence[ProducerRecord], took_s: float, error: BaseException | None) -> None:
            topics = {record.topic for record in records}
            operation = of_operation("send", "send", topics.pop() if len(topics) == 1 else None)
            self._operation.record(took_s, _ended({**tally.always, **operation}, error))

        def joined(group: str, consumer: Consumer) -> TimedConsumer:
            always: Attributes = {**tally.always, "messaging.consumer.group.name": group}
            polled, settled = (
                {**always, **of_operation(*names)} for names in (("poll", "receive"), ("commit", "settle"))
            )

            def fetched(records: Sequence[Record], took_s: float) -> None:
                for topic, number in Counter([record.topic for record in records]).items():
                    count(tally.consumed, (group, topic), number)
                self._operation.record(took_s, polled)

            def committed(took_s: float, error: BaseException | None) -> None:
                self._operation.record(took_s, _ended(settled.copy(), error))

            return TimedConsumer(consumer, fetched, committed)

        return cast(Transport, TimedTransport(transport, sent, joined))

    def tell(self, service: str, levels: Levels | None) -> None:
        """How things stand with a service; None when it ends."""
        self._tally(service).levels = levels

    def tell_backlog(self, service: str, backlog: Backlog | None) -> None:
        """What waits in the outbox that a relay leads at; None when it does not any more."""
        self._tally(service).backlog = backlog

    def close(self) -> None:
        """Flush, in bounded time, where the provider is ours; the application's is its own to flush."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def _tally(self, service: str) -> Tally:
        return self._instruments.tally(service, self._always)


class Instruments:
    """The instruments of one MeterProvider, and the tallies they read, by service."""

    def __init__(self, meter: Meter, *, many: bool) -> None:
        self._tallies: dict[str, Tally] = {}
        self.histograms: Sequence[Histogram] = [
            meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=buckets)
            for name, (description, buckets) in HISTOGRAMS.items()
        ]
        self.durations = Durations(self.histograms[0], BUCKETS_S if many else ())
        for name, unit, description, read in COUNTERS:
            meter.create_observable_counter(name, [self._callback(read)], unit, description)
        for name, unit, description, read in GAUGES:
            meter.create_observable_gauge(name, [self._callback(read)], unit, description)

    def tally(self, service: str, always: Attributes) -> Tally:
        """The service's, which outlives its run: who collects last still reads it."""
        tally = self._tallies.get(service)
        if tally is None:
            tally = self._tallies[service] = Tally({**always, "choreo.service": service})
        return tally

    def _callback(self, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            self.durations.flush()  # the SDK asks these before it looks at its histograms
            tallies = self._tallies.copy()
            return [Observation(value, found) for tally in tallies.values() for value, found in read(tally)]

        return observe


_known: "WeakKeyDictionary[Any, Instruments]" = WeakKeyDictionary()


def meters(
    provider: MeterProvider,
    *,
    system: str,
    peer: Peer | None = None,
    on_close: Callable[[], None] | None = None,
    many: bool = False,
) -> Meters:
    """What counts through `provider`. Its instruments are made once: a second run in one process goes on counting.

    Args:
        system: `messaging.system`, such as `kafka`.
        peer: Whom the transport talks to.
        on_close: Flushes; without it that is left to the provider's owner.
        many: The provider has the views of `choreo.telemetry.aggregating`.
    """
    if provider not in _known:
        _known[provider] = Instruments(provider.get_meter("choreo", schema_url=SCHEMA_URL), many=many)
    return Meters(_known[provider], system, peer or Peer(), on_close)


def _ended(attributes: Attributes, error: BaseException | None) -> Attributes:
    return of_error(attributes, "" if error is None else type_name(error))
