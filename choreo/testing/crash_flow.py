"""The flow that crash tests run: orders in, two handlers a record, and a second service that hears what they emit."""

import sqlite3
from collections.abc import Callable
from typing import Any

from choreo.app import App
from choreo.event import Event
from choreo.service import Service

PARTITIONS = 2
CUSTOMERS = 8


class Ordered(Event, type="crash.ordered", version=1, topic="orders", key="customer"):
    """The input."""

    customer: str
    number: int


class Reserved(Event, type="crash.reserved", version=1, topic="reserved", key="customer"):
    """Emitted by the handler that writes a row in its transaction."""

    customer: str
    number: int


class Greeted(Event, type="crash.greeted", version=1, topic="greeted", key="customer"):
    """Emitted by the handler that writes nothing."""

    customer: str
    number: int


class Heard(Event, type="crash.heard", version=1, topic="heard", key="customer"):
    """Emitted by the next service, once for each it was told of."""

    customer: str
    of: str


def emitted_types(rows: bool) -> dict[str, type[Event]]:
    """What the first service emits, by handler."""
    return {"reserve": Reserved, "greet": Greeted} if rows else {"greet": Greeted}


TOPICS = ("orders", "reserved", "greeted", "heard", "stock.dlq", "audit.dlq")


def app(store: str, prefix: str) -> App:
    """The services `stock` and `audit`, in groups and on topics of this prefix."""
    stock, audit = Service("stock", group=f"{prefix}stock"), Service("audit", group=f"{prefix}audit")
    reserve = _RESERVE.get(store.partition(":")[0])
    heard: tuple[type[Event], ...] = (Greeted,)
    if reserve is not None:
        table = effect_table(prefix)
        stock.on_start(lambda connection: connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (number INTEGER)"))
        stock.handler(Ordered, name="reserve")(reserve(table))
        heard = (Reserved, Greeted)

    async def greet(ordered: Ordered) -> Greeted:
        return Greeted(customer=ordered.customer, number=ordered.number)

    async def hear(event: Reserved | Greeted) -> Heard:
        return Heard(customer=event.customer, of=f"{event.event_type} {event.number}")

    stock.handler(Ordered)(greet)
    audit.handler(*heard)(hear)
    return App(stock, audit, topics={name: prefix + name for name in TOPICS}, name="crash")


def effect_table(prefix: str) -> str:
    """The first service's table; it has no key, so that what is done twice is there twice."""
    return f"effect_{''.join(letter if letter.isalnum() else '_' for letter in prefix)}".lower()


def _on_sqlite(table: str) -> Callable[..., Any]:
    def reserve(ordered: Ordered, connection: sqlite3.Connection) -> Reserved:
        connection.execute(f"INSERT INTO {table} VALUES (?)", (ordered.number,))
        return Reserved(customer=ordered.customer, number=ordered.number)

    return reserve


def _on_postgres(table: str) -> Callable[..., Any]:
    from psycopg import AsyncConnection

    async def reserve(ordered: Ordered, connection: AsyncConnection[Any]) -> Reserved:
        await connection.execute(f"INSERT INTO {table} VALUES (%s)", (ordered.number,))
        return Reserved(customer=ordered.customer, number=ordered.number)

    return reserve


_RESERVE: dict[str, Callable[[str], Callable[..., Any]]] = {
    "": _on_sqlite,  # the embedded broker, which has the store in its own file
    "sqlite": _on_sqlite,
    "postgresql": _on_postgres,
}
"""A handler with a row of its own, by kind of store; a store that carries no rows has none."""
