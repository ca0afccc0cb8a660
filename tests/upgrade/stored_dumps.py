"""What is stored, as text that can be kept beside the code and loaded again: of SQLite, PostgreSQL and Redis."""

import base64
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

import psycopg
import pytest
import redis
from psycopg import sql

from choreo.sqlite.database import Database

SCHEMA = "stored_by_release"
"""Of PostgreSQL, in the text; another is put in its place when it is loaded."""
PREFIX = "stored-by-release"
"""The same of Redis."""


def sqlite_text(db: sqlite3.Connection) -> str:
    """Tables and rows."""
    with closing(sqlite3.connect(":memory:")) as plain:
        db.backup(plain)
        return "\n".join(plain.iterdump()) + "\n"


@contextmanager
def in_memory(text: str) -> Iterator[None]:
    """Databases in memory that are opened here begin with what the text holds."""
    opened = Database._open

    def loaded(self: Database, schema: str) -> None:
        fresh = self._connection is None
        opened(self, "")
        if fresh and self._connection is not None:
            self._connection.executescript(text)
        opened(self, schema)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "_open", loaded)
        yield


def postgres_text(url: str, schema: str, made_by: list[str]) -> str:
    """The statements that made the schema, the row of its version among them, then the other rows."""
    lines = [each.replace(schema, SCHEMA).rstrip(";") for each in made_by]
    with psycopg.connect(url) as db:
        tables = db.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s AND table_name <> 'version' "
            "ORDER BY table_name",
            (schema,),
        ).fetchall()
        for (table,) in tables:
            columns = [
                row[0]
                for row in db.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s "
                    "AND is_generated = 'NEVER' ORDER BY ordinal_position",
                    (schema, table),
                )
            ]
            into, names = sql.Identifier(SCHEMA, table), sql.SQL(", ").join(map(sql.Identifier, columns))
            rows = db.execute(sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(schema, table)))
            insert = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})")
            for row in rows.fetchall():
                values = sql.SQL(", ").join(map(sql.Literal, row))
                lines.append(insert.format(into, names, values).as_string(db))
    return ";\n".join(lines) + ";\n"


def load_postgres(url: str, schema: str, text: str) -> None:
    """Make it again under another name; what is numbered goes on above what is there."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(text.replace(SCHEMA, schema).encode())
        numbered = db.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = %s AND is_identity = 'YES'",
            (schema,),
        ).fetchall()
        for table, column in numbered:
            where, number = sql.Identifier(schema, table), sql.Identifier(column)
            sequence = sql.SQL("pg_get_serial_sequence({}, {})").format(where.as_string(db), column)
            next_ = sql.SQL("SELECT setval({}, coalesce(max({}), 0) + 1, false) FROM {}")
            db.execute(next_.format(sequence, number, where))


def _words(value: Any) -> Any:
    """Bytes as text in base64, whatever they are in."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return [[_words(name), _words(each)] for name, each in sorted(value.items())]
    if isinstance(value, (list, tuple, set)):
        return [_words(each) for each in (sorted(value) if isinstance(value, set) else value)]
    return value


def redis_text(client: "redis.Redis", prefix: str) -> str:
    """Every key of a prefix with its type and what it holds."""
    read: dict[str, Callable[[bytes], Any]] = {
        "string": client.get,
        "hash": client.hgetall,
        "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        "list": lambda key: client.lrange(key, 0, -1),
    }
    found = []
    for key in sorted(cast("list[bytes]", client.keys(f"*{prefix}*"))):
        kind = cast("bytes", client.type(key)).decode()
        found.append([key.decode().replace(prefix, PREFIX), kind, _words(read[kind](key))])
    return json.dumps(found, indent=1) + "\n"


def load_redis(client: "redis.Redis", prefix: str, text: str) -> None:
    """Make it again under another prefix."""
    raw = base64.b64decode
    for name, kind, value in json.loads(text):
        key = name.replace(PREFIX, prefix)
        if kind == "string":
            client.set(key, raw(value))
        elif kind == "hash":
            client.hset(key, mapping={raw(field): raw(each) for field, each in value})
        elif kind == "set":
            client.sadd(key, *map(raw, value))
        elif kind == "zset":
            client.zadd(key, {raw(member): score for member, score in value})
        else:
            client.rpush(key, *map(raw, value))
