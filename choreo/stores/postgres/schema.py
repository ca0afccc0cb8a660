"""Names and tables of the PostgreSQL store: what they are called, what is missing of them, how they are made."""

import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from choreo.errors import ConfigurationError

VERSION = 1
"""Raised only by what an older choreo could not work with. Tables it does not know (`_ADDED`) are none of that: they
can be made while it runs, and it can be started again beside them."""
IDENTIFIER_BYTES_MAX = 63
_FIRST = ("version", "key", "lease", "outbox", "guard")
_ADDED = {
    "instances": ("instance", "timer"),
    "interventions": ("intervention",),
    "retention": ("instance_ended",),
    "parked": ("parked",),
}
"""Tables and indexes that were added later, by the name of the file that makes them; what is named here of a file is
all there, or none of it."""
_PLACE = re.compile(r"\{(\w+)\}")
_INDEXES = (
    *("key_age", "key_span", "outbox_input"),
    *("instance_state", "timer_wake", "intervention_instance", "intervention_flow", "instance_ended"),
    *("parked_queue", "parked_wake"),
)
_NAMED = (*_FIRST, *(name for names in _ADDED.values() for name in names))
"""What tells which files are still to be executed."""


class Names:
    """What the store's schema, tables and indexes are called.

    Args:
        schema: The schema they are in.
        prefix: Put before each table's name.

    Raises:
        ConfigurationError: PostgreSQL cannot take a name as it is.
    """

    def __init__(self, schema: str, prefix: str) -> None:
        self.schema = checked("schema", schema)
        self.tables = {name: checked("table", prefix + name) for name in _NAMED if name not in _INDEXES}
        indexes = {name: checked("index", prefix + name) for name in _INDEXES}
        self.there = {name: indexes.get(name) or self.tables[name] for name in _NAMED}
        whole = {name: sql.Identifier(schema, table) for name, table in self.tables.items()}
        whole |= {name: sql.Identifier(index) for name, index in indexes.items()}
        self._parts = {name: identifier.as_string(None) for name, identifier in whole.items()}
        self.spans = sql.Identifier(schema, indexes["key_span"]).as_string(None)
        text = "\0".join((schema, prefix)).encode("utf-8", "surrogatepass")
        # Signed 64 bits, as advisory locks are numbered.
        self.lock = int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"choreo").digest(), signed=True)

    def fill(self, query: str) -> str:
        """A statement without parameters, {key}, {lease} and so on replaced by the quoted names."""
        return _PLACE.sub(lambda found: self._parts[found[1]], query)

    def parameterised(self, query: str) -> bytes:
        """The same of a statement with parameters, in which a name's own percent sign has to be doubled."""
        return _PLACE.sub(lambda found: self._parts[found[1]].replace("%", "%%"), query).encode()


def checked(kind: str, name: str) -> str:
    """A name PostgreSQL takes as it is; it would cut a longer one silently."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"the {kind} name {name!r} is no valid Unicode; choose another") from None
    if not name or "\0" in name:
        raise ConfigurationError(f"the {kind} name {name!r} is empty or has a NUL; choose another")
    if length > IDENTIFIER_BYTES_MAX:
        raise ConfigurationError(
            f"the {kind} name {name!r} has {length} bytes, PostgreSQL takes {IDENTIFIER_BYTES_MAX}; choose a shorter "
            "schema or prefix"
        )
    return name


def ddl(names: Names, file: str) -> list[str]:
    """Every statement of a file beside this one, in order."""
    text = resources.files("choreo.stores.postgres").joinpath(f"{file}.sql").read_text("utf-8")
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return [names.fill(part.strip()) for part in bare.split(";\n") if part.strip()]


async def missing(connection: psycopg.AsyncConnection[Any], names: Names) -> Sequence[str]:
    """The statements still to do.

    Raises:
        ConfigurationError: The tables are of a newer version, or are others of the same name.
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(
            "SELECT ARRAY(SELECT c.relname::text FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid "
            "AND c.relname::text = ANY(%s::text[])) FROM pg_catalog.pg_namespace n WHERE n.nspname = %s",
            (list(names.there.values()), names.schema),
        )
        found = await cursor.fetchone()
        there: list[str] = [] if found is None else found[0]
        added = [statement for file in _ADDED for statement in ddl(names, file)]
        if not there:
            create = f"CREATE SCHEMA {sql.Identifier(names.schema).as_string(None)}"
            return ([create] if found is None else []) + ddl(names, "schema") + added
        strange = ConfigurationError(
            f"the schema {names.schema!r} has tables {sorted(there)} that are not of choreo's making; "
            "choose another schema or prefix"
        )
        absent = {name for name, relation in names.there.items() if relation not in there}
        lacking = [file for file, added in _ADDED.items() if absent.issuperset(added)]
        if absent != {name for file in lacking for name in _ADDED[file]}:
            raise strange
        try:
            await cursor.execute(names.fill("SELECT max(version) FROM {version}").encode())
        except psycopg.errors.UndefinedColumn:
            raise strange from None
        row = await cursor.fetchone()
    version = None if row is None else row[0]
    if version is None:
        raise strange
    if version > VERSION:
        raise ConfigurationError(
            f"the schema {names.schema!r} is of version {version}, this choreo knows {VERSION}; upgrade choreo"
        )
    return [statement for file in lacking for statement in ddl(names, file)]
