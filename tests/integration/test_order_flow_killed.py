"""The order flow as four processes, each killed three times: nothing lost, nothing twice, nothing overtaken."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from choreo.envelope import read as read_envelope
from choreo.publisher import Publisher
from choreo.runtime.clock import SystemClock
from choreo.telemetry.setup import instrument_from_environment
from handlers.order_fulfilment.app import app
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.ledger import reconcile
from handlers.order_fulfilment.orders import EXPECTED, read, shipped_lines
from tests.integration.killing import PARTITIONS, SERVICES, TARGET, Fleet, kill_at_random, out_of_order, scattered

KILLS = 3
PORTION, PAUSE_S = 40, 1.0
"""While somebody is still to be killed. What is claimed when a process dies is run one by one afterwards, slowly."""


async def publish(fleet: Fleet, orders: list[OrderPlaced], hurry: asyncio.Event) -> None:
    """Publish bit by bit, so that there is work whenever somebody is killed; the rest at once when told to."""
    async with fleet.transport() as transport:
        instrument = instrument_from_environment(app.name, system=transport.system)
        publisher = Publisher(transport, instrument, SystemClock(), topic=app.topic, source=f"/{app.name}")
        for at in range(0, len(orders), PORTION):
            await publisher.publish_many([(order, None) for order in orders[at : at + PORTION]])
            if not hurry.is_set():
                await asyncio.sleep(PAUSE_S)
        instrument.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedded", "kafka"])
async def test_every_service_killed_three_times(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every order ends, every effect is there once, causes stand before effects, and SIGTERM drains."""
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    broker = f"embedded:{tmp_path}/flow.db" if kind == "embedded" else f"kafka://{request.getfixturevalue('kafka')}"
    monkeypatch.setattr(app, "_prefix", f"killed-{seed}.")  # a Kafka that was given may know the topics
    orders = [content for _, content in read(shipped_lines()) if isinstance(content, OrderPlaced)]
    assert len(orders) == EXPECTED.published
    fleet, hurry, begun_s = Fleet(tmp_path, broker), asyncio.Event(), time.monotonic()
    applied = fleet.run("topics", "apply", TARGET, "--partitions", str(PARTITIONS))
    assert applied.returncode == 0, applied.stderr
    try:
        for service in SERVICES:
            fleet.start(service)
        publishing = asyncio.create_task(publish(fleet, orders, hurry))
        at_work = await kill_at_random(fleet, random.Random(seed), times=KILLS, stop=hurry)
        killed_s = time.monotonic()
        await publishing
        await fleet.at_rest()
        rested_s = time.monotonic()
        codes = fleet.drain()
    finally:
        fleet.end()
    print(f"{kind}: killed {killed_s - begun_s:.1f} s, at rest {rested_s - begun_s:.1f} s, at work {dict(at_work)}")
    assert codes == dict.fromkeys(SERVICES, 0), {service: fleet.logs(service) for service in SERVICES}

    books = reconcile(fleet.ledgers(), orders={str(order.order_id) for order in orders}, stock=fleet.stock())
    assert books.problems == {}
    assert books.outcomes == {
        "shipped": EXPECTED.shipped,
        "cancelled": EXPECTED.cancelled,
        "declined": sum(EXPECTED.declined.values()),
        "rejected": sum(EXPECTED.rejected.values()),
    }
    # Attempts are a table without a key too: none was lost and none was made twice, and each order's are in order.
    attempts = fleet.query("shipping", "SELECT order_id, attempt FROM shipping_attempt ORDER BY rowid")
    made: dict[object, list[object]] = {}
    for order_id, attempt in attempts:
        made.setdefault(order_id, []).append(attempt)
    assert [each for each in made.values() if each != list(range(1, len(each) + 1))] == []

    records = await fleet.records()
    assert [record for record in records if record.topic.endswith(".dlq")] == []
    assert scattered(records) == []
    assert out_of_order(records) == []
    events = {(found := read_envelope(record.headers, record.value or b"")[0]).id: found.type for record in records}
    assert Counter(events.values()) == {"order.placed": EXPECTED.published, **EXPECTED.emitted}
    if kind == "embedded":
        assert len(events) == len(records), "the embedded log holds an event twice"
    assert all(at_work[service] == KILLS for service in SERVICES), "a service was killed when it had nothing to do"
