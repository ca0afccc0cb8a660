"""Stores of many keys, made quickly: one key is claimed and committed, and its row copied under other digests.

So what is measured on them holds whatever the store writes, and no layout is written down a second time here.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from choreo.ports import ClaimRequest, CommitRequest, Finished, IdempotencyStore, Lease, TopicSpec
from choreo.record import ProducerRecord, TopicPartition
from choreo.runtime.clock import SystemClock

GROUP, HANDLER, FINGERPRINT = "inventory", "inventory.reserve", b"12345678"
PARTITION = TopicPartition("orders", 0)
BASE_MS = 1_700_000_000_000 // 3_600_000 * 3_600_000
FIRST = b"the first of all"
FLOWS_APART = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""So that ids of flows, which are random, are scattered too."""
Say = Callable[[str], None]


async def nothing() -> None:
    """No tidying between turns."""


@dataclass
class Filled:
    """Two stores, of few and of many keys, with a lease each.

    `facts`: what a key takes, by name. `tidy`: what the server does by itself in time, done before a turn.
    """

    stores: list[tuple[IdempotencyStore, Lease]] = field(default_factory=list)
    out: str = "out"
    facts: dict[str, float] = field(default_factory=dict)
    server_cpu_s: Callable[[], float] = lambda: 0.0
    tidy: Callable[[], Awaitable[object]] = nothing


def digest(number: int) -> bytes:
    """Of the filled-in key of that number; PostgreSQL reckons the same by itself."""
    return md5(b"%d" % number, usedforsecurity=False).digest()


async def _opened(stack: AsyncExitStack, store: Any) -> Lease:
    """Open it, take the lease, and handle one unit, to be copied."""
    await store.open()
    stack.push_async_callback(store.close)
    await store.apply()
    (lease,) = await store.acquire(GROUP, [PARTITION], "bench")
    await store.renew([lease], 600.0)
    request = ClaimRequest(PARTITION, FIRST, FINGERPRINT, HANDLER, 0, os.urandom(16).hex(), BASE_MS)
    await store.claim([lease], [request])
    await store.commit(CommitRequest({PARTITION: lease}, [Finished(PARTITION, 0, FIRST, (), "handled")], {}))
    return lease  # type: ignore[no-any-return]


