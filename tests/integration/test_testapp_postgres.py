"""A flow whose handlers ask for PostgreSQL transactions, in TestApp: the broker in memory, the rows in a server."""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from choreo import App, Event, Reject, RetryPolicy, Service
from choreo.testing import TestApp
from tests.integration.tracing import unset_otel


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


async def test_spans_of_handlers_nest_inside_their_transactions(
    postgres: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the loop and on a thread, by driver and by session; and each below its own unit's span."""
    unset_otel(monkeypatch)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    tracer, ledger = provider.get_tracer("application"), Service("ledger")

    @ledger.handler(Deposited)
    async def driver(deposited: Deposited, connection: psycopg.AsyncConnection[Any]) -> None:
        tracer.start_span("driver").end()

    @ledger.handler(Deposited)
    def plain_driver(deposited: Deposited, connection: psycopg.Connection[Any]) -> None:
        tracer.start_span("plain_driver").end()

    @ledger.handler(Deposited)
    async def session(deposited: Deposited, session: AsyncSession) -> None:
        tracer.start_span("session").end()

    parts = "&" if "?" in postgres else "?"
    async with TestApp(App(ledger), store=f"{postgres}{parts}choreo_schema={schema}") as t:
        for account in "ab":
            await t.publish(Deposited(account=account, cents=5))
        await t.settle()
    spans = exporter.get_finished_spans()
    handler_of = {
        span.context.span_id: span.attributes["choreo.handler"]
        for span in spans
        if span.name == "process deposits" and span.context and span.attributes
    }
    own = [span for span in spans if span.name in ("driver", "plain_driver", "session")]
    assert len(own) == len(handler_of) == 6
    assert len({span.parent.span_id for span in own if span.parent}) == 6
    assert [handler_of[span.parent.span_id] for span in own if span.parent] == [span.name for span in own]


async def test_what_a_handler_sets_in_its_transaction_the_next_one_does_not_see(postgres: str, schema: str) -> None:
    """Context variables are of one invocation, also where many are in one transaction."""
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    ledger, found = Service("ledger"), list[tuple[str, str, int]]()

    @ledger.handler(Deposited)
    async def book(deposited: Deposited, connection: psycopg.AsyncConnection[Any]) -> None:
        cursor = await connection.execute("SELECT pg_current_xact_id()::text")
        row = await cursor.fetchone()
        assert row is not None
        found.append((row[0], tenant.get(), deposited.cents))
        tenant.set(deposited.account)

    parts = "&" if "?" in postgres else "?"
    async with TestApp(App(ledger), store=f"{postgres}{parts}choreo_schema={schema}") as t:
        for cents in range(4):
            await t.publish(Deposited(account="ann", cents=cents))
        await t.settle()
    assert len({transaction for transaction, _, _ in found}) < len(found), "none were in one transaction"
    assert {seen for _, seen, _ in found} == {"nobody"}
