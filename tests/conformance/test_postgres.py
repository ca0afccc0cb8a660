"""PostgreSQL keeps what a store promises: for each kind of handler's transaction, directly and through PgBouncer."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from choreo.ports import IdempotencyStore
from choreo.stores.postgres import PostgresStore
from choreo.stores.postgres import turns as postgres_turns
from choreo.testing.conformance import OperatedConformance, ParkedConformance, StoreConformance
from choreo.testing.conformance_shelf import OnShelf, StoreGuarantee
from tests.kafka_server import Unavailable, unavailable
from tests.postgres_server import pgbouncer

GUARANTEES: frozenset[StoreGuarantee] = frozenset({"outbox", "rows", "parked", "anywhere", "deliveries"})


class OnPostgres(OnShelf):
    """Tables of its own for each test."""

    guarantees = GUARANTEES

    @pytest.fixture(autouse=True)
    def _server(self, postgres: str) -> None:
        self.url = postgres

    @pytest.fixture(autouse=True)
    def _patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres_turns, "INVOKING_S_MAX", 10.0)  # a loaded machine hands back units

    @asynccontextmanager
    async def store(self) -> AsyncIterator[IdempotencyStore]:
        """A store that has just been applied, in a schema of its own."""
        store = PostgresStore(self.url, schema=f"conformance {uuid4().hex}", connections_max=4, timeout_s=20.0)
        await store.open()
        try:
            await store.apply()
            yield store
        finally:
            await store.close()


class TestConnection(OnPostgres, StoreConformance):
    """Plain handlers on psycopg."""

    guarantees = GUARANTEES
    wants = "psycopg.Connection"


class TestAsyncConnection(OnPostgres, StoreConformance):
    """Coroutines on psycopg."""

    guarantees = GUARANTEES
    wants, is_async = "psycopg.AsyncConnection", True


class TestSession(OnPostgres, StoreConformance):
    """Plain handlers on SQLAlchemy."""

    guarantees = GUARANTEES
    wants = "sqlalchemy.orm.session.Session"

    def insert(self, transaction: Any, sql: str) -> Any:
        """SQLAlchemy takes no bare string."""
        return transaction.execute(text(sql))


class TestAsyncSession(TestSession):
    """Coroutines on SQLAlchemy."""

    guarantees = GUARANTEES
    wants, is_async = "sqlalchemy.ext.asyncio.session.AsyncSession", True


class TestInstances(OnPostgres, OperatedConformance):
    """Instances of processes and their timers."""

    guarantees = GUARANTEES


class TestParked(OnPostgres, ParkedConformance):
    """Queues of parked keys, with plain handlers on psycopg."""

    guarantees = GUARANTEES
    wants = "psycopg.Connection"


@pytest.fixture(scope="module")
def bouncer(postgres: str) -> Iterator[str]:
    """A PgBouncer in transaction mode."""
    try:
        with pgbouncer(postgres) as url:
            yield url
    except Unavailable as error:
        unavailable(str(error))


class TestPgBouncer(TestAsyncConnection):
    """No state of a session is relied on: the next statement may be on another connection."""

    guarantees = GUARANTEES

    @pytest.fixture(autouse=True)
    def _server(self, bouncer: str) -> None:
        self.url = bouncer


class TestPgBouncerSession(TestSession):
    """The same for SQLAlchemy."""

    guarantees = GUARANTEES

    @pytest.fixture(autouse=True)
    def _server(self, bouncer: str) -> None:
        self.url = bouncer


class TestPgBouncerInstances(TestInstances):
    """And for processes."""

    guarantees = GUARANTEES

    @pytest.fixture(autouse=True)
    def _server(self, bouncer: str) -> None:
        self.url = bouncer


class TestPgBouncerParked(TestParked):
    """And for queues of parked keys."""

    guarantees = GUARANTEES

    @pytest.fixture(autouse=True)
    def _server(self, bouncer: str) -> None:
        self.url = bouncer
