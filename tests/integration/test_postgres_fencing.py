"""Who waits for whom on a real server: commits, renewals and takeovers on connections of their own."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from choreo.errors import LeaseLost, StoreError
from choreo.ports import Claimed, ClaimRequest, CommitRequest, CommitResult, Finished, Lease, Transacted
from choreo.stores.postgres import PostgresStore
from choreo.testing.conformance_shelf import Shelf

WAITS_S = 0.4


@pytest.fixture
async def shelf(postgres: str) -> AsyncIterator[Shelf]:
    """A store in a schema of its own, and a table for handlers."""
    store = PostgresStore(
        postgres, schema=f"fencing {uuid4().hex}", connections_max=8, timeout_s=20.0, transaction_idle_s=2.0
    )
    await store.open()
    await store.apply()
    await store.run(lambda db: db.execute("CREATE TABLE IF NOT EXISTS fenced_row (name text)"))
    yield Shelf(store, f"group-{uuid4()}")
    await store.close()


async def rows(url: str, name: str) -> int:
    """How often a handler's row is in the table."""
    async with await psycopg.AsyncConnection.connect(url) as db:
        found = await (await db.execute("SELECT count(*) FROM fenced_row WHERE name = %s", (name,))).fetchone()
    assert found is not None
    return int(found[0])


def commit_with_rows(shelf: Shelf, lease: Lease, key: bytes, name: str, hold: asyncio.Event) -> CommitRequest:
    """A commit whose handler writes a row and then waits for `hold`."""

    async def invoke(transaction: Any, _: Any) -> Finished:
        await transaction.execute("INSERT INTO fenced_row VALUES (%s)", (name,))
        await hold.wait()
        return Finished(lease.partition, 7, key, (shelf.emit(1),), "handled")

    unit = Transacted(lease.partition, key, "a", "psycopg.AsyncConnection", True, invoke)
    return CommitRequest({lease.partition: lease}, (), {}, (unit,))


def columns(lease: Lease) -> dict[str, Any]:
    """Parameters of the statement by which a commit checks its lease."""
    return {
        "groups": [lease.group.encode()],
        "topics": [lease.partition.topic.encode()],
        "partitions": [lease.partition.partition],
        "epochs": [lease.epoch],
    }


async def test_a_takeover_waits_for_a_commit_that_passed_its_check(shelf: Shelf, postgres: str) -> None:
    """Other commits of the owner and its renewals do not; afterwards every commit of the old epoch is refused."""
    store = shelf.store
    assert isinstance(store, PostgresStore)
    lease, key = await shelf.lease(shelf.p), os.urandom(16)
    await shelf.claim(lease, key)
    async with await psycopg.AsyncConnection.connect(postgres) as db:  # a commit between its check and its end
        await db.execute(store._queries.fence, columns(lease))
        assert not await asyncio.wait_for(store.renew([lease], 30.0), 2.0), "a renewal waited"
        result = await asyncio.wait_for(store.commit(shelf.request((lease, key, 1))), 2.0)
        assert not result.refused, "another commit of the same owner was refused"
        taking = asyncio.create_task(shelf.lease(shelf.p, "two"))
        await asyncio.sleep(WAITS_S)
        assert not taking.done(), "the partition was taken from under a commit"
        await db.commit()
    newer = await asyncio.wait_for(taking, 5.0)
    assert newer.epoch == lease.epoch + 1
    other = os.urandom(16)
    with pytest.raises(LeaseLost):
        await shelf.claim(lease, other)
    assert (await store.commit(shelf.request((lease, key, 1)))).refused == {shelf.p}


async def test_a_takeover_does_not_wait_for_handlers(shelf: Shelf, postgres: str) -> None:
    """The lease is checked after they ran: what they wrote is undone, and none of it is told as done."""
    lease, key, name, hold = await shelf.lease(shelf.p), os.urandom(16), uuid4().hex, asyncio.Event()
    await shelf.claim(lease, key)
    committing = asyncio.create_task(shelf.store.commit(commit_with_rows(shelf, lease, key, name, hold)))
    await asyncio.sleep(WAITS_S)
    newer = await asyncio.wait_for(shelf.lease(shelf.p, "two"), 2.0)
    hold.set()
    result = await committing
    assert (set(result.refused), *result.transacted, *result.outbox) == ({shelf.p}, None)
    assert (await rows(postgres, name), await shelf.store.pending(newer)) == (0, [])
    assert await shelf.claim(newer, key) == Claimed("fresh", 2)


async def test_a_claim_taken_over_while_its_handler_runs_refuses_the_partition(shelf: Shelf, postgres: str) -> None:
    """The lease of the partition is still ours, but it had run out, and the key is another partition's now."""
    lease, other, key = await shelf.lease(shelf.p), await shelf.lease(shelf.q, "two"), os.urandom(16)
    hold, name = asyncio.Event(), uuid4().hex
    await shelf.claim(lease, key)
    committing = asyncio.create_task(shelf.store.commit(commit_with_rows(shelf, lease, key, name, hold)))
    await asyncio.sleep(WAITS_S)
    await shelf.store.renew([lease], 0.01)
    await asyncio.sleep(0.05)
    assert await shelf.claim(other, key) == Claimed("fresh", 2)
    hold.set()
    result = await committing
    assert (set(result.refused), *result.transacted, await rows(postgres, name)) == ({shelf.p}, None, 0)
    assert not (await shelf.store.commit(shelf.request((other, key, 2)))).refused


