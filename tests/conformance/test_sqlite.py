"""SQLite keeps what a store promises, beside the embedded log in its file and without."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from choreo.ports import IdempotencyStore, Transport
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from choreo.testing.conformance import OperatedConformance, ParkedConformance, StoreConformance
from choreo.testing.conformance_shelf import OnShelf, StoreGuarantee
from choreo.transports.embedded import EmbeddedTransport

OUTBOX: frozenset[StoreGuarantee] = frozenset({"outbox", "rows", "parked", "anywhere", "deliveries"})
WITH_LOG: frozenset[StoreGuarantee] = frozenset({"offset", "emits", "rows", "parked", "anywhere", "deliveries"})


class Outbox(OnShelf):
    """Beside a log that is elsewhere."""

    guarantees = OUTBOX

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self._path = str(tmp_path / "store.db")

    @asynccontextmanager
    async def store(self) -> AsyncIterator[IdempotencyStore]:
        """A file of its own."""
        store = SqliteStore(Database(self._path), SystemClock(), with_log=False)
        await store.open()
        try:
            yield store
        finally:
            await store.close()


class WithLog(OnShelf):
    """In the file of the embedded log."""

    guarantees = WITH_LOG

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self._path = str(tmp_path / "store.db")

    @asynccontextmanager
    async def store(self) -> AsyncIterator[IdempotencyStore]:
        """One database object for both, as an app has it."""
        database = Database(self._path)
        self._log = EmbeddedTransport(database, SystemClock())
        store = SqliteStore(database, SystemClock(), with_log=True)
        await self._log.open()
        await store.open()
        try:
            yield store
        finally:
            await store.close()
            await self._log.close()

    def log(self) -> Transport:
        """The log in the same file."""
        return self._log


class TestOutbox(Outbox, StoreConformance):
    """Keys and leases beside a log that is elsewhere."""

    guarantees = OUTBOX


class TestWithLog(WithLog, StoreConformance):
    """Keys and leases in the file of the embedded log."""

    guarantees = WITH_LOG


class TestOutboxInstances(Outbox, OperatedConformance):
    """Instances and timers beside a log that is elsewhere."""

    guarantees = OUTBOX


class TestWithLogInstances(WithLog, OperatedConformance):
    """Instances and timers in the file of the embedded log."""

    guarantees = WITH_LOG


class TestOutboxParked(Outbox, ParkedConformance):
    """Queues of parked keys beside a log that is elsewhere."""

    guarantees = OUTBOX


class TestWithLogParked(WithLog, ParkedConformance):
    """Queues of parked keys in the file of the embedded log."""

    guarantees = WITH_LOG
