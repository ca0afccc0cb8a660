"""What every released version has stored is read, migrated and gone on with; `make keep-stored` keeps a release's."""

import asyncio
import json
import re
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis as redis_client
from psycopg import sql
from pydantic import TypeAdapter

from choreo.core.definition import Definition
from choreo.flow.model import from_json
from choreo.flow.released import against
from choreo.opening import open_transport
from choreo.outbox import Outbox
from choreo.ports import StoreStats
from choreo.record import Record
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.stores.changelog.index import KeyIndex
from choreo.stores.changelog.packing import unpack
from choreo.stores.postgres import PostgresStore
from choreo.stores.redis import RedisStore
from choreo.stores.sqlite import SqliteStore
from choreo.testing import TestApp
from choreo.testing.clock import START_S, VirtualClock
from tests.upgrade import stored_dumps as dumps
from tests.upgrade.stored_app import Asked, make_app
from tests.upgrade.stored_flows import ESCALATED, OVERDUE, flows_go_on, timers_go_off
from tests.upgrade.stored_story import GROUP, HANDLED, LETTER, PRINT, TIME_MS, P, goes_on

ROOT = Path(__file__).parents[2]
RELEASES = sorted((ROOT / "tests" / "upgrade" / "stored").iterdir())
LATER_S = 7200.0
"""Long enough for members that were killed to be given up."""
FILES = {
    *("embedded.sql", "sqlite.sql", "postgres.sql", "postgres-log.sql", "redis.json", "changelog.json", "outbox.sql"),
    *("capability.json", "definitions.json", "definitions-short.json", "sqlite-statements.json"),
}
HERE = Path(__file__).parent
STATEMENTS = [HERE / "statements" / "sqlite-4.json", *(path / "sqlite-statements.json" for path in RELEASES)]
"""Of a choreo whose schema had version 4, and of every release."""

each_release = pytest.mark.parametrize("kept", RELEASES, ids=lambda path: path.name)


def later(**settings: Any) -> TestApp:
    """Today's app, some hours after the old release was killed."""
    t = TestApp(make_app(), **settings)
    t.clock = VirtualClock(START_S + LATER_S)
    return t


def test_there_is_all_that_every_release_stored() -> None:
    """Of this version too, before it is released."""
    said = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {own, *said} == {path.name for path in RELEASES}
    for path in RELEASES:
        assert {each.name for each in path.iterdir()} == FILES


@each_release
async def test_flows_in_an_embedded_file_go_on(kept: Path) -> None:
    """Sagas, processes with what they deferred, joins, watches, timers, retries, queues, dead letters, replays."""
    with dumps.in_memory((kept / "embedded.sql").read_text()):
        async with later() as t:
            await flows_go_on(t)
            await t.advance(days=4)
            await timers_go_off(t, {**ESCALATED, **OVERDUE})


@each_release
async def test_a_sqlite_store_goes_on(kept: Path, tmp_path: Path) -> None:
    """Keys, claims, the outbox, leases, a queue, an instance with its timer and what was done to it by hand."""
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        db.executescript((kept / "sqlite.sql").read_text())
    store = SqliteStore(Database(str(tmp_path / "store.db")), SystemClock(), with_log=False)
    await store.open()
    await store.apply()
    await goes_on(store)
    await store.close()


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_an_older_choreo_goes_on_in_a_file_that_is_migrated_meanwhile(path: Path, tmp_path: Path) -> None:
    """Statement by statement as it executes them, and today's finds what it did."""
    kept = json.loads(path.read_bytes())  # noqa: ASYNC240  # nothing else runs
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as older:
        older.executescript(kept["made"])
        store = SqliteStore(Database(str(tmp_path / "store.db")), SystemClock(), with_log=False)
        await store.open()
        await store.apply()
        assert await store.plan() == []
        for statement in kept["executed"]:
            older.execute(statement).fetchall()
        assert (await store.stats())[GROUP] == StoreStats(**kept["stats"])
        (lease,) = await store.acquire(GROUP, [P], "newest")
        assert lease.epoch == 3
        assert await store.pending(lease) == []
        await store.close()


