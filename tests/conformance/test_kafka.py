"""Kafka keeps what a transport promises, through aiokafka."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from choreo.ports import Transport
from choreo.testing.conformance import TransportConformance
from choreo.transports.kafka import KafkaTransport

QUICK = {"heartbeat_interval_ms": 200, "session_timeout_ms": 6_000}


class TestKafka(TransportConformance):
    """Every guarantee."""

    guarantees = frozenset({"raw_headers", "start_at_time", "groups_share"})

    @pytest.fixture(autouse=True)
    def _servers(self, kafka: str) -> None:
        self._bootstrap_servers = kafka

    @asynccontextmanager
    async def transport(self) -> AsyncIterator[Transport]:
        """Topics and groups of the tests have names of their own, so one Kafka does for all."""
        transport = KafkaTransport(self._bootstrap_servers, consumer_options=QUICK)
        await transport.open()
        try:
            yield transport
        finally:
            await transport.close()
