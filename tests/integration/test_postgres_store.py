"""The PostgreSQL store on a real server: its tables, names and values that hurt, clocks, retention, counts."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from choreo.errors import ConfigurationError, StoreError
from choreo.instances import KEY_BYTES_MAX, Instances
from choreo.ports import Claimed, ClaimRequest, CommitRequest, Finished
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.postgres import PostgresStore
from choreo.stores.postgres import reading as postgres_reading
from choreo.stores.postgres import schema as schemas
from choreo.stores.postgres import turns as postgres_turns
from choreo.testing.conformance_desk import Desk
from choreo.testing.conformance_shelf import Shelf

HOSTILE = "a\"b'c\0d\ud800😀%s{key}\\"


@pytest.fixture
async def shelf(postgres: str) -> AsyncIterator[Shelf]:
    """A store in a schema of its own."""
    store = PostgresStore(postgres, schema=f"store {uuid4().hex}", connections_max=8, timeout_s=20.0)
    await store.open()
    await store.apply()
    yield Shelf(store, f"group-{uuid4()}")
    await store.close()


def another(shelf: Shelf, postgres: str, *, lease_s: float = 30.0) -> Shelf:
    """A second process on the same tables."""
    assert isinstance(shelf.store, PostgresStore)
    made = Shelf(PostgresStore(postgres, schema=shelf.store._names.schema, lease_s=lease_s), shelf.group)
    made.p, made.q, made.output = shelf.p, shelf.q, shelf.output
    return made


async def test_names_are_taken_as_they_are(postgres: str) -> None:
    """Quotes, emoji, percent signs, braces: all are quoted; two prefixes in one schema do not meet."""
    schema = f"s\"'😀%s {{key}} {uuid4().hex[:8]}"
    stores = [PostgresStore(postgres, schema=schema, prefix=prefix) for prefix in ("", '"%(x)s;--{lease}')]
    for store in stores:
        await store.open()
        assert len(await store.plan()) >= 8
        await store.apply()
        assert list(await store.plan()) == []
    key = os.urandom(16)
    for store in stores:
        shelf = Shelf(store, "group")
        lease = await shelf.lease(shelf.p)
        assert await shelf.claim(lease, key) == Claimed("fresh")
        assert not (await store.commit(shelf.request((lease, key, 1)))).refused
        assert len(await store.pending(lease)) == 1
        assert (await store.stats())["group"].keys == 1
        await store.release([lease])
        await store.close()


@pytest.mark.parametrize("name", ["a\0b", "", "é" * 32, "\ud800"])
def test_a_name_postgresql_would_change_is_refused(name: str) -> None:
    """Before anything is connected: NUL, nothing, more than 63 bytes, no Unicode."""
    with pytest.raises(ConfigurationError, match="the schema name"):
        PostgresStore("postgresql://localhost/db", schema=name)
    if name:
        with pytest.raises(ConfigurationError, match="the table name"):
            PostgresStore("postgresql://localhost/db", prefix=name)


def test_no_message_shows_the_password() -> None:
    """Neither its representation nor what is said of a URL that is none."""
    store = PostgresStore("postgresql://me:pa55@db.example:5433/orders?application_name=x")
    assert repr(store) == "PostgresStore('postgresql://me@db.example:5433/orders', schema='choreo')"
    with pytest.raises(ConfigurationError) as caught:
        PostgresStore("postgresql://me:pa55@db.example:port:port/orders?nonsense=pa55")
    assert "pa55" not in str(caught.value)


async def test_values_are_kept_as_they_are(shelf: Shelf) -> None:
    """NUL, quotes, emoji and lone surrogates in groups, topics, owners, correlation ids, keys and headers."""
    shelf.group, shelf.p = f"{HOSTILE} group", TopicPartition(f"{HOSTILE} topic", 3)
    lease = await shelf.lease(shelf.p, HOSTILE)
    key = b"\0\"'\\x" + os.urandom(11)
    request = ClaimRequest(shelf.p, key, b"\0" * 8, HOSTILE, 7, HOSTILE * 500, -5)
    assert await shelf.store.claim([lease], [request]) == [Claimed("fresh")]
    emits = (
        ProducerRecord(HOSTILE, b"\0k'\"", b"\0", (("\udcff\0", b"\0"), ("null", None), ("😀", b"")), 4),
        ProducerRecord("t", None, None, ()),
    )
    await shelf.store.commit(CommitRequest({shelf.p: lease}, [Finished(shelf.p, 7, key, emits, HOSTILE)], {}))
    assert [record for _, record in await shelf.store.pending(lease)] == list(emits)
    assert isinstance(shelf.store, PostgresStore)
    (row,) = await shelf.store.history(HOSTILE * 500)
    assert (row["handler"], row["topic"], row["outcome"], row["done"]) == (HOSTILE, shelf.p.topic, HOSTILE, 1)
    assert row["done_ms"] > 1_700_000_000_000
    assert await shelf.store.history(HOSTILE) == []


async def test_a_flow_is_found_in_every_span_of_log_time_and_by_an_older_index(shelf: Shelf, postgres: str) -> None:
    """Each time by an index; the older one is of a schema that an older choreo has made."""
    assert isinstance(shelf.store, PostgresStore)
    store, names = shelf.store, shelf.store._names
    lease = await shelf.lease(shelf.p)
    for number, at_ms in enumerate((0, 65_535, 65_536, 10**12, 10**13)):
        for flow in ("asked", f"other {number}"):
            request = ClaimRequest(shelf.p, os.urandom(16), b"12345678", "h", number, flow, at_ms)
            assert [each.verdict for each in await store.claim([lease], [request])] == ["fresh"]
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("SET enable_seqscan = off")
        queries = store._queries.history
        for by_spans, index in ((True, "key_span"), (False, "key_flow")):
            query = queries[by_spans]
            store._queries.history = {by_spans: query}
            if not by_spans:
                db.execute(names.fill("CREATE INDEX key_flow ON {key} (flow)").encode())
                db.execute(f"DROP INDEX {names.spans}".encode())
            assert {row["offset"] for row in await store.history("asked")} == set(range(5))
            assert index in str(db.execute(b"EXPLAIN " + query, {"flow": 1, "correlation_id": b"1"}).fetchall())
    assert await store.plan() == []


async def test_missing_tables_are_told_with_the_command_that_makes_them(postgres: str) -> None:
    """Connecting is no check of them."""
    store = PostgresStore(postgres, schema=f"missing {uuid4().hex}")
    await store.open()
    with pytest.raises(StoreError, match="choreo store apply"):
        await store.acquire("group", [TopicPartition("t", 0)], "one")
    await store.close()


async def test_a_schema_newer_than_the_library_is_refused(shelf: Shelf, postgres: str) -> None:
    """The library is to be upgraded; so is a schema whose tables are somebody else's left alone."""
    assert isinstance(shelf.store, PostgresStore)
    schema = sql.Identifier(shelf.store._names.schema)
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(sql.SQL("INSERT INTO {}.version VALUES (2)").format(schema))
        for call in (shelf.store.plan, shelf.store.apply):
            with pytest.raises(ConfigurationError, match="is of version 2, this choreo knows 1; upgrade choreo"):
                await call()
        db.execute(sql.SQL("DROP TABLE {}.outbox").format(schema))
    with pytest.raises(ConfigurationError, match="not of choreo's making"):
        await shelf.store.plan()


