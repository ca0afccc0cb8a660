"""handlers/web_orders as a web server: killed while orders come in, and traced from the request on."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from choreo.envelope import read as read_envelope
from choreo.ports import Transport
from choreo.record import Record
from choreo.testing.otlp import OtlpReceiver, tree
from deploy.kafka.node import free_ports
from handlers.order_fulfilment.app import app as services
from handlers.order_fulfilment.events import OrderPlaced
from tests.integration.outbox_stage import Process, fresh_database, log_at, logged
from tests.integration.test_order_flow_trace import DECLINED, send
from tests.integration.tracing import unset_otel

KEYS = 60
ORDER = {
    "customer": {"id": "c-1", "name": "Ann", "email": "ann@example.org"},
    "lines": [{"sku": "BK-1002", "quantity": 1}],
    "total": {"amount": "12.50", "currency": "EUR"},
    "payment_token": "tok_declined_expired_card",
    "region": "domestic",
}


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """A database with the application's tables."""
    with fresh_database(postgres) as url:
        for _ in range(2):  # as each release does
            command = [sys.executable, "-m", "handlers.web_orders.tables"]
            subprocess.run(command, env={**os.environ, "WEB_ORDERS_DATABASE": url}, check=True, timeout=60)
        yield url


@contextmanager
def web_server(folder: Path, database: str, broker: str, **environment: str) -> Iterator[tuple[Process, str]]:
    """The application under uvicorn with a relay in its process; and where it listens."""
    (port,) = free_ports(1)
    settings = {"WEB_ORDERS_DATABASE": database, "WEB_ORDERS_RELAY": "1"}
    settings |= {"CHOREO_BROKER": broker, **environment}
    arguments = ("uvicorn", "handlers.web_orders.main:app", "--port", str(port))
    server = Process(folder, "web", *arguments, environment=settings)
    server.start()
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.close()


async def place(client: httpx.AsyncClient, key: str, order: dict[str, Any]) -> httpx.Response:
    """As a client does that wants its order taken: again with the same key until there is an answer."""
    while True:
        try:
            answer = await client.post("/orders", json=order, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            continue
        return answer


async def orders_on(log: Transport, topic: str, *, count: int, within_s: float = 60.0) -> Sequence[OrderPlaced]:
    """What the topic has once there are so many orders, each under one id."""
    until_s, found = time.monotonic() + within_s, list[Record]()
    while len({each.key for each in found}) < count:
        assert time.monotonic() < until_s, f"{len(found)} records"
        await asyncio.sleep(0.2)
        found = await logged(log, topic)
    assert len({read_envelope(each.headers, each.value or b"")[0].id for each in found}) == count
    return [OrderPlaced.from_payload(each.value or b"") for each in found]


async def test_key_is_one_order_however_often_it_is_asked_for(kafka: str, database: str, tmp_path: Path) -> None:
    """Every request twice at once, and the server killed in the midst of them."""
    broker = f"kafka://{kafka}"
    keys = {f"key-{number}": ORDER | {"payment_token": f"tok_{number}"} for number in range(KEYS)}
    prefix = f"web-{uuid4().hex[:8]}."
    async with log_at(broker, f"{prefix}orders") as log:
        with web_server(tmp_path, database, broker, CHOREO_TOPIC_PREFIX=prefix) as (server, url):

            async def kill() -> None:
                await asyncio.to_thread(server.said, "startup complete")
                await asyncio.sleep(random.uniform(0.05, 0.3))
                await asyncio.to_thread(server.kill)
                server.start()

            limits = httpx.Limits(max_connections=8)
            async with httpx.AsyncClient(base_url=url, timeout=20.0, limits=limits) as client:
                killing = asyncio.create_task(kill())
                twice = [(key, order) for key, order in keys.items() for _ in range(2)]
                answers = await asyncio.gather(*(place(client, *each) for each in twice))
                await killing
                again = await asyncio.gather(*(place(client, *each) for each in keys.items()))
                other = await place(client, "key-1", ORDER)
                assert (other.status_code, other.json()["detail"][:4]) == (422, "this")
                assert (await client.post("/orders", json=ORDER)).status_code == 422
            assert {each.status_code for each in (*answers, *again)} == {201}
            bodies = [each.text for each in answers]
            assert bodies[::2] == bodies[1::2] == [each.text for each in again]
            assert len(set(bodies)) == KEYS
            found = await orders_on(log, f"{prefix}orders", count=KEYS)
    placed = {str(each.order_id): each.payment_token for each in found}
    assert placed == {
        each.json()["order_id"]: order["payment_token"] for each, order in zip(again, keys.values(), strict=True)
    }
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT id::text, data->>'payment_token' FROM web_order").fetchall()
        left = connection.execute("SELECT count(*) FROM choreo_outbox").fetchone()
    assert dict(rows) == placed
    assert left == (0,)
    assert Counter(each.json()["correlation_id"] for each in again).keys() == placed.keys()


async def test_order_is_traced_from_the_request_on(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trace: the request, the relay's send below it, and every service below that."""
    unset_otel(monkeypatch)
    monkeypatch.chdir(tmp_path)
    broker = f"embedded:{tmp_path}/flow.db"
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        async with services.running(broker=broker, create_topics=True):
            with web_server(tmp_path, database, broker, **settings) as (server, url):
                await asyncio.to_thread(server.said, "startup complete")
                async with httpx.AsyncClient(base_url=url) as client:
                    probes = [(await client.get(path)).status_code for path in ("/livez", "/readyz")]
                    assert probes == [200, 200]  # and no spans
                    assert (await place(client, "key-1", ORDER)).status_code == 201
                await receiver.wait_for(11, timeout_s=20.0)
                await asyncio.to_thread(server.stop)  # uvicorn drains, and then ends by the signal it was sent
                assert server.has_said("shutdown complete")
        spans = receiver.spans()
    _, name, kind, caused = DECLINED
    sent = send("web-orders", "orders", *caused)
    assert (name, kind) == (sent[1], sent[2])
    assert tree(spans) == [("web-orders", "POST /orders", "SERVER", [sent])]
    assert len({span.trace_id for span in spans}) == 1
