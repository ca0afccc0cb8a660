"""The same loops on choreo: one service, one handler, one follow-on event each."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

from choreo import App, Service
from choreo.core.messages import Limits
from choreo.ports import CommitRequest, CommitResult, IdempotencyStore
from choreo.record import Record
from choreo.runtime import fetching
from choreo.runtime.collector import collecting_less
from scripts.bench.orders import OrderPlaced, ParcelReceived, ParcelSent, PaymentTaken, taken
from scripts.bench.running import RUN_S_MAX, Meter, Result, Run

POLL_S = 0.02
WAIT_S = 0.010
SPLIT_AFTER_S = 7 * 86_400.0
"""Else what was filled in an hour before is traced in the way of old events, at five times the cost."""
INSERT = "INSERT INTO {} VALUES ({}) ON CONFLICT DO NOTHING"


def declare(service: Service, run: Run) -> None:
    """The handler of `run.work`."""
    if run.work == "parcel":

        @service.handler(ParcelSent)
        async def receive(parcel: ParcelSent) -> ParcelReceived:
            return ParcelReceived(number=parcel.number, body=parcel.body)

    elif run.work == "wait":

        @service.handler(OrderPlaced)
        async def ask_bank(order: OrderPlaced) -> PaymentTaken:
            await asyncio.sleep(WAIT_S)
            return PaymentTaken(**taken(order))

    elif run.work == "rows":
        _with_rows(service, run)
    else:

        @service.handler(OrderPlaced)
        async def take_payment(order: OrderPlaced) -> PaymentTaken:
            return PaymentTaken(**taken(order))


def _with_rows(service: Service, run: Run) -> None:
    if run.store.startswith("sqlite"):

        @service.on_start
        def create(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS bench_rows (order_id TEXT PRIMARY KEY, amount TEXT)")

        @service.handler(OrderPlaced)
        def keep(order: OrderPlaced, db: sqlite3.Connection) -> PaymentTaken:
            db.execute(INSERT.format("bench_rows", "?, ?"), (str(order.order_id), str(order.amount)))
            return PaymentTaken(**taken(order))

        return
    from psycopg import AsyncConnection, Connection

    (schema,) = parse_qs(urlsplit(run.store).query)["choreo_schema"]
    table = f"{schema}.{run.group.replace('-', '_')}"  # which is dropped with the schema

    @service.on_start
    def create_table(connection: Connection[Any]) -> None:
        connection.execute(f"CREATE TABLE {table} (order_id uuid PRIMARY KEY, amount numeric)".encode())

    @service.handler(OrderPlaced)
    async def insert(order: OrderPlaced, connection: AsyncConnection[Any]) -> PaymentTaken:
        await connection.execute(INSERT.format(table, "%s, %s").encode(), (order.order_id, order.amount))
        return PaymentTaken(**taken(order))


async def choreo_loop(run: Run) -> Result:
    """One run in this process.

    Raises:
        SystemExit: Not all events were handled in time, or not each had its emit.
    """
    service, meter = Service(run.group), Meter()
    declare(service, run)
    app = App(service, topics={"orders": run.topic, "payments": run.out})
    settings: dict[str, Any] = {"limits": limits(run), "create_topics": True, "create_schema": True}
    settings["trace_split_after_s"] = SPLIT_AFTER_S
    with _metered(meter, run.client), _fetching(run.batch):
        async with (
            collecting_less(),  # as `choreo run` does
            app.running(broker=f"{run.client}://{run.servers}", store=run.store, **settings) as running,
        ):
            working = running.workers[service.name]
            committed = _count(working.ports.store, run)
            counts, until_s = working.counts, time.monotonic() + RUN_S_MAX
            while counts["handled"] < run.events and (time.monotonic() < until_s or run.events > 10**9):  # noqa: ASYNC110  # nobody tells it
                await asyncio.sleep(POLL_S)
            if counts["handled"] != run.events or counts["emitted"] != run.events:
                raise SystemExit(f"{run.events} events were to be handled within {RUN_S_MAX:g} s: {dict(counts)}")
            if run.telemetry:
                await asyncio.to_thread(_send_spans)
            return meter.stop(committed[0])


def _send_spans() -> None:
    """All that were recorded; closing would do that too, and much else that no other loop is measured at."""
    from choreo.telemetry import pipeline

    assert pipeline._shared is not None
    for processor in pipeline._shared.processors:
        processor.force_flush()


def limits(run: Run) -> Limits:
    """Choreo's own, but for what the run is about."""
    given: dict[str, int] = {}
    if run.concurrency:
        given["concurrency"] = run.concurrency
    if run.batch:
        given |= {"flush_units": run.batch, "transact_units": run.batch, "unfinished_max": run.batch}
    return Limits(**given)


@contextmanager
def _fetching(batch: int) -> Iterator[None]:
    """Records come so few at a time, as they do when few are sent."""
    with patch.object(fetching, "FETCH_RECORDS_MAX", batch or fetching.FETCH_RECORDS_MAX):
        yield


def _count(store: IdempotencyStore, run: Run) -> list[int]:
    """Transactions from now on. On aiokafka a changelog has one for each input partition."""
    found, commit = [0], store.commit
    each_partition = run.store == "changelog" and run.client == "kafka"

    async def counted(request: CommitRequest) -> CommitResult:
        found[0] += len(request.offsets) if each_partition else 1
        return await commit(request)

    store.commit = counted  # type: ignore[method-assign]
    return found


def _consumer(client: str) -> type[Any]:
    if client == "kafka":
        from choreo.transports.kafka.consumer import KafkaConsumer

        return KafkaConsumer
    from choreo.transports.confluent.consumer import ConfluentConsumer

    return ConfluentConsumer


@contextmanager
def _metered(meter: Meter, client: str) -> Iterator[None]:
    """The meter starts when the first records have been fetched, as it does in the loops by hand."""
    consumer = _consumer(client)
    fetch = consumer.fetch

    async def fetched(self: Any, *, records_max: int, wait_s: float) -> Sequence[Record]:
        records: Sequence[Record] = await fetch(self, records_max=records_max, wait_s=wait_s)
        if records:
            meter.start()
        return records

    with patch.object(consumer, "fetch", fetched):
        yield
