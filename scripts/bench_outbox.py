"""How fast one relay empties an outbox on Kafka and PostgreSQL, and how long an event waits in one that is empty.

    python scripts/bench_outbox.py [--rows 20000] [--json]

The servers are real, and found or started as the tests find them. Figures are those of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psycopg  # noqa: E402

from choreo.outbox import Outbox  # noqa: E402
from scripts.bench_stores import Folders  # noqa: E402
from tests.integration.outbox_stage import Counted, fresh_schema, log_at  # noqa: E402
from tests.kafka_server import kafka_bootstrap_servers  # noqa: E402
from tests.postgres_server import postgres_url  # noqa: E402

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


async def measure(kafka: str, database: str, schema: str, rows: int) -> dict[str, float]:
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


def main() -> None:
    """Start what is needed, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = Folders(Path(name))
        servers = contextmanager(kafka_bootstrap_servers), contextmanager(postgres_url)
        with servers[0](folders) as kafka, servers[1](folders) as database, fresh_schema(database) as schema:  # type: ignore[arg-type]
            found = asyncio.run(measure(kafka, database, schema, given.rows))
    if given.json:
        print(json.dumps(found))
    else:
        print(
            f"{found['added_per_s']:,.0f} events/s added by one connection, {found['relayed_per_s']:,.0f} events/s "
            f"relayed, {found['wait_ms']:.1f} ms from commit until it is on the log and gone (median of {SINGLES})"
        )


if __name__ == "__main__":
    main()
