"""Keep what this version of choreo stores, in tests/upgrade/stored/VERSION, for later versions to read.

    python scripts/keep_stored.py        # VERSION is pyproject.toml's; what is kept of it already is not overwritten

Once a release, by `make keep-stored`. Starts a PostgreSQL and a Redis of its own.
"""

import asyncio
import sqlite3
import sys
import tempfile
import tomllib
from contextlib import closing
from pathlib import Path

import orjson
import redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from choreo.flow.model import to_json  # noqa: E402
from choreo.outbox import Outbox  # noqa: E402
from choreo.runtime.clock import SystemClock  # noqa: E402
from choreo.sqlite.database import Database  # noqa: E402
from choreo.stores.changelog.packing import Key, pack  # noqa: E402
from choreo.stores.postgres import PostgresStore  # noqa: E402
from choreo.stores.redis import RedisStore  # noqa: E402
from choreo.stores.sqlite import SqliteStore  # noqa: E402
from choreo.testing import TestApp  # noqa: E402
from tests.postgres_server import fresh_postgres  # noqa: E402
from tests.redis_server import LocalRedis  # noqa: E402
from tests.upgrade import stored_dumps as dumps  # noqa: E402
from tests.upgrade.stored_app import Asked, make_app  # noqa: E402
from tests.upgrade.stored_flows import leave_flows  # noqa: E402
from tests.upgrade.stored_story import GROUP, HANDLED, LETTER, PRINT, TIME_MS, goes_on, leave  # noqa: E402


async def of_sqlite(folder: Path, scratch: Path) -> None:
    """A store beside Kafka, and the file of an embedded broker."""
    store = SqliteStore(Database(str(scratch / "store.db")), SystemClock(), with_log=False)
    await store.open()
    await store.apply()
    await leave(store)
    with closing(sqlite3.connect(scratch / "store.db")) as db:
        (folder / "sqlite.sql").write_text(dumps.sqlite_text(db))
    await store.close()
    async with TestApp(make_app()) as t:
        await leave_flows(t)
        assert t.running.database is not None
        (folder / "embedded.sql").write_text(t.running.database.read_inline(dumps.sqlite_text))


async def statements_of_sqlite(folder: Path, scratch: Path) -> None:
    """What is executed on a store's file, values and all: later schemas have to bear it while this one still runs."""
    database, said = Database(str(scratch / "statements.db")), list[str]()
    store = SqliteStore(database, SystemClock(), with_log=False)
    await store.open()
    await store.apply()
    made = await database.read(dumps.sqlite_text)
    await database.read(lambda db: db.set_trace_callback(said.append))
    await leave(store)
    await goes_on(store)
    kept = {"made": made, "executed": said, "stats": (await store.stats())[GROUP]._asdict()}
    await store.close()
    (folder / "sqlite-statements.json").write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2))


async def of_postgres(folder: Path, url: str) -> None:
    """A store, and the log of the flows that it has the rows of."""
    schema = dumps.SCHEMA
    store = PostgresStore(url, schema=schema)
    await store.open()
    made_by = list(await store.plan())
    await store.apply()
    await leave(store)
    async with TestApp(make_app(), store=f"{url}?choreo_schema={schema}") as t:
        await leave_flows(t)
        assert t.running.database is not None
        (folder / "postgres-log.sql").write_text(t.running.database.read_inline(dumps.sqlite_text))
        (folder / "postgres.sql").write_text(dumps.postgres_text(url, schema, made_by))
    await store.close()


async def of_redis(folder: Path, url: str) -> None:
    """A store."""
    store = RedisStore(url, prefix=dumps.PREFIX)
    await store.open()
    await store.apply()
    await leave(store)
    with closing(redis.Redis.from_url(url)) as client:
        (folder / "redis.json").write_text(dumps.redis_text(client, dumps.PREFIX))
    await store.close()


def of_the_rest(folder: Path, scratch: Path) -> None:
    """A changelog's records, an application's outbox, a capability file, definitions of processes."""
    keys = [
        Key(HANDLED, PRINT, 7, TIME_MS, "handled"),
        Key(LETTER, PRINT, 8, TIME_MS + 90_000, "dead_letter:rejected"),
    ]
    packed = [(found.record_key.hex(), value.hex()) for found, value in pack(keys)]
    (folder / "changelog.json").write_bytes(orjson.dumps(packed, option=orjson.OPT_INDENT_2))
    outbox = Outbox("shop")
    with closing(sqlite3.connect(scratch / "shop.db")) as db:
        db.executescript(outbox.ddl("sqlite"))
        with db:
            outbox.add(db, Asked(id="o-1", kind="plain", note="ä"), id="id of o-1")
        (folder / "outbox.sql").write_text(dumps.sqlite_text(db))
    app = make_app()
    (folder / "capability.json").write_text(to_json(app.capability()))
    definitions = [each.newest.definition for each in app.processes.values()]
    for name, short in (("definitions", False), ("definitions-short", True)):
        data = [each.model_dump(mode="json", exclude_defaults=short) for each in definitions]
        (folder / f"{name}.json").write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2))


def main() -> int:
    """0: kept; 1: it was kept before."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    folder = ROOT / "tests" / "upgrade" / "stored" / version
    if folder.exists():
        print(
            f"{folder.relative_to(ROOT)} is there, and what was stored does not change",
            file=sys.stderr,
        )
        return 1
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        asyncio.run(of_sqlite(folder, scratch))
        asyncio.run(statements_of_sqlite(folder, scratch))
        with fresh_postgres() as postgres:
            asyncio.run(of_postgres(folder, postgres.url))
        server = LocalRedis(scratch)
        server.start()
        try:
            asyncio.run(of_redis(folder, server.url))
        finally:
            server.kill()
        of_the_rest(folder, scratch)
    for path in sorted(folder.iterdir()):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
