"""The embedded log keeps what a transport promises, in one file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from choreo.ports import Transport
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.testing.conformance import TransportConformance
from choreo.transports.embedded import EmbeddedTransport, membership


class TestEmbedded(TransportConformance):
    """Every guarantee."""

    guarantees = frozenset({"raw_headers", "start_at_time", "groups_share"})

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = str(tmp_path / "log.db")
        monkeypatch.setattr(membership, "HEARTBEAT_S", 0.1)

    @asynccontextmanager
    async def transport(self) -> AsyncIterator[Transport]:
        """A file of its own."""
        transport = EmbeddedTransport(Database(self._path), SystemClock())
        await transport.open()
        try:
            yield transport
        finally:
            await transport.close()
