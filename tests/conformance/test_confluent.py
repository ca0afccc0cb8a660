"""Kafka keeps what a transport promises, through librdkafka, under both protocols of groups."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, Literal

import pytest

from choreo.ports import Transport
from choreo.testing.conformance import TransportConformance

pytest.importorskip("confluent_kafka")

from choreo.transports.confluent import ConfluentTransport

QUICK = {"heartbeat.interval.ms": 200, "session.timeout.ms": 6_000}


class TestConfluentClassic(TransportConformance):
    """All but header keys of any bytes, which librdkafka's Python binding does not do."""

    guarantees = frozenset({"start_at_time", "groups_share"})
    protocol: ClassVar[Literal["consumer", "classic"]] = "classic"

    @pytest.fixture(autouse=True)
    def _servers(self, kafka: str) -> None:
        self._bootstrap_servers = kafka

    @asynccontextmanager
    async def transport(self) -> AsyncIterator[Transport]:
        """Topics and groups of the tests have names of their own, so one Kafka does for all."""
        options = QUICK if self.protocol == "classic" else {}
        transport = ConfluentTransport(
            self._bootstrap_servers, group_protocol=self.protocol, consumer_options=options
        )
        await transport.open()
        try:
            yield transport
        finally:
            await transport.close()


class TestConfluentKip848(TestConfluentClassic):
    """The same on the newer protocol, whose hand-overs take a broker's heartbeat, 5 s by default, or two."""

    guarantees = frozenset({"start_at_time", "groups_share"})
    protocol = "consumer"
    within_s = 40.0
