"""Applications and relays killed at random under load: each committed event is published, no other one, in order.

`make outbox-chaos` runs it for longer (OUTBOX_CHAOS_S).
"""

import asyncio
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from choreo.envelope import read as read_envelope
from choreo.outbox import Outbox
from choreo.record import Record
from tests.integration.outbox_stage import Counted, Process, fresh_schema, log_at, logged, relay_process
from tests.integration.outbox_writer import ACCOUNTS, work

CHAOS_S = float(os.environ.get("OUTBOX_CHAOS_S", "8"))
EMPTIED_S_MAX = 90.0


@pytest.fixture
def schema(postgres: str) -> Iterator[str]:
    """The application's tables, and the outbox."""
    with fresh_schema(postgres) as name, psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(Outbox("bank", schema=name).ddl().encode())
        connection.execute(f"CREATE TABLE {name}.account (name text PRIMARY KEY, number bigint NOT NULL)".encode())
        connection.execute(f"CREATE TABLE {name}.entry (account text, number bigint, attempt text)".encode())
        for account in ACCOUNTS:
            connection.execute(f"INSERT INTO {name}.account VALUES (%s, 0)".encode(), (account,))
        yield name


def published(records: Sequence[Record]) -> tuple[dict[str, list[Counted]], int]:
    """Events by account in the log's order, as a service sees them that drops what it knows by id; and how many."""
    seen, found, dropped = set[str](), defaultdict[str, list[Counted]](list), 0
    for record in records:
        id_ = read_envelope(record.headers, record.value or b"")[0].id
        if id_ in seen:
            dropped += 1
            continue
        seen.add(id_)
        event = Counted.from_payload(record.value or b"")
        found[event.account].append(event)
    return found, dropped


async def never_killed(postgres: str, schema: str, topic: str, folder: Path) -> None:
    """The load of an application that lives."""
    outbox = Outbox("bank", schema=schema, topics={"entries": topic})
    async for _ in work(postgres, outbox, folder / "undone-load"):
        pass


def torment(process: Process, chance: random.Random, until_s: float, kills: Counter[str]) -> None:
    """Kill it once it is at work, and start it again."""
    process.start()
    while time.monotonic() < until_s:
        process.said("ready")
        time.sleep(chance.uniform(0.0, 1.5))
        kills["leading relay" if process.has_said("relaying") else process.log.stem.partition("-")[0]] += 1
        process.kill()
        process.start()


async def test_each_committed_event_is_published_in_order(
    kafka: str, postgres: str, schema: str, tmp_path: Path
) -> None:
    """Two applications and two relays, any of them killed at any moment and started again."""
    topic, seed = f"entries-{uuid4().hex[:8]}", random.randrange(10**6)
    kills = Counter[str]()
    arguments = ("--database", postgres, "--broker", f"kafka://{kafka}", "--schema", schema)
    relays = [relay_process(tmp_path, f"relay-{number}", *arguments) for number in range(2)]
    writer = ("tests.integration.outbox_writer", postgres, schema, topic, str(tmp_path))
    writers = [Process(tmp_path, f"writer-{number}", *writer) for number in range(2)]
    async with log_at(f"kafka://{kafka}", topic) as log:
        try:
            until_s = time.monotonic() + CHAOS_S
            pairs = [(each, random.Random(seed + index)) for index, each in enumerate((*relays, *writers))]
            load = [asyncio.create_task(never_killed(postgres, schema, topic, tmp_path)) for _ in range(4)]
            await asyncio.gather(*(asyncio.to_thread(torment, *pair, until_s, kills) for pair in pairs))
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
            for each in writers:
                each.kill()
            await asyncio.to_thread(emptied, postgres, schema)
        finally:
            for each in (*writers, *relays):
                each.close()
        found, dropped = published(await logged(log, topic))
    with psycopg.connect(postgres) as connection:
        query = f"SELECT account, number, attempt FROM {schema}.entry ORDER BY account, number"
        committed = connection.execute(query.encode()).fetchall()
    undone = noted(tmp_path)
    summary = (
        f"seed {seed}: {len(committed)} committed, {len(undone)} rolled back, {dropped} duplicates, {dict(kills)}"
    )
    print(summary)
    assert len(committed) > 20, summary
    assert undone, summary
    assert kills["leading relay"], summary
    assert not undone & {event.attempt for events in found.values() for event in events}, summary
    assert [
        (each.account, each.number, each.attempt) for account in sorted(found) for each in found[account]
    ] == committed, summary


def noted(folder: Path) -> set[str]:
    """What the applications were about to roll back."""
    return {line for file in folder.glob("undone-*") for line in file.read_text().split()}


def emptied(database: str, schema: str) -> None:
    """Return when the outbox is empty: whoever is left has seen to it."""
    until_s = time.monotonic() + EMPTIED_S_MAX
    with psycopg.connect(database, autocommit=True) as connection:
        while connection.execute(f"SELECT 1 FROM {schema}.choreo_outbox LIMIT 1".encode()).fetchone():
            assert time.monotonic() < until_s, "the outbox is not emptied"
            time.sleep(0.1)