@asynccontextmanager
async def older(postgres: str, schema: str, *files: str) -> AsyncIterator[PostgresStore]:
    """A store of a choreo that knows its first five tables, and what these files add."""
    store = PostgresStore(postgres, schema=schema)
    added = {file: schemas._ADDED[file] for file in files}
    known = (*schemas._FIRST, *(name for names in added.values() for name in names))
    store._names.there = {name: store._names.there[name] for name in known}
    await store.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schemas, "_ADDED", added)
        await store.apply()
        assert await store.plan() == []
    yield store
    await store.close()


async def test_tables_of_processes_are_added_while_an_older_choreo_runs(postgres: str) -> None:
    """It waits for no transaction of it, keeps what is there, and lets it be started again, for a way back."""
    schema, keys = f"older {uuid4().hex}", [os.urandom(16) for _ in range(2)]
    async with older(postgres, schema) as before:
        running = Shelf(before, "group")
        lease = await running.lease(running.p)
        for key in keys:
            await running.claim(lease, key)
        await before.commit(running.request((lease, keys[0], 1)))
        store = PostgresStore(postgres, schema=schema, timeout_s=10.0)
        await store.open()
        with psycopg.connect(postgres) as busy:
            for table in ("key", "lease", "outbox", "version"):  # as a commit of the older one that is under way
                busy.execute(sql.SQL("SELECT FROM {} FOR UPDATE").format(sql.Identifier(schema, table)))
            assert len(await store.plan()) == 12
            await store.apply()
            assert await store.plan() == []
        assert await store.instances("approval") == []
        assert not (await before.commit(running.request((lease, keys[1], 2)))).refused
        assert len(await store.pending(lease)) == 2
        assert (await running.claim(lease, keys[0])).verdict == "done"
        async with older(postgres, schema) as again:
            assert len(await again.pending(lease)) == 2
        await store.close()


