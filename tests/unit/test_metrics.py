"""Metrics as a collector reads them: names, units, attributes, and that nothing depends on sampling."""

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from opentelemetry import metrics
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from choreo import App, Breaker, Context, Event, Flow, Reject, RetryPolicy, Service
from choreo.core.units import Unit
from choreo.envelope import Envelope, write
from choreo.errors import TransportError
from choreo.observing import Observing
from choreo.ports import FlowMark, Level, Levels, Peer
from choreo.process import FlowOverdue, overdue
from choreo.record import ProducerRecord, TopicPartition
from choreo.runtime.invoking import Inside, Invoker
from choreo.runtime.levels import Gauge
from choreo.telemetry import aggregating, readers
from choreo.telemetry.metered import MeteredInstrument
from choreo.telemetry.metering import BUCKETS_S, HISTOGRAMS, Meters, meters
from choreo.telemetry.silent import NoInstrument
from choreo.telemetry.spans import OtelInstrument
from choreo.telemetry.tally import COUNTERS, GAUGES
from choreo.testing import TestApp
from choreo.transports.embedded import EmbeddedTransport
from tests.integration.tracing import SAMPLED, UNSAMPLED, event, hop, unit, unset_otel, warnings_of
from tests.unit.test_spans import Counts

Attributes = Mapping[str, Any]
PEER = Peer("choreo", "kafka.example", 9092)
CLIENT = {
    "messaging.system": "kafka",
    "server.address": "kafka.example",
    "server.port": 9092,
    "choreo.service": "inventory",
}


def reading() -> tuple[Meters, InMemoryMetricReader]:
    """What counts, and who reads it."""
    reader = InMemoryMetricReader()
    return meters(MeterProvider([reader], shutdown_on_exit=False), system="kafka", peer=PEER), reader


