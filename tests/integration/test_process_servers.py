"""The approval of handlers/ and its watch, unchanged, on Kafka with PostgreSQL; one of two members leaves."""

import asyncio
import contextlib
from collections import Counter
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from choreo import envelope as cloudevents
from choreo.app import App
from choreo.publisher import Publisher
from choreo.runtime.clock import SystemClock
from choreo.telemetry.silent import NoInstrument
from choreo.transports.kafka import KafkaTransport
from handlers.approval.app import chase
from handlers.approval.events import ApprovalEnded, ExpenseApproved, ExpenseSubmitted, SendLetter
from handlers.approval.process import Approval

REQUESTS = 60
HASTEN = 86_400.0 * 2
"""A day is half a second: nobody decides about every third expense, which expires after eight of them."""


@pytest.fixture
def approval(monkeypatch: pytest.MonkeyPatch) -> App:
    """The process and its watch, on topics of their own."""
    app = App(Approval, chase)
    monkeypatch.setattr(app, "_prefix", f"approval-{uuid4().hex[:8]}.")
    for process in app.processes.values():
        process.hasten(HASTEN)
    return app


@pytest.mark.slow
async def test_a_process_ends_on_kafka_and_postgresql(kafka: str, postgres: str, approval: App) -> None:
    """Every instance once, as decided; finance hears once of each that the watch was to tell of; no timer is left."""
    schema = f"process_{uuid4().hex[:10]}"
    store = f"{postgres}{'&' if '?' in postgres else '?'}choreo_schema={schema}"
    options: dict[str, Any] = {
        "broker": f"kafka://{kafka}",
        "store": store,
        "create_topics": True,
        "create_schema": True,
    }
    transport = KafkaTransport(kafka)
    await transport.open()
    publisher = Publisher(transport, NoInstrument(), SystemClock(), topic=approval.topic, source="/test")
    try:
        async with approval.running(**options) as first:
            async with approval.running(**options):
                for number in range(REQUESTS):
                    id_ = f"r{number}"
                    await publisher.publish(
                        ExpenseSubmitted(request_id=id_, employee="e", manager="m", cents=5_000), id=f"s{number}"
                    )
                    if number % 3:
                        await publisher.publish(ExpenseApproved(request_id=id_, by="m"), id=f"a{number}")
                await asyncio.sleep(1.0)
            assert first.workers["approval"].failure is None
            ended = await _ended(transport, approval)
            late = await _late(postgres, schema)
            told = await _told(transport, approval)
        assert ended == {f"r{n}": Counter({"approved" if n % 3 else "expired": 1}) for n in range(REQUESTS)}
        assert told == Counter(late)
        assert late, "some of those that expire are told before"
    finally:
        await transport.close()
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


async def _late(postgres: str, schema: str) -> list[str]:
    """Requests that ended after they were told, once no timer is set and every instance has ended."""
    rest = f"SELECT (SELECT COUNT(*) FROM {schema}.timer), COUNT(*) FROM {schema}.instance WHERE NOT ended"
    late = f"SELECT convert_from(key, 'UTF8') FROM {schema}.instance WHERE state = 'ended-late'"
    async with asyncio.timeout(30):
        while True:
            with psycopg.connect(postgres) as connection:
                if connection.execute(rest).fetchone() == (0, 0):
                    return [flow.replace("s", "r") for (flow,) in connection.execute(late)]
            await asyncio.sleep(0.2)


async def _told(transport: KafkaTransport, app: App) -> Counter[str]:
    """How often finance was told of each request, by different letters of the watch."""
    letters: dict[str, str] = {}
    for record in await transport.scan([app.topic("letters")], since_ms=0):
        envelope, _ = cloudevents.read(record.headers, record.value or b"")
        if envelope.source == "/chase":
            letters[envelope.id] = SendLetter.from_payload(record.value or b"").request_id
    return Counter(letters.values())


async def _ended(transport: KafkaTransport, app: App) -> dict[str, Counter[str]]:
    """Outcomes by request, each event id once, when all have ended or 60 s have gone by."""
    found: dict[str, Counter[str]] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            while len(found) < REQUESTS:
                await asyncio.sleep(1.0)
                ids, found = set(), {}
                for record in await transport.scan([app.topic("approvals")], since_ms=0):
                    envelope, _ = cloudevents.read(record.headers, record.value or b"")
                    if envelope.id not in ids:
                        ended = ApprovalEnded.from_payload(record.value or b"")
                        found.setdefault(ended.request_id, Counter())[ended.outcome] += 1
                    ids.add(envelope.id)
    return found