async def test_retention_is_added_while_an_older_choreo_keeps_instances(postgres: str) -> None:
    """What ended before, and what ends under the older one afterwards, is deleted in its time."""
    schema = f"older {uuid4().hex}"
    async with older(postgres, schema, "instances", "interventions") as before:
        desk = Desk(Shelf(before, "group"))
        store = PostgresStore(postgres, schema=schema)
        await store.open()
        assert await desk.handle(lambda instances: instances.save(desk.instance("1", ended=True))) is None
        assert len(await store.plan()) == 5
        await store.apply()
        assert await store.plan() == []
        assert await desk.handle(lambda instances: instances.save(desk.instance("2", ended=True))) is None
        assert await desk.handle(lambda instances: instances.save(desk.instance("3"))) is None
        lease = await desk.shelf.lease(desk.shelf.p)
        await store.renew([lease], 30.0, {desk.shelf.p: 2**42})
        assert await store.purge_ended(desk.process, "group", [desk.shelf.p.topic], 0) == 2
        assert [each.key for each in await before.instances(desk.process)] == ["3"]
        await store.close()


async def test_half_of_the_tables_of_processes_are_somebody_elses(postgres: str) -> None:
    """A table of an application's that happens to be called timer is not taken for ours, nor overwritten."""
    schema = f"half {uuid4().hex}"
    async with older(postgres, schema):
        pass
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(sql.SQL("CREATE TABLE {} (mine integer)").format(sql.Identifier(schema, "timer")))
    store = PostgresStore(postgres, schema=schema)
    await store.open()
    for call in (store.plan, store.apply):
        with pytest.raises(ConfigurationError, match=r"'timer'.* not of choreo's making"):
            await call()
    await store.close()


async def test_a_key_of_any_bytes_goes_into_the_indexes(shelf: Shelf) -> None:
    """The longest one there can be, and names as long; compressed or not, it fits."""
    desk = Desk(shelf)
    desk.process = "p" * 200
    key = os.urandom(KEY_BYTES_MAX // 2).hex()

    def save(instances: Instances) -> None:
        instances.load(desk.process, key)
        instances.save(desk.instance(key, state="s" * 200))
        instances.set_timer(desk.timer("n" * 200, 0, key=key))

    assert await desk.handle(save) is None
    assert [timer.name for timer in await desk.timers(key)] == ["n" * 200]


async def test_batches_that_wait_for_each_others_instances_do_not_hang(shelf: Shelf) -> None:
    """The server ends the deadlock by failing one event; the other three are committed."""
    desk, both = Desk(shelf), threading.Barrier(2)

    def holding(key: str, *, first: bool) -> Callable[[Instances], None]:
        def change(instances: Instances) -> None:
            found = instances.load(desk.process, key)
            if first:
                both.wait(10.0)
            assert found is not None
            instances.save(found._replace(data=found.data + b"+"))

        return change

    for key in "ab":
        await desk.handle(lambda instances, key=key: instances.save(desk.instance(key, data=b"")))  # type: ignore[misc]
    leases = await shelf.store.acquire(shelf.group, [shelf.p, shelf.q], "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_turns, "INVOKING_S_MAX", 10.0)
        units = [
            [await desk.unit(lease, holding(key, first=key == keys[0])) for key in keys]
            for lease, keys in zip(leases, ("ab", "ba"), strict=True)
        ]
        outcomes = await asyncio.gather(
            *(desk.commit(lease, *some) for lease, some in zip(leases, units, strict=True))
        )
    failed = [each for some in outcomes for each in some if each is not None]
    assert [type(each) for each in failed] == [psycopg.errors.DeadlockDetected]
    assert sorted(each.data for each in await shelf.store.instances(desk.process)) == [b"+", b"++"]  # type: ignore[attr-defined]


async def test_several_processes_apply_and_start_at_once(postgres: str) -> None:
    """One makes the tables, the others find them; services' own CREATE TABLE IF NOT EXISTS do not collide."""
    schema, table = f"at once {uuid4().hex}", f"own_{uuid4().hex}"
    stores = [PostgresStore(postgres, schema=schema) for _ in range(5)]
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.apply() for store in stores))
    create = f"CREATE TABLE IF NOT EXISTS {table} (id serial PRIMARY KEY)"
    await asyncio.gather(*(store.run(lambda db: db.execute(create)) for store in stores))
    assert list(await stores[0].plan()) == []
    await asyncio.gather(*(store.close() for store in stores))


