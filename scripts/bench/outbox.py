"""How fast one relay empties an outbox on Kafka and PostgreSQL, and how long an event waits in one that is empty."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any
from uuid import uuid4

import psycopg

from choreo.outbox import Outbox
from scripts.bench.stage import Stage
from tests.integration.outbox_stage import Counted, fresh_schema, log_at

TITLE = "Outbox"
ROWS = 20_000
ACCOUNTS = 1000
SINGLES = 100


def fill(database: str, outbox: Outbox, rows: int) -> float:
    """Add so many events in transactions of 100; returns how many a second."""
    began_s = time.perf_counter()
    with psycopg.connect(database) as connection:
        for number in range(rows):
            outbox.add(connection, Counted(account=f"account-{number % ACCOUNTS}", number=number))
            if number % 100 == 99:
                connection.commit()
    return rows / (time.perf_counter() - began_s)


async def emptied(connection: psycopg.AsyncConnection[tuple[int]], schema: str) -> None:
    """Return when nothing is left."""
    while await (await connection.execute(f"SELECT 1 FROM {schema}.choreo_outbox LIMIT 1".encode())).fetchone():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def relayed(kafka: str, database: str, schema: str, rows: int) -> dict[str, float]:
    """Events a second, and the median time from commit until the row is gone."""
    topic = f"entries-{uuid4().hex[:8]}"
    outbox = Outbox("bench", schema=schema, topics={"entries": topic})
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(outbox.ddl().encode())
    added = fill(database, outbox, rows)
    waits = []
    async with (
        log_at(f"kafka://{kafka}", topic),
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
    ):
        began_s = time.perf_counter()
        async with outbox.relaying(database, f"kafka://{kafka}"):
            await emptied(connection, schema)
            relayed = rows / (time.perf_counter() - began_s)
            for number in range(SINGLES):
                async with connection.transaction():
                    await outbox.add(connection, Counted(account="ann", number=number))
                committed_s = time.perf_counter()
                await emptied(connection, schema)
                waits.append(time.perf_counter() - committed_s)
    return {"rows": rows, "added_per_s": added, "relayed_per_s": relayed, "wait_ms": 1000 * median(waits)}


def measure(stage: Stage) -> dict[str, Any]:
    """Once."""
    with fresh_schema(stage.postgres) as schema:
        return asyncio.run(relayed(stage.kafka, stage.postgres, schema, stage.scaled(ROWS, 1_000)))


def lines(found: dict[str, Any]) -> list[str]:
    """In words."""
    return [
        f"{found['added_per_s']:,.0f} events/s added by one connection, {found['relayed_per_s']:,.0f} events/s "
        f"relayed, {found['wait_ms']:.1f} ms from commit until it is on the log and gone (median of {SINGLES})."
    ]
