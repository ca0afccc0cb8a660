"""The schema of SQLite files: new, of the first version, of a newer one, and applied by two at once."""

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from choreo.errors import ConfigurationError
from choreo.parked import Waits
from choreo.ports import Claimed, ClaimRequest, CommitRequest, Finished
from choreo.record import ProducerRecord, TopicPartition
from choreo.runtime.clock import SystemClock
from choreo.sqlite import schema
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from tests.sqlite_versions import FIRST, KEY, make_first, make_fourth, make_third

P = TopicPartition("orders", 0)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """A store on the file."""
    store = SqliteStore(Database(str(path)), SystemClock(), with_log=False)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def tables(path: Path) -> dict[str, str]:
    """What the file says of its tables and indexes, without the spaces."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    return {name: "".join(sql.split()).replace("IFNOTEXISTS", "") for name, sql in rows}


def columns(path: Path) -> dict[str, list[str]]:
    """Columns of each table, in order."""
    with closing(sqlite3.connect(path)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in sorted(names)}


async def test_new_file_has_the_newest_schema(tmp_path: Path) -> None:
    """There is nothing left to plan."""
    async with opened(tmp_path / "new.db") as store:
        assert await store.plan() == []
    assert tables(tmp_path / "new.db").keys() > {"choreo_key", "choreo_lease", "choreo_outbox", "choreo_schema"}


async def test_file_of_the_first_version_is_brought_up_to_date_with_its_keys(tmp_path: Path) -> None:
    """It is not touched by opening it; afterwards its columns are those of a new one, and an old key is known."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    make_first(old)
    async with opened(new):
        pass
    async with opened(old) as store:
        assert len(await store.plan()) > 2
        assert "choreo_schema" not in tables(old)
        await store.apply()
        assert await store.plan() == []
        (lease,) = await store.acquire("kitchen", [P], "me")
        assert lease.epoch == 8  # the first version's file stood at 7
        request = ClaimRequest(P, KEY, b"12345678", "kitchen.pour", 0, "flow", 0)
        assert await store.claim([lease], [request]) == [Claimed("done")]
        assert await store.renew([lease], 30.0, {P: 5_000}) == frozenset()
        assert (await store.stats())["kitchen"].progress_ms == 5_000
    assert columns(old) == columns(new)
    assert tables(old)["choreo_key_time"] == tables(new)["choreo_key_time"]


async def test_file_of_the_third_version_gets_the_tables_of_processes(tmp_path: Path) -> None:
    """A key, a lease's epoch and an emit that is not sent stay; it is then as a new one is, and used as one."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    make_third(old)
    async with opened(new):
        pass
    async with opened(old) as store:
        assert [statement.split()[:3] for statement in await store.plan()][:4] == [
            ["CREATE", "TABLE", "choreo_instance"],
            ["CREATE", "INDEX", "choreo_instance_state"],
            ["CREATE", "TABLE", "choreo_timer"],
            ["CREATE", "INDEX", "choreo_timer_wake"],
        ]
        await store.apply()
        assert await store.plan() == []
        (lease,) = await store.acquire("kitchen", [P], "me")
        assert lease.epoch == 8
        assert [record.value for _, record in await store.pending(lease)] == [b"1"]
        request = ClaimRequest(P, KEY, b"12345678", "kitchen.pour", 0, "flow", 0)
        assert await store.claim([lease], [request]) == [Claimed("done")]
        assert await store.instances("approval") == []
        assert await store.due(["approval"], limit=1, claim_s=1.0) == ([], math.inf)
    assert tables(old) == tables(new)


async def test_file_of_the_fourth_version_gets_the_index_of_retention(tmp_path: Path) -> None:
    """Nothing else is changed, and what has ended is found by it: oldest first, those in flight not looked at."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    make_fourth(old)
    async with opened(new):
        pass
    async with opened(old) as store:
        assert ["CREATE", "INDEX", "choreo_instance_ended"] in [each.split()[:3] for each in await store.plan()]
        await store.apply()
        assert await store.plan() == []
        assert [(each.key, each.ended) for each in await store.instances("approval")] == [
            ("E-1", True),
            ("E-2", False),
        ]
        (lease,) = await store.acquire("kitchen", [P], "me")
        await store.renew([lease], 30.0, {P: 5_000})
        assert await store.purge_ended("approval", "kitchen", ["orders"], 1_000) == 1
        assert [each.key for each in await store.instances("approval")] == ["E-2"]
    assert tables(old) == tables(new)