@each_release
async def test_a_postgres_store_goes_on(kept: Path, postgres: str) -> None:
    """The same, and the flows whose log is beside it."""
    schema = f"stored_{uuid4().hex[:12]}"
    dumps.load_postgres(postgres, schema, (kept / "postgres.sql").read_text())
    timer = sql.Identifier(schema, "timer")
    with psycopg.connect(postgres, autocommit=True) as db:  # its timers go by the server's clock
        db.execute(sql.SQL("UPDATE {} SET due_ms = 4000000000000, wake_ms = 4000000000000").format(timer))
    store = PostgresStore(postgres, schema=schema)
    await store.open()
    await store.apply()
    await goes_on(store)
    await store.close()
    url = f"{postgres}?choreo_schema={schema}"
    with dumps.in_memory((kept / "postgres-log.sql").read_text()):
        async with later(store=url) as t:
            await flows_go_on(t)
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(sql.SQL("UPDATE {} SET due_ms = 0, wake_ms = 0").format(timer))
    async with later(store=url) as t:
        await timers_go_off(t, ESCALATED)  # a watch has a second timer, which goes by the server's clock, too


@each_release
async def test_a_redis_store_goes_on(kept: Path, redis: str) -> None:
    """Keys, claims and leases."""
    prefix = f"stored-{uuid4().hex[:12]}"
    with closing(redis_client.Redis.from_url(redis)) as client:
        dumps.load_redis(client, prefix, (kept / "redis.json").read_text())
    store = RedisStore(redis, prefix=prefix)
    await store.open()
    await store.apply()
    await goes_on(store)
    await store.close()


@each_release
def test_a_changelog_is_restored(kept: Path) -> None:
    """Each key with its fingerprint and its time."""
    index = KeyIndex()
    for key, value in json.loads((kept / "changelog.json").read_text()):
        record = Record("changes", 0, 0, bytes.fromhex(key), bytes.fromhex(value), (), 0)
        packed = unpack(record)
        assert (packed.newest_ms, packed.first_offset, packed.record_key) == (TIME_MS + 90_000, 7, record.key)
        index.add(packed)
    assert [index.fingerprint(digest) for digest in (HANDLED, LETTER)] == [PRINT, PRINT]
    assert len(index) == 2


@each_release
async def test_an_outbox_is_relayed(kept: Path, tmp_path: Path) -> None:
    """Under the id that it was added with."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as db:
        db.executescript((kept / "outbox.sql").read_text())
    transport = open_transport(f"embedded:{tmp_path / 'log.db'}")
    await transport.open()
    await transport.create_topics([spec for spec in make_app().topic_specs() if spec.name == "asked"])
    records: list[Record] = []
    async with Outbox("shop").relaying(f"sqlite:{tmp_path / 'shop.db'}", transport), asyncio.timeout(20):
        while not records:
            records = list(await transport.scan(["asked"], since_ms=0))
            await asyncio.sleep(0.02)
    await transport.close()
    (work,) = [each for each in make_app().router("desk").route(records[0]).work if each.bound][:1]
    assert work.event == Asked(id="o-1", kind="plain", note="ä")
    assert work.envelope is not None
    assert (work.envelope.id, work.envelope.source) == ("id of o-1", "/shop")


@each_release
def test_a_capability_file_is_compared(kept: Path) -> None:
    """Nothing of it is gone."""
    released = from_json((kept / "capability.json").read_text(), "the release")
    assert against(make_app().capability(), released) == []


@each_release
@pytest.mark.parametrize("name", ["definitions.json", "definitions-short.json"])
def test_definitions_are_read(kept: Path, name: str) -> None:
    """As they were exported, and as somebody else writes them, without what goes without saying."""
    read = TypeAdapter(list[Definition]).validate_json((kept / name).read_text())
    assert read == [process.newest.definition for process in make_app().processes.values()]
