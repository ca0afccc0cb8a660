"""Bad days of a PostgreSQL: down, killed under load, frozen, full of connections. Each has a server of its own."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import psycopg
import pytest

from choreo.errors import StoreError
from choreo.ports import ClaimRequest
from choreo.stores.postgres import PostgresStore
from choreo.testing.conformance_shelf import Shelf
from deploy.kafka.node import free_ports
from tests.kafka_server import Unavailable, unavailable
from tests.postgres_server import LocalPostgres, fresh_postgres, pgbouncer


@pytest.fixture(scope="module")
def server() -> Iterator[LocalPostgres]:
    """A server that may be killed, with few connections."""
    try:
        with fresh_postgres("max_connections=12", "superuser_reserved_connections=3") as server:
            yield server
    except Unavailable as error:
        unavailable(str(error))


async def test_a_server_that_is_down_is_told_at_open() -> None:
    """At once, with the address, what to check, and no password."""
    (port,) = free_ports(1)
    store = PostgresStore(f"postgresql://me:pa55@127.0.0.1:{port}/db", timeout_s=5.0)
    began_s = time.monotonic()
    with pytest.raises(StoreError, match=rf"me@127.0.0.1:{port}/db cannot be reached: .*check that") as caught:
        await store.open()
    assert time.monotonic() - began_s < 4.0
    assert "pa55" not in str(caught.value)
    with pytest.raises(StoreError, match="is closed; open it first"):
        await store.stats()
    await store.close()


async def test_a_wrong_password_is_told(server: LocalPostgres) -> None:
    """As the server words it."""
    store = PostgresStore(server.url.replace("secret", "pa55"), timeout_s=5.0)
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        await store.open()
    assert "pa55" not in str(caught.value)


async def again_and_again(shelf: Shelf, numbers: range, done: list[int]) -> None:
    """Claim and commit, one emit each, repeating the same request after an error as a worker does."""
    lease = None
    for number in numbers:
        key, committed = os.urandom(16), False
        while not committed:
            try:
                lease = lease or await shelf.lease(shelf.p)
                request = ClaimRequest(shelf.p, key, b"12345678", "h", number, "flow", number)
                await shelf.store.claim([lease], [request])
                committed = not (await shelf.store.commit(shelf.request((lease, key, number)))).refused
            except StoreError:
                await asyncio.sleep(0.05)
        done.append(number)


async def until(done: list[int], count: int) -> None:
    """Return when so many are done."""
    async with asyncio.timeout(60):
        while len(done) < count:  # noqa: ASYNC110  # a count is waited for, not one moment
            await asyncio.sleep(0.02)


async def test_a_server_killed_under_load_loses_and_doubles_nothing(server: LocalPostgres) -> None:
    """SIGKILL of every process of it, twice, and an orderly restart: what was acknowledged is there once."""
    store = PostgresStore(server.url, connections_max=4, timeout_s=3.0)
    await store.open()
    await store.apply()
    shelf, done = Shelf(store, "load"), list[int]()
    working = asyncio.create_task(again_and_again(shelf, range(300), done))
    for at, end in ((30, server.kill), (90, server.stop), (150, server.kill)):
        await until(done, at)
        await asyncio.to_thread(end)
        await asyncio.sleep(0.2)
        assert not working.done()
        await asyncio.to_thread(server.start)
    await asyncio.wait_for(working, 60)
    (lease,) = await store.acquire("load", [shelf.p], "two")
    pending = [int(record.value or b"") for _, record in await store.pending(lease)]
    assert pending == list(range(300))
    assert (await store.stats())["load"].keys == 300
    await store.close()


async def test_plain_connections_survive_a_restart(server: LocalPostgres) -> None:
    """Those of `run` and of plain handlers: the first may meet a dead connection, what follows does not."""
    store = PostgresStore(server.url, connections_max=1, timeout_s=5.0)
    await store.open()
    await store.run(lambda db: db.execute("SELECT 1"))
    await asyncio.to_thread(server.kill)
    with pytest.raises(StoreError):
        await store.run(lambda db: db.execute("SELECT 1"))
    await asyncio.to_thread(server.start)
    await store.run(lambda db: db.execute("SELECT 1"))
    await store.close()
    with pytest.raises(StoreError, match="is closed"):
        await store.run(lambda db: db.execute("SELECT 1"))


async def test_a_frozen_server_is_an_error_in_time(server: LocalPostgres) -> None:
    """Its processes are stopped: nothing answers, a cancellation neither. Thawed, the store goes on."""
    store = PostgresStore(server.url, schema="frozen", timeout_s=1.0)
    await store.open()
    await store.apply()
    shelf = Shelf(store, "frozen")
    lease = await shelf.lease(shelf.p)
    pids = server.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            began_s = time.monotonic()
            with pytest.raises(StoreError, match="did not answer in 1 s"):
                await store.renew([lease], 30.0)
            assert time.monotonic() - began_s < 1.5
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(20):
        while True:
            try:
                assert not await store.renew([lease], 30.0)
                break
            except StoreError:
                await asyncio.sleep(0.1)
    await store.close()


async def test_a_server_without_a_free_connection_is_told(server: LocalPostgres) -> None:
    """With what the server said; afterwards the store goes on."""
    store = PostgresStore(server.url.replace("choreo:", "plain:"), schema="full", timeout_s=2.0)
    admin = await psycopg.AsyncConnection.connect(server.url, autocommit=True)
    await admin.execute("CREATE ROLE plain LOGIN PASSWORD 'secret' IN ROLE pg_read_all_data CONNECTION LIMIT 1")
    await admin.execute("GRANT CREATE ON DATABASE postgres TO plain")
    await store.open()
    await store.apply()
    shelf = Shelf(store, "full")
    lease = await shelf.lease(shelf.p)
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'plain'")
    other = await psycopg.AsyncConnection.connect(server.url.replace("choreo:", "plain:"))
    with pytest.raises(StoreError, match=r"too many connections|did not answer in 2 s"):
        await store.renew([lease], 30.0)
    await other.close()
    assert not await store.renew([lease], 30.0)
    await store.close()
    await admin.close()


async def test_a_full_disk_is_an_error_and_no_half_commit(server: LocalPostgres) -> None:
    """As near as can be had without filling one: the outbox may not grow. The same request later is written once."""
    store = PostgresStore(server.url, schema="nospace", timeout_s=5.0)
    await store.open()
    await store.apply()
    shelf = Shelf(store, "nospace")
    lease, key = await shelf.lease(shelf.p), os.urandom(16)
    await shelf.claim(lease, key)
    body = "BEGIN RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device'; END"
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as admin:
        await admin.execute(f"CREATE FUNCTION nospace.fail() RETURNS trigger LANGUAGE plpgsql AS $${body}$$".encode())
        await admin.execute(
            "CREATE TRIGGER fail BEFORE INSERT ON nospace.outbox FOR EACH ROW EXECUTE FUNCTION nospace.fail()"
        )
        with pytest.raises(StoreError, match=r"No space left on device \(53100\); it is tried again"):
            await store.commit(shelf.request((lease, key, 1)))
        await admin.execute("DROP TRIGGER fail ON nospace.outbox")
    result = await store.commit(shelf.request((lease, key, 1)))
    assert (len(result.outbox), result.refused) == (1, frozenset())
    await store.close()


async def test_a_pgbouncer_that_comes_back_is_used_again(server: LocalPostgres) -> None:
    """Its connections all died; no session state was lost, since there is none."""
    try:
        with pgbouncer(server.url) as url:
            store = PostgresStore(url, schema="bounced", timeout_s=5.0)
            await store.open()
            await store.apply()
            shelf = Shelf(store, "bounced")
            lease = await shelf.lease(shelf.p)
            async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as admin:
                for _ in range(3):
                    await asyncio.gather(*(store.renew([lease], 30.0) for _ in range(6)))
                    await admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                        "AND usename = 'choreo' AND backend_type = 'client backend'"
                    )
                    assert not await store.renew([lease], 30.0)
            await store.close()
    except Unavailable as error:
        unavailable(str(error))