async def test_a_holder_paused_past_its_lease_is_refused(shelf: Shelf, postgres: str) -> None:
    """It wakes, and does not know that its lease ran out and its partition went elsewhere."""
    short = PostgresStore(postgres, schema=lease_schema(shelf), lease_s=0.1)
    await short.open()
    sleeper = Shelf(short, shelf.group)
    sleeper.p, sleeper.output = shelf.p, shelf.output
    lease, key = await sleeper.lease(shelf.p), os.urandom(16)
    await sleeper.claim(lease, key)
    await asyncio.sleep(0.2)
    newer = await shelf.lease(shelf.p, "two")
    assert await shelf.claim(newer, key) == Claimed("fresh", 2)
    assert (await short.commit(sleeper.request((lease, key, 1)))).refused == {shelf.p}
    assert await short.renew([lease], 30.0) == {shelf.p}
    await short.release([lease])
    assert not (await shelf.store.commit(shelf.request((newer, key, 2)))).refused, "the sleeper freed the claim"
    assert [record for _, record in await shelf.store.pending(newer)] == [shelf.emit(2)]
    await short.close()


async def test_a_zombie_holding_locks_is_ended_by_the_server(shelf: Shelf, postgres: str) -> None:
    """A member that stops between a handler's statements keeps others from that row for transaction_idle_s only."""
    lease, key, hold = await shelf.lease(shelf.p), os.urandom(16), asyncio.Event()
    await shelf.claim(lease, key)
    name = uuid4().hex
    committing = asyncio.create_task(shelf.store.commit(commit_with_rows(shelf, lease, key, name, hold)))
    await asyncio.sleep(WAITS_S)
    began_s = time.monotonic()
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as db:
        await db.execute("SET lock_timeout = '10s'")
        async with db.transaction():
            await db.execute("LOCK TABLE fenced_row IN ACCESS EXCLUSIVE MODE")
    assert time.monotonic() - began_s < 6.0
    hold.set()
    result = await committing
    assert isinstance(result.transacted[0], psycopg.errors.IdleInTransactionSessionTimeout)
    assert await rows(postgres, name) == 0


async def test_commits_of_many_partitions_run_at_once(shelf: Shelf) -> None:
    """Twenty flushes of one owner over eight connections, all durable, no deadlock."""
    lease, other = await shelf.lease(shelf.p), await shelf.lease(shelf.q)
    keys = [os.urandom(16) for _ in range(40)]
    requests = [
        ClaimRequest((shelf.p, shelf.q)[n % 2], key, b"12345678", "h", 0, "", 0) for n, key in enumerate(keys)
    ]
    await shelf.store.claim([lease, other], requests)

    async def flush(at: int) -> CommitResult:
        units = [((lease, other)[n % 2], keys[n], n) for n in (2 * at, 2 * at + 1)]
        return await shelf.store.commit(shelf.request(*units))

    results = await asyncio.gather(*(flush(at) for at in range(20)))
    assert {len(result.outbox) for result in results} == {2}
    assert len(await shelf.store.pending(lease)) + len(await shelf.store.pending(other)) == 40


async def test_a_commit_racing_its_own_repetition_writes_once(shelf: Shelf) -> None:
    """As when the first try's answer was given up and its transaction still runs."""
    lease = await shelf.lease(shelf.p)
    for _ in range(10):
        keys = [os.urandom(16) for _ in range(20)]
        requests = [ClaimRequest(shelf.p, key, b"12345678", "h", 0, "", 0) for key in keys]
        await shelf.store.claim([lease], requests)
        flush = shelf.request(*((lease, key, n) for n, key in enumerate(keys)))
        results = await asyncio.gather(*(shelf.store.commit(flush) for _ in range(3)))
        assert [result.refused for result in results] == [frozenset()] * 3
        assert sorted(len(result.outbox) for result in results) == [0, 0, 20]
        pending = await shelf.store.pending(lease)
        assert len(pending) == 20
        await shelf.store.sent([row for row, _ in pending])


async def test_a_slow_server_is_waited_for_and_a_stuck_one_told(shelf: Shelf, postgres: str) -> None:
    """A lock held for two seconds delays a call; held for longer than timeout_s it is an error."""
    impatient = PostgresStore(postgres, schema=lease_schema(shelf), timeout_s=1.0)
    await impatient.open()
    lease = await shelf.lease(shelf.p)
    schema = sql.Identifier(lease_schema(shelf))
    async with await psycopg.AsyncConnection.connect(postgres) as db:
        await db.execute(sql.SQL("LOCK TABLE {}.lease IN ACCESS EXCLUSIVE MODE").format(schema))
        renewing = asyncio.create_task(shelf.store.renew([lease], 30.0))
        began_s = time.monotonic()
        with pytest.raises(StoreError, match=r"canceling statement due to statement timeout|did not answer in 1 s"):
            await impatient.renew([lease], 30.0)
        assert time.monotonic() - began_s < 1.9
        await asyncio.sleep(2.0 - (time.monotonic() - began_s))
        assert not renewing.done()
    assert not await renewing
    assert not await impatient.renew([lease], 30.0)
    await impatient.close()


def lease_schema(shelf: Shelf) -> str:
    """The schema its tables are in."""
    assert isinstance(shelf.store, PostgresStore)
    return shelf.store._names.schema