def all_points(reader: InMemoryMetricReader) -> dict[str, list[tuple[Attributes, Any]]]:
    """Every data point by the name of its metric."""
    data = reader.get_metrics_data()
    found = [] if data is None else data.resource_metrics
    return {
        metric.name: [(dict(point.attributes or {}), point) for point in metric.data.data_points]
        for resource in found
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def values(reader: InMemoryMetricReader, name: str, *labels: str) -> dict[tuple[Any, ...], float]:
    """Values of one metric by the attributes called `labels`."""
    points = all_points(reader).get(name, [])
    return {tuple(found.get(label) for label in labels): point.value for found, point in points}


def test_metrics_have_the_conventions_names_units_and_buckets() -> None:
    """Names and UCUM units of all of them, the advised buckets, and the schema they follow."""
    counts, reader = reading()
    counts.tell("inventory", Levels("g", {TopicPartition("orders", 0): Level(3, 1.5)}, 2.5, 1, 64, 2))
    counts.instrument("inventory", NoInstrument()).publish("orders", event("o-1", "order.placed"))[1](None)
    hop(counts.instrument("inventory", NoInstrument()), unit("inventory", "orders", event("o-1", "x")), "stock", "y")
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert {metric.name: metric.unit for metric in scope.metrics} == {
        "messaging.process.duration": "s",
        "messaging.client.sent.messages": "{message}",
        "choreo.handler.events": "{event}",
        "choreo.handler.attempts": "{attempt}",
        "choreo.lag.records": "{record}",
        "choreo.lag.time": "s",
        "choreo.unfinished.age": "s",
        "choreo.lanes.open": "{lane}",
        "choreo.handlers.running": "{handler}",
        "choreo.handlers.limit": "{handler}",
    }
    ((_, duration),) = all_points(reader)["messaging.process.duration"]
    assert duration.explicit_bounds == (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


def test_a_handled_unit_is_counted_with_all_its_attributes() -> None:
    """One event, its attempt, what it sent, and how long it took."""
    counts, reader = reading()
    instrument = counts.instrument("inventory", NoInstrument())
    hop(instrument, unit("inventory", "orders", event("o-1", "order.placed")), "stock", "stock.reserved")
    found = all_points(reader)
    ((attributes, duration),) = found["messaging.process.duration"]
    operation = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    where = {"messaging.destination.name": "orders", "messaging.consumer.group.name": "inventory-group"}
    assert attributes == {**CLIENT, **operation, **where, "choreo.handler": "handle"}
    assert duration.count == 1
    ((attributes, sent),) = found["messaging.client.sent.messages"]
    assert sent.value == 1
    operation = {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert attributes == {**CLIENT, **operation, "messaging.destination.name": "stock"}
    handled = {"choreo.service": "inventory", "choreo.handler": "handle", "choreo.outcome": "handled"}
    assert [each for each, _ in found["choreo.handler.events"]] == [
        {**handled, "messaging.destination.name": "orders"}
    ]
    assert [each for each, _ in found["choreo.handler.attempts"]] == [
        {"choreo.service": "inventory", "choreo.handler": "handle"}
    ]


async def test_each_outcome_is_counted_once_and_only_what_was_sent_is_sent() -> None:
    """Failed attempts by their error, a dead letter by its reason; what an attempt began to send is not counted."""
    counts, reader = reading()
    instrument = counts.instrument("inventory", NoInstrument())

    def begun() -> Any:
        return instrument.process(unit("inventory", "orders", event("o-1", "order.placed")), now_s=0.0)

    async def handler() -> None: ...

    begun().finish("duplicate", attempts=0)
    span = begun()
    span.attach()
    await handler()
    span.sending("stock", event("s-1", "stock.reserved"))
    span.attempt_failed(1, TimeoutError("card 4111"))
    span.sending("inventory.dlq", event("o-1", "order.placed"))
    span.finish("dead_letter", attempts=1, error_type="handler_failed")
    span.finish("handled", attempts=1)
    span = begun()
    span.sending("stock", event("s-1", "stock.reserved"))
    span.finish("dropped", attempts=1)
    span = begun()
    span.sending("inventory.retry.60", event("o-1", "order.placed"))
    span.finish("delayed", attempts=1)
    _, end = instrument.publish("orders", event("o-2", "order.placed"))
    end(OSError())
    assert values(reader, "choreo.handler.events", "choreo.outcome", "error.type") == {
        ("duplicate", None): 1,
        ("dead_letter", "handler_failed"): 1,
        ("dropped", None): 1,
        ("delayed", None): 1,
    }
    assert values(reader, "choreo.handler.attempts", "error.type") == {("TimeoutError",): 1}
    sent = values(reader, "messaging.client.sent.messages", "messaging.destination.name", "error.type")
    assert sent == {("inventory.dlq", None): 1, ("inventory.retry.60", None): 1, ("orders", "OSError"): 1}
    durations = all_points(reader)["messaging.process.duration"]
    assert {(attributes.get("error.type"), each.count) for attributes, each in durations} == {
        ("handler_failed", 1),
        (None, 1),
    }


@pytest.mark.parametrize("header", [SAMPLED, UNSAMPLED, None])
def test_metrics_do_not_depend_on_sampling(header: str | None) -> None:
    """Recorded, unsampled and untraced events are counted alike."""
    counts, reader = reading()
    traced = OtelInstrument("inventory", tracer_provider=Counts(), system="kafka")
    for inner in (traced, NoInstrument()):
        instrument = counts.instrument("inventory", inner)
        emitted = hop(instrument, unit("inventory", "orders", event("o-1", "x", traceparent=header)), "stock", "y")
        assert emitted.traceparent == header
    assert values(reader, "choreo.handler.events", "choreo.outcome") == {("handled",): 2}
    ((_, duration),) = all_points(reader)["messaging.process.duration"]
    assert duration.count == 2


@pytest.mark.parametrize("temporality", [AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA])
def test_durations_kept_in_buckets_read_as_those_recorded_one_by_one(temporality: AggregationTemporality) -> None:
    """Every bucket, sum, least and most, at each of several collections, for each series, to each of two readers."""
    chance, points = random.Random(7), []
    took_s = [[chance.choice([*BUCKETS_S, chance.expovariate(1.0)]) for _ in range(300)] for _ in range(3)]
    for many in (True, False):
        collectors = [InMemoryMetricReader({Histogram: temporality}) for _ in range(2)]
        found = MeterProvider(collectors, shutdown_on_exit=False, views=aggregating.views() if many else ())
        inner = meters(found, system="kafka", peer=PEER, many=many).instrument("inventory", NoInstrument())
        assert isinstance(inner, MeteredInstrument)
        about = unit("inventory", "orders", event("o-1", "order.placed"))
        seen: list[Any] = []
        for part in took_s:
            for number, each_s in enumerate(part):
                inner.processed(about, each_s, "invalid_data" if number % 7 == 0 else "")
            for reader in collectors:
                seen += [
                    (attributes, point.bucket_counts, pytest.approx(point.sum), point.min, point.max, point.count)
                    for attributes, point in all_points(reader)["messaging.process.duration"]
                ]
        points.append(seen)
    assert points[0] == points[1]
    assert sum(point[-1] for point in points[0][-2:]) == (
        900 if temporality is AggregationTemporality.CUMULATIVE else 300
    )


def test_no_duration_is_lost_between_threads() -> None:
    """A collector reads while events are handled."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False, views=aggregating.views())
    inner: Any = meters(provider, system="kafka", many=True).instrument("inventory", NoInstrument())
    about, began = unit("inventory", "orders", event("o-1", "order.placed")), threading.Barrier(3)

    def handle() -> None:
        began.wait()
        for _ in range(20_000):
            inner.processed(about, 0.001, "")

    threads, interval_s = [threading.Thread(target=handle) for _ in range(2)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        began.wait()
        while any(thread.is_alive() for thread in threads):
            all_points(reader)
    finally:
        sys.setswitchinterval(interval_s)
    ((_, point),) = all_points(reader)["messaging.process.duration"]
    assert (point.count, point.sum) == (40_000, pytest.approx(40.0))


def test_buckets_that_somebody_asks_for_are_his(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then, and where the SDK has changed, each duration is recorded by itself."""
    assert aggregating.views()
    monkeypatch.setenv(
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram"
    )
    assert not aggregating.views()
    made = readers.provider("inventory", [], "http/protobuf", "there", scraped=False)
    assert not made.many
    made.close()
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION")
    monkeypatch.setattr(aggregating, "_aggregate", lambda made, one_by_one, *given: one_by_one(*given))
    assert not aggregating.views()


def test_a_second_run_in_one_process_goes_on_counting(caplog: pytest.LogCaptureFixture) -> None:
    """The instruments of a provider are made once: the SDK does not complain, and counters do not fall."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    for _ in range(2):
        counts = meters(provider, system="kafka")
        hop(
            counts.instrument("inventory", NoInstrument()), unit("inventory", "orders", event("o", "x")), "stock", "y"
        )
        counts.close()
    assert values(reader, "choreo.handler.events", "choreo.outcome") == {("handled",): 2}
    assert warnings_of(caplog) == []


# ---- a whole app


class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    """Somebody wants tea."""

    who: str


class Poured(Event, type="tea.poured", version=1, topic="pours", key="who"):
    """There is tea."""

    who: str


kitchen = Service("kitchen", retry=RetryPolicy(attempts_max=2))


@kitchen.handler(Asked)
async def pour(asked: Asked) -> Poured:
    """Pour, unless asked by somebody who is not to have any."""
    if asked.who == "nobody":
        raise Reject("no tea for nobody")
    if asked.who == "late":
        raise TimeoutError
    return Poured(who=asked.who)


app = App(kitchen)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    """The reader of a MeterProvider that the application has set for its process."""
    unset_otel(monkeypatch)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", provider)
    assert metrics.get_meter_provider() is provider
    return reader


async def test_an_app_counts_through_the_applications_provider(own: InMemoryMetricReader) -> None:
    """What a run leaves there, after its end too: events, attempts, sends, fetches, and the calls it made."""
    async with TestApp(app) as t:
        await t.publish(Asked(who="Ann"), id="1")
        await t.publish(Asked(who="Ann"), id="1")
        await t.publish(Asked(who="nobody"))
        await t.publish(Asked(who="late"))
        await t.settle()
    assert values(own, "choreo.handler.events", "choreo.service", "choreo.outcome", "error.type") == {
        ("kitchen", "handled", None): 1,
        ("kitchen", "duplicate", None): 1,
        ("kitchen", "dead_letter", "rejected"): 1,
        ("kitchen", "dead_letter", "handler_failed"): 1,
    }
    attempts = values(own, "choreo.handler.attempts", "choreo.handler", "error.type")
    assert attempts == {("pour", None): 1, ("pour", "choreo.errors.Reject"): 1, ("pour", "TimeoutError"): 2}
    sent = values(own, "messaging.client.sent.messages", "choreo.service", "messaging.destination.name")
    assert sent == {("app", "asks"): 4, ("kitchen", "pours"): 1, ("kitchen", "kitchen.dlq"): 2}
    consumed = values(own, "messaging.client.consumed.messages", "messaging.consumer.group.name")
    assert consumed == {("kitchen",): 4}
    stored = {found["choreo.store.operation"] for found, _ in all_points(own)["choreo.store.operation.duration"]}
    assert {"acquire", "claim", "commit", "release"} <= stored
    called = {
        found["messaging.operation.name"] for found, _ in all_points(own)["messaging.client.operation.duration"]
    }
    assert called == {"send", "poll", "commit"}
    assert "choreo.lag.records" not in all_points(own), "nobody runs any more"


async def test_levels_say_how_far_behind_a_service_is() -> None:
    """An event in backoff is lag, in records and in seconds, an open lane, the oldest unfinished; then none is."""
    async with TestApp(app) as t:
        gauge = Gauge(t.running.workers["kitchen"])
        await t.settle()
        before = await gauge.look()
        await t.publish(Asked(who="late"))
        await t.advance(seconds=0)
        began_s = t.clock.now_s()
        t.clock.move_to(began_s + 0.01)
        during = await gauge.look()
        await t.settle()
        after = await gauge.look()
    assert {level.lag_records for level in before.partitions.values()} == {0}
    assert [level.lag_records for level in during.partitions.values() if level.lag_s > 0] == [1]
    assert during.oldest_s == pytest.approx(0.01, abs=0.002)
    assert (during.lanes, during.running, during.running_max) == (1, 0, 64)
    assert {tuple(level) for level in after.partitions.values()} == {(0, 0.0)}
    assert (after.oldest_s, after.lanes) == (0.0, 0)


async def test_records_nobody_fetches_are_lag_too() -> None:
    """A partition that stands still is behind by what its log holds, and by the time since that was first seen."""
    async with TestApp(app) as t:
        worker = t.running.workers["kitchen"]
        await t.settle()
        for partition in worker.engine.partitions:
            worker.consumer.pause(partition)
        gauge = Gauge(worker)
        await t.publish(Asked(who="Ann"))
        await gauge.look()
        t.clock.move_to(t.clock.now_s() + 30.0)
        found = await gauge.look()
        (level,) = [level for level in found.partitions.values() if level.lag_records]
        assert level.lag_records == 1
        assert level.lag_s == pytest.approx(30.0)
        for partition in worker.engine.partitions:
            worker.consumer.resume(partition)


async def test_a_breaker_tells_that_it_opens_and_how_it_stands(own: InMemoryMetricReader) -> None:
    """Two openings of one that is down until its second probe; open while probed, then not; gone after the run."""
    service, stands = Service("kitchen"), list[dict[tuple[Any, ...], float]]()

    @service.handler(Asked, retry=RetryPolicy(9), breaker=Breaker(failures=2, pause_s=60))
    async def pour(asked: Asked) -> Poured:
        stands.append(values(own, "choreo.breaker.open", "choreo.service", "choreo.handler"))
        if len(stands) < 4:
            raise ConnectionError
        return Poured(who=asked.who)

    open_, closed = ({("kitchen", "pour"): value} for value in (1, 0))
    async with TestApp(App(service)) as t:
        await t.publish(Asked(who="Ann"))
        await t.settle()
        assert stands == [{}, {}, open_, open_]
        assert values(own, "choreo.breaker.open", "choreo.service", "choreo.handler") == closed
    assert values(own, "choreo.breaker.openings", "choreo.service", "choreo.handler") == {("kitchen", "pour"): 2}
    assert "choreo.breaker.open" not in all_points(own)


async def test_watched_flows_are_counted_and_timed(own: InMemoryMetricReader) -> None:
    """One that waits too long is overdue, once, also when it ends at last; those that end are timed."""
    tea = Flow("tea", starts=Asked, ends=Poured, deadline=timedelta(hours=1))

    @overdue(tea)
    def tea_late(late: FlowOverdue) -> None:
        """Only counted."""

    async with TestApp(App(kitchen, tea_late)) as t:
        await t.publish(Asked(who="Ann"))
        waits = await t.publish(Asked(who="nobody"))
        await t.settle()
        await t.advance(hours=3)
        await t.running.publish(Poured(who="nobody"), correlation_id=waits.reference.correlation_id)
        await t.settle()
    assert values(own, "choreo.flow.overdue", "choreo.service", "choreo.flow") == {("tea-late", "tea"): 1}
    ((found, point),) = all_points(own)["choreo.flow.duration"]
    assert found == {"choreo.service": "tea-late", "choreo.flow": "tea", "choreo.flow.end": "tea.poured"}
    assert (point.count, point.max, point.explicit_bounds[-1]) == (2, 3 * 3600.0, 30 * 86_400.0)


@pytest.mark.parametrize("minutes", [5, 90])
async def test_a_flow_is_timed_in_whichever_order_its_events_are_read(
    own: InMemoryMetricReader, minutes: int
) -> None:
    """By when they were made; past its deadline it is overdue, though nobody was told while it was open."""

    @overdue(Flow("tea", starts=Asked, ends=Poured, deadline=timedelta(hours=1)))
    def tea_late(late: FlowOverdue) -> None:
        """Only counted."""

    begun = datetime(2026, 1, 1, tzinfo=UTC)
    made = {Asked: begun, Poured: begun + timedelta(minutes=minutes)}
    async with TestApp(App(tea_late)) as t:
        for number, order in enumerate(([Asked, Poured], [Poured, Asked])):
            for kind in order:
                id_ = f"{kind.event_type} {number}"
                envelope = Envelope(
                    id_, "/test", kind.event_type, 1, made[kind].isoformat(), correlationid=f"f{number}"
                )
                value = kind(who="Ann").payload()
                await t.running.transport.send([ProducerRecord(kind.event_topic, None, value, write(envelope))])
                await t.settle()
    ((found, point),) = all_points(own)["choreo.flow.duration"]
    assert (found["choreo.flow.end"], point.count, point.sum) == ("tea.poured", 2, 2 * 60.0 * minutes)
    assert values(own, "choreo.flow.overdue", "choreo.flow") == ({("tea",): 2} if minutes > 60 else {})


def test_what_a_watch_found_in_an_attempt_that_was_undone_is_forgotten() -> None:
    """A transaction that could not be committed calls the handler again, which may find the flow ended."""
    marks = [FlowMark("tea", "", 1.0, overdue=True)]

    class Invokes:
        def context(self, unit: Any) -> Context:
            return Context.fake()

        def call_inside(self, unit: Any, context: Context, transaction: Any) -> list[Event]:
            context.flow = marks.pop() if marks else context.flow
            return []

    inside = Inside(cast(Invoker, Invokes()), cast(Unit, None), lambda: None)
    found = [inside.call(None, None) or inside.context.flow for _ in range(2)]
    assert found == [FlowMark("tea", "", 1.0, overdue=True), None]


def test_the_docs_list_every_metric_and_no_other() -> None:
    """As the code makes them."""
    page = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
    told = re.findall(r"^\| `([a-z.]+)` \| (?:counter|gauge|histogram), ", page.read_text(), re.MULTILINE)
    assert sorted(told) == sorted([*HISTOGRAMS, *(name for name, *_ in (*COUNTERS, *GAUGES))])


# ---- off


def test_metrics_that_are_off_put_nothing_in_between(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Store and transport are the very same objects, and the instrument is the one that traces, or nothing."""
    unset_otel(monkeypatch)
    transport = EmbeddedTransport.__new__(EmbeddedTransport)
    settings: dict[str, Any] = {"trace_mode": "parent", "split_after_s": 60.0, "share_tracer": True}
    settings |= {"health_host": "", "health_port": None}
    observing = Observing("kitchen", transport, **settings)
    store: Any = object()
    assert observing.transport("kitchen") is transport
    assert observing.store("kitchen", store) is store
    assert isinstance(observing.instrument("kitchen", alone=True), NoInstrument)


def test_an_app_without_telemetry_imports_none() -> None:
    """A run that nobody watches loads neither OpenTelemetry nor Prometheus' client."""
    program = (
        "import asyncio, sys\n"
        "from tests.tea_app import MODULE\n"
        "exec(MODULE)\n"
        "async def main():\n"
        "    async with app.running(broker='embedded::memory:', create_topics=True, create_schema=True) as running:\n"
        "        await running.publish(Asked(who='Ann'))\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus'))])\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


async def test_gauges_stop_with_the_run(own: InMemoryMetricReader) -> None:
    """While a service runs somebody looks; afterwards no stale level is left."""
    async with TestApp(app):
        for _ in range(200):
            if "choreo.handlers.limit" in all_points(own):
                break
            await asyncio.sleep(0.01)
        assert values(own, "choreo.handlers.limit", "choreo.service") == {("kitchen",): 64}
    assert "choreo.handlers.limit" not in all_points(own)


@pytest.mark.parametrize("how", ["silent", "refuses"])
async def test_levels_are_told_without_a_broker(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Where nobody says where the log ends, lags in records are unknown, and all else is told in time."""
    monkeypatch.setattr("choreo.runtime.levels.ENDS_S_MAX", 0.05)
    async with TestApp(app) as t:
        await t.settle()
        worker = t.running.workers["kitchen"]

        async def ends(partitions: object) -> Mapping[TopicPartition, int]:
            if how == "silent":
                await asyncio.Event().wait()
            raise TransportError("the broker is away")

        monkeypatch.setattr(worker.consumer, "ends", ends)
        monkeypatch.setattr(worker.consumer, "drained", lambda partition: False)
        found = await Gauge(worker).look()
    assert {tuple(level) for level in found.partitions.values()} == {(None, 0.0)}
    assert found.running_max == 64


async def test_a_look_that_fails_leaves_nothing_stale(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug there costs the levels and a warning, and the next look is tried."""
    monkeypatch.setattr("choreo.runtime.levels.LOOK_S", 0.0)
    told: list[Levels | None] = []
    async with TestApp(app) as t:
        gauge = Gauge(t.running.workers["kitchen"])
        looks = iter([LookupError("a bug"), None])
        look = gauge.look

        async def fails_first() -> Levels:
            if (error := next(looks, None)) is not None:
                raise error
            return await look()

        monkeypatch.setattr(gauge, "look", fails_first)
        task = asyncio.create_task(gauge.loop(told.append))
        while len(told) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
    assert told[0] is None
    assert told[1] is not None
    assert warnings_of(caplog) == ["kitchen: how things stand cannot be told"]