async def test_start_is_repeated_when_a_deadlock_ends_it(postgres: str) -> None:
    """`on_start` waits for a handler that waits for it: the handler goes on, the start is done all the same."""
    table, begun, calls = f"own_{uuid4().hex}", threading.Event(), 0
    store = PostgresStore(postgres, schema=f"deadlock {uuid4().hex}")
    await store.open()

    def start(db: psycopg.Connection[Any]) -> None:
        nonlocal calls
        calls += 1
        db.execute(f"UPDATE {table} SET number = number + 10 WHERE id = 1".encode())
        begun.set()
        db.execute(f"UPDATE {table} SET number = number + 10 WHERE id = 2".encode())

    try:
        with psycopg.connect(postgres) as handler:
            handler.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, number int)".encode())
            handler.execute(f"INSERT INTO {table} VALUES (1, 0), (2, 0)".encode())
            handler.commit()
            handler.execute(f"UPDATE {table} SET number = number + 1 WHERE id = 2".encode())
            starting = asyncio.create_task(store.run(start))
            await asyncio.to_thread(begun.wait, 20)
            await asyncio.sleep(0.3)  # so that it is the start that has waited for a second first, and is ended
            await asyncio.to_thread(handler.execute, f"UPDATE {table} SET number = number + 1 WHERE id = 1".encode())
            handler.commit()
            await starting
            rows = handler.execute(f"SELECT number FROM {table} ORDER BY id".encode()).fetchall()
    finally:
        await store.close()
    assert (rows, calls) == ([(11,), (11,)], 2)


