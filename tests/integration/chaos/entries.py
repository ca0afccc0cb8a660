"""Entries of accounts, in order an account: booked in PostgreSQL, noted on Redis, mirrored on the changelog.

`choreo run tests.integration.chaos.entries:app --service NAME` runs one of the services. What `clerk` and `mirror`
emit is heard by `bookkeeper`, so that an effect of theirs that comes twice is two rows there.
"""

from typing import Any

import psycopg

from choreo import App, Event, Service

TABLE = "chaos_row"


class Entry(Event):
    """What all of them say; numbers ascend within an account, and each is there once."""

    account: str
    number: int


class EntryMade(Entry, type="entry.made", version=1, topic="entries", key="account"):
    """The input."""


class EntryBooked(Entry, type="entry.booked", version=1, topic="booked", key="account"):
    """Emitted by the service on PostgreSQL, with a row."""


class EntryNoted(Entry, type="entry.noted", version=1, topic="noted", key="account"):
    """Emitted by the service on Redis."""


class EntryMirrored(Entry, type="entry.mirrored", version=1, topic="mirrored", key="account"):
    """Emitted by the service on the changelog."""


bookkeeper, clerk, mirror = Service("bookkeeper"), Service("clerk"), Service("mirror")


@bookkeeper.on_start
def tables(db: psycopg.Connection[Any]) -> None:
    """One table, whose only key is the number it counts with: what is done twice is there twice."""
    db.execute(
        f"CREATE TABLE IF NOT EXISTS {TABLE} (id bigserial PRIMARY KEY, kind text, account text, number integer)"
    )


@bookkeeper.handler(EntryMade)
async def book(entry: EntryMade, db: psycopg.AsyncConnection[Any]) -> EntryBooked:
    """A row, and an event that says so."""
    booked = EntryBooked(account=entry.account, number=entry.number)
    await _enter(booked, db)
    return booked


@bookkeeper.handler(EntryNoted, EntryMirrored)
async def hear(entry: EntryNoted | EntryMirrored, db: psycopg.AsyncConnection[Any]) -> None:
    """A row."""
    await _enter(entry, db)


@clerk.handler(EntryMade)
async def note(entry: EntryMade) -> EntryNoted:
    """An event, and nothing else."""
    return EntryNoted(account=entry.account, number=entry.number)


@mirror.handler(EntryMade, name="copy")
async def mirrored(entry: EntryMade) -> EntryMirrored:
    """An event, and nothing else."""
    return EntryMirrored(account=entry.account, number=entry.number)


async def _enter(entry: Entry, db: psycopg.AsyncConnection[Any]) -> None:
    await db.execute(
        f"INSERT INTO {TABLE} (kind, account, number) VALUES (%s, %s, %s)",
        (entry.event_type, entry.account, entry.number),
    )


app = App(bookkeeper, clerk, mirror, name="entries")
