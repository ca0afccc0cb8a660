"""One service of a FastStream estate is taken over by choreo while orders come in, and given back, by the page."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from choreo import App, Context
from choreo.opening import open_transport
from choreo.ports import TopicSpec
from choreo.testing.otlp import OtlpReceiver
from choreo.testing.otlp_reading import ReceivedSpan
from tests.integration.faststream_estate import WORK_S, Estate, out_of_order
from tests.integration.tracing import unset_otel

PAGE = (Path(__file__).parents[2] / "docs" / "adopting.md").read_text()
WAIT_S = 30.0
PARTITIONS = 2
ORDERS = [f"o-{number}" for number in range(6)]
ROUNDS = 6
"""Lines of each order in each of three stretches: before the takeover, under choreo, after it was given back."""


def adopted(estate: Estate) -> App:
    """Inventory as the page has it, on the estate's topics and in its group."""
    found = re.search(r"^<!-- inventory.py -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    code = found[1]
    for name in (estate.orders, estate.stock, estate.inventory_group):
        usual = name.rpartition("-")[0]
        assert f'"{usual}"' in code
        code = code.replace(f'"{usual}"', f'"{name}"')
    module = dict[str, Any]()
    exec(compile(code, "inventory.py", "exec", dont_inherit=True), module)

    @asynccontextmanager
    async def slowly(_: Context) -> AsyncIterator[None]:
        await asyncio.sleep(WORK_S)
        yield

    assert isinstance(module["app"], App)
    module["app"].around = (slowly,)
    return module["app"]


async def committed(admin: AIOKafkaAdminClient, group: str) -> dict[int, int]:
    """Next offset to be read of each partition."""
    found = await admin.list_consumer_group_offsets(group)
    return {where.partition: each.offset for where, each in found.items()}


async def reach(count: Callable[[], int], wanted: int) -> None:
    """Wait until so many are there."""
    async with asyncio.timeout(WAIT_S):
        while count() < wanted:  # noqa: ASYNC110  # a count, no event
            await asyncio.sleep(0.02)


@asynccontextmanager
async def estate_on(kafka: str, collector: str) -> AsyncIterator[tuple[Estate, AIOKafkaAdminClient]]:
    """Topics and groups of its own, since a Kafka may be shared."""
    unique = uuid4().hex[:12]
    orders, stock = f"orders-v0-{unique}", f"stock-v0-{unique}"
    estate = Estate(kafka, collector, orders, stock, f"inventory-v0-{unique}", f"shipping-v0-{unique}")
    transport = open_transport(f"kafka://{kafka}")
    await transport.open()
    await transport.create_topics([TopicSpec(name, PARTITIONS) for name in (orders, stock)])
    await transport.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        yield estate, admin
    finally:
        await admin.close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> OtlpReceiver:
    """To which choreo and the estate export."""
    found = OtlpReceiver()
    unset_otel(monkeypatch)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    return found


async def test_a_service_of_a_faststream_estate_is_taken_over_and_given_back(
    kafka: str, tmp_path: Path, receiver: OtlpReceiver
) -> None:
    """Stopped and started in the midst of orders: each line once, in order, in one trace through both."""
    store = f"sqlite:{tmp_path / 'inventory.db'}"
    with receiver:
        async with estate_on(kafka, receiver.endpoint) as (estate, admin), estate.storefront() as publish:
            ours = Counter[str]()  # choreo's, once it runs

            def reserved() -> int:
                return len(estate.reserved) + ours["handled"]

            async def come_in(till: int) -> None:
                """Lines come in; so many are reserved then, and the rest not yet."""
                for _ in range(ROUNDS):
                    [_ async for _ in publish(ORDERS)]
                await reach(reserved, till)

            async def handed_over() -> None:
                """The group's offsets say what was reserved, and no line more or less."""
                assert sum((await committed(admin, estate.inventory_group)).values()) == reserved()

            stretch = ROUNDS * len(ORDERS)
            async with estate.shipping():
                async with estate.inventory():
                    await come_in(till=stretch // 2)
                await handed_over()
                app = adopted(estate)
                async with app.running(broker=f"kafka://{kafka}", store=store, create_topics=True) as running:
                    ours = running.workers["inventory"].counts
                    await come_in(till=3 * stretch // 2)
                await handed_over()
                before = len(estate.reserved)
                async with estate.inventory():
                    await come_in(till=3 * stretch)
                    await reach(lambda: len(estate.shipped), 3 * stretch)
                await handed_over()
        assert ours["handled"] >= stretch // 2
        assert ours["duplicates"] == ours["dead_letters"] == 0
        assert min(before, len(estate.reserved) - before) >= stretch // 2
        assert reserved() == len(estate.shipped) == len(estate.sent) == 3 * stretch
        assert Counter(each.by for each in estate.shipped)["choreo"] == ours["handled"]
        assert out_of_order(estate.shipped) == []
        await check_traces(receiver, estate, ours["handled"])


async def check_traces(receiver: OtlpReceiver, estate: Estate, handled: int) -> None:
    """Every line is one trace of three services; under choreo, shipping is the child of what inventory sent."""
    services = {"storefront", "inventory", "shipping"}
    wanted = set(estate.traces.values())
    assert len(wanted) == len(estate.sent)
    traces: dict[str, list[ReceivedSpan]] = {}

    def complete(spans: Sequence[ReceivedSpan]) -> bool:
        traces.clear()
        for span in spans:
            traces.setdefault(span.trace_id, []).append(span)
        return all({span.service for span in traces.get(each, ())} == services for each in wanted)

    await receiver.wait_for(complete)
    assert set(traces) == wanted
    ways = Counter(tuple(way(some)) for some in traces.values())
    ours = ("storefront create", "inventory process", "inventory send", "shipping process")
    theirs = ("storefront create", "inventory process", "inventory create", "shipping process")
    assert ways == {ours: handled, theirs: len(wanted) - handled}


def way(trace: Sequence[ReceivedSpan]) -> list[str]:
    """From the root to where shipping handles it: service and operation of each span."""
    spans = {span.span_id: span for span in trace}
    (span,) = [each for each in trace if each.service == "shipping" and "process" in each.name.split()]
    found = list[str]()
    at: ReceivedSpan | None = span
    while at is not None:
        (operation,) = {"process", "send", "create"} & set(at.name.split())
        found.append(f"{at.service} {operation}")
        at = spans[at.parent_id] if at.parent_id is not None else None
    return found[::-1]
