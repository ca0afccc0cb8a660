"""A flow whose handlers ask for PostgreSQL transactions, in TestApp: the broker in memory, the rows in a server."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from choreo import App, Event, Reject, RetryPolicy, Service
from choreo.testing import TestApp


class Deposited(Event, type="deposit.made", version=1, topic="deposits", key="account"):
    """Money comes in."""

    account: str
    cents: int


class Booked(Event, type="deposit.booked", version=1, topic="booked", key="account"):
    """It is in the ledger."""

    account: str
    cents: int


@pytest.fixture
def schema(postgres: str) -> Iterator[str]:
    """A schema of the test's own, dropped with it."""
    name = f"testapp_{uuid4().hex[:12]}"
    yield name
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


def bank(schema: str) -> App:
    """Two services, one on the driver and one on SQLAlchemy."""
    ledger, audit = Service("ledger", retry=RetryPolicy(2)), Service("audit")

    @ledger.on_start
    def tables(connection: psycopg.Connection[Any]) -> None:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {schema}.entry (account TEXT, cents INTEGER)")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {schema}.heard (account TEXT)")

    @ledger.handler(Deposited)
    async def book(deposited: Deposited, connection: psycopg.AsyncConnection[Any]) -> Booked:
        await connection.execute(f"INSERT INTO {schema}.entry VALUES (%s, %s)", (deposited.account, deposited.cents))
        if deposited.cents < 0:
            raise Reject("no such deposit")
        return Booked(account=deposited.account, cents=deposited.cents)

    @audit.handler(Booked)
    async def hear(booked: Booked, session: AsyncSession) -> None:
        await session.execute(text(f"INSERT INTO {schema}.heard VALUES (:account)"), {"account": booked.account})

    return App(ledger, audit)


async def test_rows_and_emits_go_together_in_a_test_of_a_flow(postgres: str, schema: str) -> None:
    """A duplicate is dropped, and of a rejected event no row is left."""
    parts = "&" if "?" in postgres else "?"
    async with TestApp(bank(schema), store=f"{postgres}{parts}choreo_schema={schema}") as t:
        flow = await t.publish(Deposited(account="a", cents=5), id="deposit-1")
        await t.publish(Deposited(account="a", cents=5), id="deposit-1")
        await t.publish(Deposited(account="b", cents=-5))
        await t.settle()
        assert flow.types == ["deposit.made", "deposit.made", "deposit.booked"]
        assert [letter.reason for letter in t.dead_letters] == ["rejected"]
    with psycopg.connect(postgres) as connection:
        assert connection.execute(f"SELECT * FROM {schema}.entry").fetchall() == [("a", 5)]
        assert connection.execute(f"SELECT * FROM {schema}.heard").fetchall() == [("a",)]
