"""What an application has of the outbox: events added in its own transactions."""

import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, overload

import orjson

from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.outbox.adding import Asynchronous, AsyncpgConnection, Blocking, adder
from choreo.outbox.relay import Relay, RelaySettings
from choreo.outbox.table import TABLE, Dialect, OutboxTable
from choreo.ports import Transport
from choreo.publisher.stamping import Reference, stamped, topic_names
from choreo.telemetry.current import current_context
from choreo.topic import wire_record

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table

EVENT_BYTES_MAX = 1_000_000
"""Kafka's topics take 1 MiB unless told otherwise; what is larger would hold up all that is behind it."""


class Outbox:
    """Events that are published if, and only if, the application's transaction commits.

    `choreo relay` (or `relaying`, in the application's process) moves them to the log: each at least once, under the
    id it was added with. A relay that dies between sending and deleting leaves a duplicate there, which services
    drop by its id.

    Args:
        name: CloudEvents source of what is added, `/<name>`: it and the id are what a duplicate is known by.
        schema: PostgreSQL's schema of the table; the first of the search path unless given.
        table: The table's name.
        topics: Logical to actual topic name, as `App(topics=...)`; `CHOREO_TOPIC_PREFIX` is put before either.
        notify: Wake the relay by NOTIFY when a transaction commits. PostgreSQL makes transactions that notify commit
            one after the other; without it the relay looks every second.
        event_bytes_max: Larger events are refused when they are added.
    """

    def __init__(
        self,
        name: str,
        *,
        schema: str | None = None,
        table: str = TABLE,
        topics: Mapping[str, str] | None = None,
        notify: bool = True,
        event_bytes_max: int = EVENT_BYTES_MAX,
    ) -> None:
        self.table = OutboxTable(schema, table)
        self._source = f"/{name}"
        self._topic = topic_names(topics)
        self._notify = notify
        self._event_bytes_max = event_bytes_max

    def attach(self, metadata: "MetaData") -> "Table":
        """Add the table to the MetaData of the application's models, for Alembic to find it there."""
        return self.table.attach(metadata)

    def ddl(self, dialect: Dialect = "postgresql") -> str:
        """The statement that makes the table, for applications without SQLAlchemy."""
        return self.table.create(dialect)

    @overload
    def add(
        self,
        connection: Blocking,
        event: Event,
        *,
        id: str | None = None,
        correlation_id: str | None = None,
    ) -> Reference:
        """Blocking."""

    @overload
    def add(
        self,
        connection: Asynchronous | AsyncpgConnection,
        event: Event,
        *,
        id: str | None = None,
        correlation_id: str | None = None,
    ) -> Coroutine[Any, Any, Reference]:
        """Asynchronous."""

    def add(
        self, connection: Any, event: Event, *, id: str | None = None, correlation_id: str | None = None
    ) -> Reference | Coroutine[Any, Any, Reference]:
        """Add an event to the transaction the connection is in; to be awaited where the connection is asynchronous.

        Events of one key are published in the order their transactions took the locks that keep them apart: write
        the row an event tells of first, and add the event then.

        Args:
            connection: psycopg's (either kind), asyncpg's, sqlite3's, or a session of SQLAlchemy (either kind), which
                is flushed.
            id: Your own id for it; one that was added before is handled once.
            correlation_id: The flow it belongs to; by default it begins one, under its own id.

        Raises:
            ConfigurationError: The connection is in no transaction, or of no kind that is known.
            DeclarationError: The event has no type, or is larger than `event_bytes_max`.
        """
        add = adder(connection)
        now_s = time.time()
        found = stamped(
            event, id=id, correlation_id=correlation_id, topic=self._topic, source=self._source, now_s=now_s
        )
        if len(found.value) > self._event_bytes_max:
            raise DeclarationError(
                f"{event.event_type}: an event of {len(found.value)} bytes, of {self._event_bytes_max} at most. "
                "Send a reference to the data, or raise Outbox(event_bytes_max=) and the topic's max.message.bytes"
            )
        envelope = found.envelope.traced(*current_context())
        record = wire_record(found.reference.topic, envelope, found.key, found.value)
        row = {
            "topic": record.topic,
            "key": record.key,
            "value": record.value,
            "headers": orjson.dumps([(name, (value or b"").decode()) for name, value in record.headers]).decode(),
            "created_ms": int(now_s * 1000),
        }
        return add(self.table, row, found.reference, self._notify)

    @asynccontextmanager
    async def relaying(
        self, database: str, broker: str | Transport | None = None, **settings: Any
    ) -> AsyncIterator[Relay]:
        """Relay in this process until the block ends: for one process fewer, and for tests.

        Args:
            database: `postgresql://...` or `sqlite:PATH`, where the table is.
            broker: As `choreo run --broker` takes it, `CHOREO_BROKER` unless given; or a transport that is open.
            settings: Fields of `choreo.outbox.relay.RelaySettings`.
        """
        async with Relay(RelaySettings(database, broker, self.table, **settings)).running() as relay:
            yield relay