async def sqlite(stack: AsyncExitStack, place: str, sizes: Sequence[int], say: Say) -> Filled:
    """A file each."""
    from choreo.sqlite.database import Database
    from choreo.stores.sqlite import SqliteStore

    filled = Filled()
    for keys in sizes:
        database = Database(str(Path(place) / f"{keys}.db"))
        store = SqliteStore(database, SystemClock(), with_log=False)
        lease = await _opened(stack, store)
        await database.write(lambda db, keys=keys: _fill_sqlite(db, keys))  # type: ignore[misc]
        await database.read(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        pages = await database.read(
            lambda db: db.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()
        )
        filled.facts["file_bytes_a_key"] = pages[0] / keys
        filled.stores.append((store, lease))
        say(f"sqlite: {keys:,} keys")
    return filled


def _fill_sqlite(db: sqlite3.Connection, keys: int) -> None:
    """Indexes are made afterwards: sorted, as they would be after a while, and in a tenth of the time."""
    from choreo.stores.sqlite import digests

    db.execute("PRAGMA temp_store = MEMORY")
    cursor = db.execute("SELECT * FROM choreo_key")
    columns = [column[0] for column in cursor.description]
    row = dict(zip(columns, cursor.fetchone(), strict=True))
    if "id" in columns:
        row["id"] = None
    indexes = db.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'choreo_key' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in indexes:
        db.execute(f"DROP INDEX {name}")
    numbers: Sequence[int] = range(keys) if "id" in columns else sorted(range(keys), key=digest)

    values = list(row.values())
    places = [columns.index(name) for name in ("digest", "correlation_id", "offset", "timestamp_ms")]

    def rows() -> Iterator[list[Any]]:
        at_digest, at_flow, at_offset, at_time = places
        for number in numbers:
            values[at_digest], values[at_flow] = digest(number), f"{number * FLOWS_APART % 2**128:032x}"
            values[at_offset], values[at_time] = number, BASE_MS + number
            yield values

    db.executemany(f"INSERT INTO choreo_key VALUES ({', '.join('?' * len(columns))})", rows())
    for _, statement in indexes:
        db.execute(statement)
    with patch.object(digests, "RUN_KEYS", max(1, keys // digests.RUN_KEYS) * digests.RUN_KEYS):  # at once
        digests.sort_in(db)


async def postgres(stack: AsyncExitStack, place: str, sizes: Sequence[int], say: Say) -> Filled:
    """A schema each, in one database."""
    import psycopg

    from choreo.stores.postgres import PostgresStore

    filled = Filled()
    connection = await stack.enter_async_context(await psycopg.AsyncConnection.connect(place, autocommit=True))
    schemas = [f"bench_{uuid4().hex[:8]}_{keys}" for keys in sizes]
    for schema, keys in zip(schemas, sizes, strict=True):
        store = PostgresStore(place, schema=schema)
        stack.push_async_callback(connection.execute, f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        lease = await _opened(stack, store)
        rows = await connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = 'key' "
            "ORDER BY ordinal_position",
            (schema,),
        )
        names = [row[0] for row in await rows.fetchall()]
        values = {
            "digest": "decode(md5(i::text), 'hex')",
            "offset": "i",
            "timestamp_ms": f"{BASE_MS} + i",
            "flow": "('x' || substr(md5('flow' || i), 1, 16))::bit(64)::bigint",
            "correlation_id": "convert_to(md5('flow' || i), 'UTF8')",
        }
        wanted = ", ".join(values.get(name, f't."{name}"') for name in names)
        listed = ", ".join(f'"{name}"' for name in names)
        async with _without_indexes(connection, f"{schema}.key"):
            await connection.execute(
                f"INSERT INTO {schema}.key ({listed}) SELECT {wanted} FROM {schema}.key t, "
                f"generate_series(0, {keys - 1}) i WHERE t.digest = %s",
                (FIRST,),
            )
        await connection.execute(f"VACUUM (ANALYZE) {schema}.key")
        row = await (
            await connection.execute("SELECT pg_relation_size(%s), pg_indexes_size(%s)", (f"{schema}.key",) * 2)
        ).fetchone()
        assert row is not None
        filled.facts |= {"table_bytes_a_key": row[0] / keys, "index_bytes_a_key": row[1] / keys}
        filled.stores.append((store, lease))
        say(f"postgres: {keys:,} keys")
    await connection.execute("CHECKPOINT")
    rows = await connection.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
    pids = [row[0] for row in await rows.fetchall()]
    filled.server_cpu_s = lambda: sum(map(_cpu_s, pids))
    filled.tidy = lambda: connection.execute(f"VACUUM {schemas[0]}.key")  # autovacuum does so in time
    return filled


@asynccontextmanager
async def _without_indexes(connection: Any, table: str) -> AsyncIterator[None]:
    """They are made afterwards, in a tenth of the time."""
    found = await connection.execute(
        "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid), c.conname, pg_get_constraintdef(c.oid) "
        "FROM pg_index i LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid WHERE i.indrelid = %s::regclass",
        (table,),
    )
    indexes = await found.fetchall()
    for name, _, constraint, _ in indexes:
        await connection.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT {constraint}" if constraint else f"DROP INDEX {name}"
        )
    yield
    await connection.execute("SET maintenance_work_mem = '1GB'")
    for _, made, constraint, said in indexes:
        await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {constraint} {said}" if constraint else made)


def _cpu_s(pid: int) -> float:
    """CPU time of a PostgreSQL process of this host; 0 of one that is elsewhere."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return 0.0
    if "(postgres" not in name:
        return 0.0
    return sum(map(int, rest.split()[11:13])) / os.sysconf("SC_CLK_TCK")


async def redis(stack: AsyncExitStack, place: str, sizes: Sequence[int], say: Say) -> Filled:
    """A prefix each, in one server."""
    from redis import Redis

    from choreo.stores.redis import RedisStore
    from choreo.stores.redis.keys import GroupKeys

    server = stack.enter_context(Redis.from_url(place))
    filled = Filled()
    for keys in sizes:
        prefix = f"bench-{uuid4().hex[:8]}-{keys}"
        stack.callback(_forget, server, prefix)
        store = RedisStore(place, prefix=prefix)
        lease = await _opened(stack, store)
        names = GroupKeys(prefix, GROUP)
        value = server.hget(names.keys, FIRST)
        before = server.info("memory")["used_memory"]
        for begin in range(0, keys, 50_000):  # one wait for the disk each, where every write is synced
            with server.pipeline(transaction=False) as pipe:
                for at in range(begin, min(begin + 50_000, keys), 1_000):
                    made = [digest(number) for number in range(at, at + 1_000)]
                    pipe.hset(names.keys, mapping=dict.fromkeys(made, value))
                    pipe.rpush(names.bucket(f"{BASE_MS}+3600000"), *made)
                pipe.execute()
        filled.facts["server_bytes_a_key"] = (server.info("memory")["used_memory"] - before) / keys
        filled.stores.append((store, lease))
        say(f"redis: {keys:,} keys")
    for _ in range(150):  # a rewrite of the append-only file, begun by all these writes, would be measured too
        if not server.info("persistence").get("aof_rewrite_in_progress"):
            break
        await asyncio.sleep(0.2)

    def cpu_s() -> float:
        used = server.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    filled.server_cpu_s = cpu_s
    return filled


def _forget(server: Any, prefix: str) -> None:
    server.unlink(*server.scan_iter(f"*{prefix}*"))


async def changelog(stack: AsyncExitStack, place: str, sizes: Sequence[int], say: Say) -> Filled:
    """A group each; the larger one once more with 500 keys a record, for its restore."""
    from choreo.stores.changelog import ChangelogStore, changelog_specs, changelog_topic
    from choreo.stores.changelog.packing import Key, pack
    from choreo.transports.kafka import KafkaTransport

    run = uuid4().hex[:8]
    filled = Filled(out=f"bench-{run}-out")
    transport = KafkaTransport(place)
    await transport.open()
    stack.push_async_callback(transport.close)
    await transport.create_topics([TopicSpec(filled.out, 1)])
    for keys, a_record in ((sizes[-1], 500), *((keys, 100) for keys in sizes)):
        group, partition = f"bench-{run}-{keys}-{a_record}", TopicPartition(f"bench-{run}-{keys}-{a_record}", 0)
        specs = {partition.topic: TopicSpec(partition.topic, 1)}
        await transport.create_topics([*specs.values(), *changelog_specs(group, specs)])
        topic, bytes_ = changelog_topic(group, partition.topic), 0
        for begin in range(0, keys, 10_000):
            records = []
            for at in range(begin, min(begin + 10_000, keys), a_record):
                made = [
                    Key(digest(number), FINGERPRINT, number, BASE_MS + number, "handled")
                    for number in range(at, at + a_record)
                ]
                records += [ProducerRecord(topic, one.record_key, value, (), 0) for one, value in pack(made)]
            await transport.send(records)
            bytes_ += sum(len(each.key or b"") + len(each.value or b"") for each in records)
        store = ChangelogStore(transport, group)
        await store.open()
        stack.push_async_callback(store.close)
        gc.collect()
        before, began_s = _resident_bytes(), time.perf_counter()
        (lease,) = await store.acquire(group, [partition], "bench")
        took_s = time.perf_counter() - began_s
        say(f"changelog: {keys:,} keys, {a_record} a record, restored in {took_s:.1f} s")
        assert (await store.stats())[group].keys == keys
        if keys == sizes[-1]:
            filled.facts[f"restore_s_{a_record}_a_record"] = took_s
            filled.facts[f"log_bytes_{a_record}_a_key"] = bytes_ / keys
            filled.facts[f"memory_bytes_{a_record}_a_key"] = (_resident_bytes() - before) / keys
        if a_record == 500:
            await store.release([lease])
        else:
            filled.stores.append((store, lease))
    return filled


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


FILLED = {"sqlite": sqlite, "postgres": postgres, "redis": redis, "changelog": changelog}
