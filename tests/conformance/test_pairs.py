"""Every pair of broker and store keeps its promise when its process is killed at any durable sub-step."""

import pytest

from choreo.testing import crash_pairs
from choreo.testing.conformance import PairConformance
from choreo.testing.crashing import Pair

QUICK = {"CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000", "CHOREO_KAFKA_GROUP_PROTOCOL": "classic"}
"""A killed member is replaced as soon as a broker of default settings allows."""


class TestEmbedded(PairConformance):
    """No server at all."""

    crashes = 4

    def pair(self) -> Pair:
        """Log, keys and rows in one file."""
        return crash_pairs.embedded()


class TestKafkaSqlite(PairConformance):
    """Kafka, and a file for each service."""

    @pytest.fixture(autouse=True)
    def _servers(self, kafka: str) -> None:
        self._kafka = kafka

    def pair(self) -> Pair:
        """An outbox in the file."""
        return crash_pairs.kafka_sqlite(self._kafka, QUICK)


class TestKafkaPostgres(PairConformance):
    """Kafka and PostgreSQL."""

    @pytest.fixture(autouse=True)
    def _servers(self, kafka: str, postgres: str) -> None:
        self._kafka, self._postgres = kafka, postgres

    def pair(self) -> Pair:
        """An outbox in PostgreSQL."""
        return crash_pairs.kafka_postgres(self._kafka, self._postgres, QUICK)


class TestKafkaRedis(PairConformance):
    """Kafka and Redis."""

    @pytest.fixture(autouse=True)
    def _servers(self, kafka: str, redis: str) -> None:
        self._kafka, self._redis = kafka, redis

    def pair(self) -> Pair:
        """Emits are sent before their keys are done."""
        return crash_pairs.kafka_redis(self._kafka, self._redis, QUICK)


class TestKafkaChangelog(PairConformance):
    """Kafka alone, through aiokafka."""

    @pytest.fixture(autouse=True)
    def _servers(self, kafka: str) -> None:
        self._kafka = kafka

    def pair(self) -> Pair:
        """One Kafka transaction a partition."""
        return crash_pairs.kafka_changelog(self._kafka, QUICK)


class TestConfluentChangelog(PairConformance):
    """Kafka alone, through librdkafka."""

    @pytest.fixture(autouse=True)
    def _servers(self, kafka: str) -> None:
        self._kafka = kafka

    def pair(self) -> Pair:
        """One Kafka transaction a flush."""
        return crash_pairs.confluent_changelog(self._kafka, QUICK)
