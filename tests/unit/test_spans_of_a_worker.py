"""What a worker sends where a unit's span is silent, and where one only looks as if it were."""

import asyncio
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from choreo import App
from choreo.ports import Instrument
from choreo.record import Header, Record, TopicPartition
from choreo.runtime.emitting import Emitter
from choreo.runtime.invoking import Invoker
from choreo.runtime.worker import Ports, Worker
from choreo.telemetry.quick import Quick
from choreo.telemetry.silent import NoInstrument
from choreo.telemetry.spans import OtelInstrument
from choreo.testing.clock import VirtualClock
from tests.integration.tracing import TRACE
from tests.unit.test_cost import OneTopic, records, service

EVENTS = 4
SENT = [f"00-{TRACE}-{number + 1:016x}" for number in range(EVENTS)]


class Sending(OneTopic):
    """One that keeps the trace context of what is emitted."""

    def __init__(self, given: list[Record]) -> None:
        super().__init__(given)
        self.contexts: list[dict[str, bytes | None]] = []

    async def commit(self, request: Any) -> Any:
        emits = [emit for each in getattr(request, "finished", ()) for emit in each.emits]
        self.contexts += [{k: v for k, v in emit.headers if k in ("traceparent", "tracestate")} for emit in emits]
        return await super().commit(request)


async def sent(instrument: Instrument, given: list[Record]) -> list[dict[str, bytes | None]]:
    """The trace contexts of what a worker emits for these records."""
    topic, app = Sending(given), App(service)
    ports = Ports(cast(Any, topic), cast(Any, topic), instrument, VirtualClock())
    emitter = Emitter(service, app.topic)
    worker = Worker(service, ["orders"], ports, app.router(service.name), emitter, Invoker({}, (), ports.clock))
    await worker.start()
    try:
        await worker.holder.assigned([TopicPartition("orders", number) for number in range(4)])
        async with asyncio.timeout(10):
            while worker.counts["handled"] < EVENTS:  # noqa: ASYNC110  # nobody tells it
                await asyncio.sleep(0)
    finally:
        await worker.stop()
    assert worker.counts["emitted"] == worker.counts["handled"] == EVENTS
    return topic.contexts


def instrument(recorded: list[Any], provider: TracerProvider | None = None) -> Instrument:
    """One that records in the quick way, into `recorded`."""
    made = provider or TracerProvider(shutdown_on_exit=False)
    quick = {"quick": lambda always: Quick(always, made, [recorded.append])}
    return OtelInstrument("payments", tracer_provider=made, system="kafka", **cast(Any, quick))


def coming(sampled: int, *more: Header, without: str = "") -> list[Record]:
    """Orders with further headers."""
    return [
        each._replace(headers=(*(header for header in each.headers if header[0] != without), *more))
        for each in records(sampled)[:EVENTS]
    ]


@pytest.mark.parametrize("state", [(), (("tracestate", b"vendor=1"),)])
@pytest.mark.parametrize("sampled", [0, 2])
async def test_what_is_not_sampled_goes_on_as_it_came(sampled: int, state: tuple[Header, ...]) -> None:
    """As it does where nobody traces: nothing is recorded, and the next service is told the same."""
    recorded: list[Any] = []
    found = await sent(instrument(recorded), coming(sampled, *state))
    assert found == [{"traceparent": f"{each}-0{sampled}".encode(), **dict(state)} for each in SENT]
    assert found == await sent(NoInstrument(), coming(sampled, *state))
    assert recorded == []


async def test_what_is_sampled_names_its_send_span() -> None:
    """In the trace that it came with."""
    recorded: list[Any] = []
    found = await sent(instrument(recorded), coming(1))
    ids = {str(each["traceparent"], "ascii")[36:52] for each in found if each["traceparent"]}
    assert len(ids) == EVENTS
    assert {bytes.fromhex(each) in b"".join(unit.encoded() for unit in recorded) for each in ids} == {True}
    assert [unit.count for unit in recorded] == [2] * EVENTS


async def test_what_a_sampler_refuses_begins_a_trace_that_is_not_sampled() -> None:
    """One decision for the whole flow: the next service is told of it, though the event came with none."""
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    found = await sent(instrument([], provider), coming(1, without="traceparent"))
    assert [int(str(each["traceparent"], "ascii")[53:], 16) & 1 for each in found if each["traceparent"]] == [
        0
    ] * EVENTS
