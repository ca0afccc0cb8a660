"""What a relay needs of the database an outbox is in."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import orjson

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import ConfigurationError, DecodeError
from choreo.opening import require
from choreo.outbox.table import OutboxTable
from choreo.ports import Backlog

BACKLOG_ROWS_MAX = 100_000
"""Counted no further: of a table that has millions of rows, how many exactly matters little."""

# Rows of the lowest positions, as many as `bytes_max` holds, at least one.
TAKE = (
    "SELECT position, topic, key, value, headers FROM (SELECT first.*, sum(length(value)) OVER (ORDER BY position) "
    "AS bytes FROM (SELECT position, topic, key, value, headers FROM {table} WHERE {wanted} ORDER BY position "
    "LIMIT :rows_max) AS first) AS sized WHERE bytes - length(value) < :bytes_max ORDER BY position"
)
BACKLOG = (
    "SELECT count(*), min(created_ms) FROM (SELECT created_ms FROM {table} ORDER BY position "
    f"LIMIT {BACKLOG_ROWS_MAX}) AS first"
)


class OutboxRow(NamedTuple):
    """One event that is committed and not known to be on the log; `headers` as `Outbox.add` wrote them."""

    position: int
    topic: str
    key: bytes | None
    value: bytes
    headers: str

    def envelope(self) -> Envelope:
        """What is said of the event, with the trace context of whoever added it.

        Raises:
            DecodeError: The row is not of `Outbox.add`'s making.
        """
        try:
            headers = tuple((str(name), str(text).encode()) for name, text in orjson.loads(self.headers))
        except (ValueError, TypeError):
            raise DecodeError("not_cloudevents", f"the headers at position {self.position} are none") from None
        return cloudevents.read(headers, self.value)[0]


class OutboxRows(Protocol):
    """The table, as one relay has it. Each method raises StoreError where the database fails."""

    shown: str
    """Where it is, without secrets."""

    async def open(self) -> None:
        """Connect.

        Raises:
            ConfigurationError: The table is not there; says how to make it.
        """

    async def lead(self) -> bool:
        """Whether this relay is the only one that may send, until it is closed or loses its connection."""

    async def take(self, *, rows_max: int, bytes_max: int, without: Collection[str]) -> Sequence[OutboxRow]:
        """The first rows by position, but for those of the topics `without`."""

    async def delete(self, positions: Sequence[int]) -> None:
        """These are on the log."""

    async def backlog(self) -> Backlog:
        """How many there are and how old the oldest is; `rows` counts up to `BACKLOG_ROWS_MAX`."""

    async def wait(self, wait_s: float) -> None:
        """Return when something may have been added, after `wait_s` at the latest."""

    async def close(self) -> None:
        """Give the lead up and disconnect. It may be opened again."""


def backlog_of(rows: int, oldest_ms: int | None, now_s: float) -> Backlog:
    """From what `BACKLOG` returned."""
    return Backlog(rows, 0.0 if oldest_ms is None else max(0.0, now_s - oldest_ms / 1000))


def open_rows(database: str, table: OutboxTable) -> OutboxRows:
    """The outbox at a URL, not opened yet.

    Raises:
        ConfigurationError: It is neither `postgresql://...` nor `sqlite:PATH`, or a package is missing.
    """
    kind, _, rest = database.partition(":")
    if kind == "sqlite" and rest and rest != ":memory:":
        from choreo.outbox.sqlite import SqliteRows

        return SqliteRows(rest, table)
    if kind.partition("+")[0] in ("postgresql", "postgres"):  # with a driver: an application's URL for SQLAlchemy
        require("psycopg_pool", "postgres", "postgresql://...")
        from choreo.outbox.postgres import PostgresRows

        return PostgresRows(f"postgresql:{rest}", table)
    raise ConfigurationError(f"the database {kind}:... is not understood; write postgresql://... or sqlite:PATH")
