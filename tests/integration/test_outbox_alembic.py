"""Alembic makes the outbox's table from the application's MetaData, the same as the statement does."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, MetaData, create_engine, text
from sqlalchemy.orm import Session

from choreo.outbox import Outbox
from choreo.outbox.rows import open_rows
from choreo.outbox.table import Dialect
from handlers.web_orders.tables import outbox
from tests.integration.outbox_stage import ROOT, Counted, fresh_database, fresh_schema


@contextmanager
def connected(database: str) -> Iterator[Connection]:
    """A connection in autocommit mode."""
    driver, path = ("postgresql+psycopg:", "") if database.startswith("postgresql") else ("sqlite+pysqlite:", "///")
    engine = create_engine(driver + path + database.partition(":")[2], isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@pytest.fixture(params=["postgresql", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str | None, Dialect]]:
    """A database, the schema in it, and its dialect."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/shop.db", None, "sqlite"
        return
    url = request.getfixturevalue("postgres")
    with fresh_schema(url) as schema:
        yield url, schema, "postgresql"


def context_of(connection: Connection, schema: str | None) -> MigrationContext:
    """What `context.configure(...)` makes in an env.py, for one schema."""

    def only(name: str | None, type_: str, _: Any) -> bool:
        return type_ != "schema" or name == schema

    options = {
        "include_schemas": schema is not None,
        "include_name": only,
        "compare_server_default": schema is not None,
    }
    return MigrationContext.configure(connection, opts=options)


async def test_migration_makes_the_table(place: tuple[str, str | None, Dialect]) -> None:
    """What autogenerate writes is run; then nothing is left to do, and the table does its work."""
    database, schema, dialect = place
    outbox, metadata = Outbox("shop", schema=schema), MetaData()
    outbox.attach(metadata)
    with connected(database) as connection:
        context = context_of(connection, schema)
        upgrade = produce_migrations(context, metadata).upgrade_ops
        assert upgrade is not None
        exec(f"if True:\n    {render_python_code(upgrade)}", {"op": Operations(context), "sa": sqlalchemy})
        assert compare_metadata(context, metadata) == []
        if dialect == "postgresql":
            options = connection.scalar(
                text(f"SELECT reloptions FROM pg_class WHERE oid = '{schema}.choreo_outbox'::regclass")
            )
            assert "autovacuum_vacuum_threshold=5000" in options
        with Session(connection) as session:
            outbox.add(session, Counted(account="ann", number=1))
            outbox.add(session, Counted(account="ann", number=2))
            session.commit()
    rows = open_rows(database, outbox.table)
    await rows.open()
    found = await rows.take(rows_max=10, bytes_max=1_000_000, without=())
    await rows.close()
    assert [(row.position, row.key) for row in found] == [(1, b"ann"), (2, b"ann")]


def test_statement_and_metadata_are_one_table(place: tuple[str, str | None, Dialect]) -> None:
    """Of a table that `ddl` made Alembic has nothing to change."""
    database, schema, dialect = place
    outbox, metadata = Outbox("shop", schema=schema), MetaData()
    outbox.attach(metadata)
    with connected(database) as connection:
        for _ in range(2):
            connection.execute(text(outbox.ddl(dialect)))
        assert compare_metadata(context_of(connection, schema), metadata) == []


def test_application_migrates_by_the_command(postgres: str, tmp_path: Path) -> None:
    """Alembic's own project and commands on handlers/web_orders: what they write makes the tables, and takes them."""
    with fresh_database(postgres) as url:

        def alembic(*arguments: str) -> str:
            command = [sys.executable, "-m", "alembic", *arguments]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
            assert run.returncode == 0, run.stdout + run.stderr
            return run.stdout

        alembic("init", "migrations")
        env, settings = tmp_path / "migrations" / "env.py", tmp_path / "alembic.ini"
        lines = "from handlers.web_orders.tables import Base\n\ntarget_metadata = Base.metadata"
        env.write_text(env.read_text().replace("target_metadata = None", lines))
        url = url.replace("postgresql:", "postgresql+psycopg:")
        settings.write_text(
            re.sub("^sqlalchemy.url = .*$", f"sqlalchemy.url = {url}", settings.read_text(), flags=re.M)
        )
        alembic("revision", "--autogenerate", "-m", "tables")
        alembic("upgrade", "head")
        assert "No new upgrade operations detected" in alembic("check")
        with connected(url) as connection, Session(connection) as session:
            outbox.add(session, Counted(account="ann", number=1))
            session.commit()
            assert session.scalar(text("SELECT count(*) FROM choreo_outbox")) == 1
            assert session.scalar(text("SELECT count(*) FROM web_order")) == 0
        alembic("downgrade", "base")
        with connected(url) as connection:
            assert sqlalchemy.inspect(connection).get_table_names() == ["alembic_version"]