async def test_members_clocks_do_not_matter(shelf: Shelf, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member is ten minutes ahead: the other's live claim is not taken for a dead one's."""
    lease, key = await shelf.lease(shelf.p), os.urandom(16)
    await shelf.claim(lease, key)
    ahead = another(shelf, postgres)
    await ahead.store.open()
    real_s = __import__("time").time
    monkeypatch.setattr("time.time", lambda: real_s() + 600.0)
    assert (await ahead.claim(await ahead.lease(shelf.q, "two"), key)).verdict == "busy"
    assert not (await shelf.store.commit(shelf.request((lease, key, 1)))).refused
    await ahead.store.close()


async def test_two_services_share_one_schema(shelf: Shelf, postgres: str) -> None:
    """Groups of the same partition do not fence each other, and see nothing of each other's outbox."""
    other = another(shelf, postgres)
    other.group = f"other-{uuid4()}"
    await other.store.open()
    one, two = await shelf.lease(shelf.p), await other.lease(shelf.p, "two")
    assert (one.epoch, two.epoch) == (1, 1)
    key, theirs = os.urandom(16), os.urandom(16)
    await shelf.claim(one, key)
    await other.claim(two, theirs)
    await shelf.store.commit(shelf.request((one, key, 1)))
    assert (len(await shelf.store.pending(one)), len(await other.store.pending(two))) == (1, 0)
    stats = await shelf.store.stats()
    assert (stats[shelf.group][:3], stats[other.group][:3]) == ((1, 0, 1), (0, 1, 0))
    await other.store.close()


async def test_of_ten_thousand_duplicates_one_is_fresh(shelf: Shelf) -> None:
    """Claimed at once, in slices, from two partitions over all connections; nobody deadlocks."""
    leases, key = [await shelf.lease(shelf.p), await shelf.lease(shelf.q, "two")], os.urandom(16)
    others = [os.urandom(16) for _ in range(20)]

    async def slice_of(lease_at: int) -> list[str]:
        lease = leases[lease_at]
        keys = [key] * 100 + (others if lease_at else others[::-1])
        requests = [ClaimRequest(lease.partition, each, b"12345678", "h", 0, "flow", 0) for each in keys]
        return [each.verdict for each in (await shelf.store.claim([lease], requests))[:100]]

    answers = await asyncio.gather(*(slice_of(number % 2) for number in range(100)))
    winners = {number % 2 for number, answer in enumerate(answers) if "fresh" in answer}
    assert len(winners) == 1, "two partitions were told that the key is theirs"
    loser = 1 - winners.pop()
    assert {verdict for number, answer in enumerate(answers) if number % 2 == loser for verdict in answer} == {"busy"}
    winner = leases[1 - loser]
    assert not (await shelf.store.commit(shelf.request((winner, key, 1)))).refused
    assert set(await slice_of(loser)) == {"done"}


async def test_a_slice_may_name_a_key_twice(shelf: Shelf) -> None:
    """Of one partition or of two, done or not, with the same payload or another."""
    leases = [await shelf.lease(shelf.p), await shelf.lease(shelf.q)]
    done, new = os.urandom(16), os.urandom(16)
    await shelf.claim(leases[0], done)
    await shelf.store.commit(shelf.request((leases[0], done, 1)))

    def ask(partition: TopicPartition, key: bytes, print_: bytes = b"12345678") -> ClaimRequest:
        return ClaimRequest(partition, key, print_, "h", 0, "flow", 0)

    requests = [ask(shelf.p, done), ask(shelf.p, done, b"another!"), ask(shelf.p, new), ask(shelf.p, new)]
    requests += [ask(shelf.q, new), ask(shelf.q, done)]
    verdicts = [each.verdict for each in await shelf.store.claim(leases, requests)]
    assert verdicts == ["done", "conflict", "fresh", "fresh", "busy", "done"]


async def test_retention_goes_by_the_groups_progress(shelf: Shelf) -> None:
    """Nothing until each partition was told; then what is older by the time to live, live claims excepted."""
    leases = [await shelf.lease(shelf.p), await shelf.lease(shelf.q)]
    keys = [os.urandom(16) for _ in range(6)]
    requests = [ClaimRequest(shelf.p, key, b"12345678", "h", at, "flow", at * 1_000) for at, key in enumerate(keys)]
    await shelf.store.claim(leases, requests)
    await shelf.store.commit(shelf.request(*((leases[0], key, 0) for key in keys[1:])))
    topics = [shelf.p.topic]
    await shelf.store.renew(leases, 30.0, {shelf.p: 10_000})
    assert await shelf.store.purge(shelf.group, topics, 1_000) == 0, "the second partition's progress is unknown"
    await shelf.store.renew(leases, 30.0, {shelf.q: 4_000})
    assert await shelf.store.purge(shelf.group, [*topics, "unheard of"], 1_000) == 0
    assert await shelf.store.purge("another group", topics, 1_000) == 0
    assert (await shelf.store.stats())[shelf.group] == (5, 1, 5, 0, 4_000)
    assert await shelf.store.purge(shelf.group, topics, 1_000) == 2
    assert await shelf.store.purge(shelf.group, topics, 1_000) == 0
    verdicts = [(await shelf.claim(leases[0], key)).verdict for key in keys]
    assert verdicts == ["fresh", "fresh", "fresh", "done", "done", "done"]


async def test_a_large_table_is_counted_by_a_sample(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are near the truth, and say so by being no more than that."""
    lease = await shelf.lease(shelf.p)
    for _ in range(4):
        requests = [ClaimRequest(shelf.p, os.urandom(16), b"12345678", "h", 0, "flow", 0) for _ in range(5_000)]
        await shelf.store.claim([lease], requests)
    assert (await shelf.store.stats())[shelf.group].claims == 20_000
    monkeypatch.setattr(postgres_reading, "COUNTED_BYTES_MAX", 2_000_000)
    assert 10_000 < (await shelf.store.stats())[shelf.group].claims < 30_000


async def test_keys_are_told_by_their_digests(shelf: Shelf) -> None:
    """Done, claimed, or not there: for whoever knows the digest of what they look for."""
    done, claimed, absent = os.urandom(16), os.urandom(16), os.urandom(16)
    lease = await shelf.lease(shelf.p)
    for key in (done, claimed):
        await shelf.claim(lease, key)
    await shelf.store.commit(CommitRequest({shelf.p: lease}, [Finished(shelf.p, 7, done, (), "handled")], {}))
    assert isinstance(shelf.store, PostgresStore)
    assert await shelf.store.keys(shelf.group, [done, claimed, absent]) == {done: True, claimed: False}
