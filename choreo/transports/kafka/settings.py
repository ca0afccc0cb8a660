"""aiokafka's arguments: our defaults with their reasons, and limits from `CHOREO_KAFKA_*`."""

import logging
from collections.abc import Mapping
from typing import Any

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from choreo.errors import ConfigurationError
from choreo.ports import Peer

CONSUMER_DEFAULTS: Mapping[str, Any] = {
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "isolation_level": "read_committed",
    # All topics of a group dealt out as one list. Not sticky: 0.14 keeps its state on the class, for all groups of a
    # process at once. Cooperative assignment it has none.
    "partition_assignment_strategy": (RoundRobinPartitionAssignor,),
    "session_timeout_ms": 45_000,  # Java's default
    "heartbeat_interval_ms": 3_000,
    # 0.14 takes the session timeout for it: with a shorter one two members own a partition while one still drains.
    "rebalance_timeout_ms": 60_000,
    "request_timeout_ms": 75_000,  # above the rebalance timeout: JoinGroup is answered when the rebalance is over
    "max_poll_interval_ms": 300_000,
    "metadata_max_age_ms": 30_000,  # how soon new partitions are seen
    # A fetch that waits at the broker holds up partitions just resumed on the same broker; 0.14's own is 500.
    # With 100 four idle services in a process cost 4% of a core.
    "fetch_max_wait_ms": 250,
    "fetch_max_bytes": 16 * 1024 * 1024,
}

PRODUCER_DEFAULTS: Mapping[str, Any] = {
    "enable_idempotence": True,
    "acks": "all",
    "linger_ms": 2,
    "max_batch_size": 128 * 1024,
    # A dead letter is larger than the 1 MB original it quotes; the topic's own limit decides.
    "max_request_size": 16 * 1024 * 1024,
    # 0.14 sleeps it after each lost request, also when the next broker is up already; its own default is 100.
    "retry_backoff_ms": 20,
    # Below the deadline of a send, so that one silent broker leaves time to ask its successor.
    "request_timeout_ms": 10_000,
    "metadata_max_age_ms": 60_000,
}


TRANSACTION_DEFAULTS: Mapping[str, Any] = {
    **PRODUCER_DEFAULTS,
    # All of a transaction is handed over in one step, before the sender runs: waiting for more would only delay it.
    "linger_ms": 0,
    # Brokers answer NotEnoughReplicas or ConcurrentTransactions while the markers of the last transaction are
    # written, some milliseconds; 0.14 sleeps this long then.
    "retry_backoff_ms": 5,
    # Below the deadline of a commit.
    "request_timeout_ms": 4_000,
}


class KafkaMembership(BaseSettings):
    """How soon a member that died is replaced, read from the environment.

    A killed process holds its partitions for `session_timeout_ms`; a shorter one mistakes a long pause for death.
    Brokers take 6 s to 5 min unless configured otherwise.
    """

    model_config = SettingsConfigDict(env_prefix="CHOREO_KAFKA_", frozen=True, hide_input_in_errors=True)

    session_timeout_ms: int = CONSUMER_DEFAULTS["session_timeout_ms"]

    def arguments(self) -> dict[str, int]:
        """What aiokafka's consumer takes; a heartbeat is sent at least three times a session, as Kafka advises."""
        heartbeat_ms = min(CONSUMER_DEFAULTS["heartbeat_interval_ms"], self.session_timeout_ms // 3)
        return {"session_timeout_ms": self.session_timeout_ms, "heartbeat_interval_ms": heartbeat_ms}


class KafkaTransactionSettings(BaseSettings):
    """Limits of transactions, read from the environment.

    timeout_ms: After it a broker ends a transaction whose producer is gone; until then readers under read_committed
    stand before it. Kafka's own 60 s would make every crash a minute's pause; too little time is taken for a failure
    while a coordinator moves, which takes seconds. partitions_max: Input partitions a process, each with a producer
    of 4 connections.
    """

    model_config = SettingsConfigDict(env_prefix="CHOREO_KAFKA_TRANSACTION_", frozen=True, hide_input_in_errors=True)

    timeout_ms: int = Field(default=10_000, ge=1_000)
    partitions_max: int = Field(default=200, ge=1)

    @property
    def commit_s(self) -> float:
        """Deadline of one commit: we must have given up, and know it, before the broker does."""
        return 0.7 * self.timeout_ms / 1000

    @property
    def stall_s(self) -> float:
        """How long a reader waits for an open transaction: its timeout, the broker's check every 10 s, and some."""
        return self.timeout_ms / 1000 + 20.0


def peer_of(bootstrap_servers: str, client_id: str) -> Peer:
    """Whom spans name: the broker's address where one was given; of several nobody knows which one answers."""
    host, colon, port = bootstrap_servers.rpartition(":")
    if "," in bootstrap_servers or not colon or not port.isdigit():
        return Peer(client_id)
    return Peer(client_id, host.strip("[]"), int(port))


def membership_from_environment() -> KafkaMembership:
    """How soon a dead member is replaced, or ConfigurationError naming the variable that is wrong."""
    try:
        return KafkaMembership()
    except ValidationError as error:
        raise wrong("CHOREO_KAFKA_", error) from None


def transactions_from_environment() -> KafkaTransactionSettings:
    """Limits as `CHOREO_KAFKA_TRANSACTION_*` say, or ConfigurationError naming the variable that is wrong."""
    try:
        return KafkaTransactionSettings()
    except ValidationError as error:
        raise wrong("CHOREO_KAFKA_TRANSACTION_", error) from None


def wrong(prefix: str, error: ValidationError) -> ConfigurationError:
    """Which variables are wrong and why, without what they were set to."""
    return ConfigurationError(
        "; ".join(f"{prefix}{'_'.join(map(str, found['loc'])).upper()}: {found['msg']}" for found in error.errors())
    )


def cap_loggers() -> None:
    """Keep aiokafka's loggers from DEBUG, where they write keys, values and requests (0.14: producer.py:500)."""
    known = [name for name in logging.root.manager.loggerDict if name.startswith("aiokafka.")]
    for name in ("aiokafka", *known):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)