async def test_file_of_the_fourth_version_gets_queues(tmp_path: Path) -> None:
    """What was there stays; a key can be parked then."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    make_third(old)
    with closing(sqlite3.connect(old, isolation_level=None)) as db:
        for statement in schema.STEPS[3]:
            db.execute(statement)
        db.execute("UPDATE choreo_schema SET version = 4")
    async with opened(new):
        pass
    async with opened(old) as store:
        made = [statement.split()[2] for statement in await store.plan() if statement.startswith("CREATE")]
        assert made == ["choreo_instance_ended", "choreo_parked", "choreo_parked_queue", "choreo_parked_wake", "IF"]
        await store.apply()
        (lease,) = await store.acquire("kitchen", [P], "me")
        request = ClaimRequest(P, b"fifteen bytes of", b"12345678", "kitchen.pour", 0, "flow", 0, queue=KEY)
        assert await store.claim([lease], [request]) == [Claimed("fresh")]
        waits = Waits(KEY, KEY, "pour", ProducerRecord("kitchen.replay", b"k", b"v", ()), "handler_failed")
        done = Finished(P, 0, request.digest, (), "parked:handler_failed", parking=waits)
        await store.commit(CommitRequest({P: lease}, [done], {P: 1}))
        assert [head.record for head in await store.parked("kitchen")] == [waits.record]
    assert tables(old) == tables(new)


async def test_two_apply_at_once(tmp_path: Path) -> None:
    """One does it, the others find it done; again and again."""
    for number in range(5):
        path = tmp_path / f"{number}.db"
        make_first(path)
        async with opened(path) as one, opened(path) as two, opened(path) as three:
            await asyncio.gather(one.apply(), two.apply(), three.apply())
            assert [await each.plan() for each in (one, two, three)] == [[], [], []]


async def test_apply_that_fails_half_way_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one transaction: the file is of the old version still, and can be applied again."""
    make_first(tmp_path / "old.db")
    before = tables(tmp_path / "old.db")
    async with opened(tmp_path / "old.db") as store:
        with monkeypatch.context() as patch:
            patch.setattr(schema, "STEPS", {1: (*schema.STEPS[1], "CREATE TABLE no (")})
            with pytest.raises(Exception, match="failed: incomplete input"):
                await store.apply()
        assert tables(tmp_path / "old.db") == before
        await store.apply()
        assert await store.plan() == []


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("99", "has schema version 99, and this choreo knows"),
        (None, "does not say which"),
        ("'x'", "does not say which"),
    ],
)
async def test_file_of_another_version_is_refused(tmp_path: Path, version: str | None, said: str) -> None:
    """A newer file, or one whose version cannot be read, is named with the next step and left as it is."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE choreo_schema (version)")
        if version:
            db.execute(f"INSERT INTO choreo_schema VALUES ({version})")
    before = tables(path)
    with pytest.raises(ConfigurationError, match=rf"other\.db .*{said}.*: (run|give)"):
        async with opened(path) as store:
            await store.plan()
    assert tables(path) == before


def test_the_first_version_is_told_from_a_file_of_something_else(tmp_path: Path) -> None:
    """A file with an application's own tables, or with a log only, counts as new."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE customer (name TEXT)")
        db.execute("CREATE TABLE choreo_topic (name TEXT)")
        assert schema.version(db) == 0
        for statement in FIRST:
            db.execute(statement)
        assert schema.version(db) == 1
