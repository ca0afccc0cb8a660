"""Rows of a batch are written whole, in order, however they are cut into statements."""

import sqlite3
from contextlib import closing

import pytest

from choreo.ports import ClaimRequest, CommitRequest, Finished
from choreo.record import ProducerRecord, TopicPartition
from choreo.runtime.clock import SystemClock
from choreo.sqlite import batched
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore

COUNTS = (0, 1, 7, 8, 9, 63, 64, 65, 200, 511, 512, 513, 1_100)


@pytest.mark.parametrize("count", COUNTS)
def test_rows_are_in_order_and_counted(count: int) -> None:
    """Ids follow the order; an update counts only rows that were there."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER, name TEXT)")
        rows = [(number, f"n{number}") for number in range(count)]
        assert batched.insert(db, "INSERT INTO t VALUES {rows}", "(NULL, ?, ?)", rows) == count, "the last one's id"
        assert db.execute("SELECT number, name FROM t ORDER BY id").fetchall() == rows
        statement = "UPDATE t SET name = v.column2 FROM (VALUES {rows}) v WHERE number = v.column1"
        changed = [(number, "x") for number in range(-1, count, 2)]
        assert batched.change(db, statement, "(?, ?)", changed) == count // 2
        assert [name for (name,) in db.execute("SELECT name FROM t ORDER BY id")] == [
            "x" if number % 2 else name for number, name in rows
        ]


def test_a_statement_a_run_of_rows_and_not_one_a_row() -> None:
    """Python lets go of the interpreter at each step of each statement."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (number INTEGER)")
        seen: list[str] = []
        db.set_trace_callback(seen.append)
        batched.insert(db, "INSERT INTO t VALUES {rows}", "(?)", [(number,) for number in range(1_000)])
        assert len(seen) == 6, "512 rows, 256, 128, 64, 32 and 8"


async def test_statements_of_a_batch_do_not_grow_with_it() -> None:
    """A claim and a commit of 500 events: each statement may be a wait for the interpreter, of 5 ms."""
    database = Database(":memory:")
    store, seen = SqliteStore(database, SystemClock(), with_log=False), list[str]()
    await store.open()
    partitions = [TopicPartition("orders", number) for number in range(4)]
    held = await store.acquire("inventory", partitions, "one")
    keys = [(partitions[number % 4], number, number.to_bytes(16, "big")) for number in range(1_000)]
    emits = (ProducerRecord("stock", b"key", b"{}", ()),)
    for some in (keys[:500], keys[500:]):  # the second time all that is said once has been said
        seen.clear()
        await database.read(lambda db: db.set_trace_callback(seen.append))
        asked = [ClaimRequest(id_, key, key[:8], "inventory.reserve", at, "flow", 0) for id_, at, key in some]
        assert {verdict for verdict, _, _ in await store.claim(held, asked)} == {"fresh"}
        claimed = len(seen)
        finished = [Finished(id_, at, key, emits, "handled") for id_, at, key in some]
        leases, offsets = {lease.partition: lease for lease in held}, dict.fromkeys(partitions, 1_000)
        result = await store.commit(CommitRequest(leases, finished, offsets))
        assert len(result.outbox) == 500
    rows = 6  # 256, 128, 64, 32, 16 and 4 of them
    begin_and_end = lease = version = end = 1
    assert claimed == 2 * begin_and_end + lease + version + end + rows
    savepoint = 2
    assert len(seen) - claimed == 2 * begin_and_end + lease + version + end + savepoint + 2 * rows
    await store.close()
