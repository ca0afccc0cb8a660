"""Apache Kafka through aiokafka: `KafkaTransport` is what an app is given, the modules beside it do the work."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer

from choreo.access import Access
from choreo.errors import TransportError
from choreo.ports import Assignment, TopicSpec
from choreo.record import ProducerRecord, Record
from choreo.sqlite.log import partitions_of
from choreo.transports.kafka import admin as kafka_admin
from choreo.transports.kafka import client as kafka_client
from choreo.transports.kafka import closing as kafka_closing
from choreo.transports.kafka.consumer import KafkaConsumer
from choreo.transports.kafka.errors import denied, next_step, reason
from choreo.transports.kafka.fencing import PartitionLimit
from choreo.transports.kafka.offsets import read_range
from choreo.transports.kafka.producer import KafkaProducer
from choreo.transports.kafka.records import BATCH_BYTES_MAX
from choreo.transports.kafka.rights import denied_of
from choreo.transports.kafka.security import principal_of, security_from_environment
from choreo.transports.kafka.settings import (
    KafkaTransactionSettings,
    cap_loggers,
    membership_from_environment,
    peer_of,
    transactions_from_environment,
)
from choreo.transports.kafka.tokens import ClientCredentials, TokenRefused
from choreo.transports.kafka.transactions import KafkaTransactions

__all__ = ["KafkaConsumer", "KafkaTransactions", "KafkaTransport"]


class KafkaTransport:
    """As `choreo.ports.Transport`, for brokers >= 2.1; exactly-once pairs need 4.0.

    Args:
        bootstrap_servers: host:port, more of them separated by commas.
        security: aiokafka's own arguments for TLS and SASL; None: as `CHOREO_KAFKA_*` say.
        client_id: What the brokers' logs and quotas call this process.
        open_s: Deadline for a connection to be up, in `open` and `consumer`.
        send_s: Deadline of one `send`, all its acknowledgements included.
        ask_s: Deadline of one commit, one position, one change of topics; and how long a scan may stand still.
        consumer_options: aiokafka's arguments for consumers, over CONSUMER_DEFAULTS.
        producer_options: The same for the producer, and for those of transactions.
        batch_bytes_max: What one compressed batch may hold, inflated; a larger one stops its partition.
        transaction_settings: Limits of transactions; None: as `CHOREO_KAFKA_TRANSACTION_*` say.
    """

    name = "kafka"
    system = "kafka"

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        security: Mapping[str, Any] | None = None,
        client_id: str = "choreo",
        open_s: float = 10.0,
        send_s: float = 30.0,
        ask_s: float = 30.0,
        consumer_options: Mapping[str, Any] | None = None,
        producer_options: Mapping[str, Any] | None = None,
        transaction_settings: KafkaTransactionSettings | None = None,
        batch_bytes_max: int = BATCH_BYTES_MAX,
    ) -> None:
        cap_loggers()
        trust = security_from_environment().arguments() if security is None else dict(security)
        self._servers = bootstrap_servers
        self.peer = peer_of(bootstrap_servers, client_id)
        self._arguments = {"bootstrap_servers": bootstrap_servers, "client_id": client_id, **trust}
        self.principal = principal_of(trust)
        self._open_s, self._ask_s = open_s, ask_s
        self._batch_bytes_max = batch_bytes_max
        self._consumer_options = {**membership_from_environment().arguments(), **(consumer_options or {})}
        self._producer_arguments = {**self._arguments, **(producer_options or {})}
        self._producer = KafkaProducer(self._producer_arguments, timeout_s=send_s)
        self._transaction_settings = transaction_settings or transactions_from_environment()
        self._partition_limit = PartitionLimit(self._transaction_settings.partitions_max)

    def __repr__(self) -> str:
        return f"KafkaTransport({self._servers!r})"

    async def open(self) -> None:
        """As the port says; within `open_s` it is known which address fails, why, and what to check."""
        cap_loggers()  # logging may have been configured since
        await self._check_token()
        refused = await kafka_client.refusals(**self._arguments, timeout_s=self._open_s)
        if refused:
            each = "; ".join(
                f"{where}: {reason(error)}: {next_step(error, self.principal)}"
                for where, error in refused.items()
                if error
            )
            raise TransportError(f"Kafka cannot be reached: {each}")
        async with kafka_admin.admin(self._arguments, timeout_s=self._open_s) as admin:
            try:  # through the address the broker advertises, which need not be the one it was found by
                found = await admin.describe_cluster()
            except Exception as error:
                raise TransportError(
                    f"{self._servers} answers, but not at the address it advertises ({reason(error)}): check "
                    "advertised.listeners of the broker"
                ) from error
        self.peer = self.peer._replace(cluster_id=found.get("cluster_id"))

    async def _check_token(self) -> None:
        """Before there is a connection, which would be left half open."""
        tokens = self._arguments.get("sasl_oauth_token_provider")
        if isinstance(tokens, ClientCredentials):
            try:
                await tokens.token()
            except TokenRefused as error:
                raise TransportError(reason(error)) from None

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> KafkaConsumer:
        """As the port says; returns before partitions are assigned."""
        member = KafkaConsumer(
            group,
            assignment,
            {**self._arguments, **self._consumer_options},
            timeout_s=self._ask_s,
            batch_bytes_max=self._batch_bytes_max,
        )
        await member.join(topics, timeout_s=self._open_s)
        return member

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """As the port says; RecordTooLarge when one record alone is the reason."""
        if records:
            await self._producer.send(records)

    def transactions(self, group: str) -> KafkaTransactions:
        """Transactions of one consumer group; to be closed by the caller. Brokers must be >= 4.0.

        Older ones say that a transaction has ended before its offset can be read.
        """
        return KafkaTransactions(
            group,
            self._producer_arguments,
            self._arguments,
            settings=self._transaction_settings,
            limit=self._partition_limit,
            ask_s=self._ask_s,
        )

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicSpec]:
        """As the port says, without Kafka's internal ones."""
        async with kafka_admin.admin(self._arguments, timeout_s=self._ask_s) as admin:
            return await kafka_admin.topics(admin, names)

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """As the port says; returns when each has its leaders."""
        async with kafka_admin.admin(self._arguments, timeout_s=self._ask_s) as admin:
            await kafka_admin.create_topics(admin, topics)

    async def widen(self, partitions: Mapping[str, int]) -> None:
        """As the port says; returns when the new partitions have their leaders."""
        async with kafka_admin.admin(self._arguments, timeout_s=self._ask_s) as admin:
            await kafka_admin.widen(admin, partitions)

    async def lacking(self, wanted: Sequence[Access]) -> Sequence[Access]:
        """What of `wanted` the brokers do not let `principal` do; nothing of a topic that is not there."""
        async with kafka_admin.admin(self._arguments, timeout_s=self._ask_s) as admin:
            return await denied_of(admin, wanted)

    async def scan(self, topics: Sequence[str], *, since_ms: int, key: bytes | None = None) -> Sequence[Record]:
        """As the port says, read_committed, in order of time."""
        known = await self.topics(topics)
        missing = [topic for topic in topics if topic not in known]
        if missing:
            raise TransportError(f"no such topic: {', '.join(missing)}; or {self.principal} may not Describe it")
        partitions = partitions_of({topic: known[topic].partitions for topic in topics}, key)
        options = {"auto_offset_reset": "none", "isolation_level": "read_committed", "enable_auto_commit": False}
        consumer = AIOKafkaConsumer(**self._arguments, **options)
        try:
            async with asyncio.timeout(self._open_s):
                await consumer.start()
            return await read_range(consumer, partitions, since_ms=since_ms, stall_s=self._ask_s)
        except TransportError:
            raise
        except Exception as error:
            names = ", ".join(topics)
            why = denied(error, self.principal, "Read", str(error.args[0]) if error.args else names, "")
            raise TransportError(f"{names} cannot be scanned: {why or reason(error)}") from error
        finally:
            await kafka_closing.stop(consumer, timeout_s=self._open_s)

    async def close(self) -> None:
        """As the port says; consumers are closed by whoever asked for them."""
        await self._producer.close()
