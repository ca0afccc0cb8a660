"""Apache Kafka through librdkafka: `ConfluentTransport`; the modules beside it do the work.

Needs `pip install "choreo[confluent]"`; without it, importing this module is a ConfigurationError.
"""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from choreo.access import Access
from choreo.errors import TransportError
from choreo.ports import Assignment, TopicSpec
from choreo.record import ProducerRecord, Record
from choreo.sqlite.log import partitions_of
from choreo.transports.confluent.admin import ConfluentAdmin
from choreo.transports.confluent.client import KafkaError, KafkaException, Producer, made, reason
from choreo.transports.confluent.consumer import ConfluentConsumer
from choreo.transports.confluent.offsets import CommittedOffsets
from choreo.transports.confluent.producer import ConfluentProducer
from choreo.transports.confluent.reading import read_range
from choreo.transports.confluent.rights import denied_of
from choreo.transports.confluent.settings import (
    CONSUMER_DEFAULTS,
    membership_from_environment,
    security_arguments,
)
from choreo.transports.confluent.transactions import ConfluentTransactions
from choreo.transports.kafka.security import principal_of, security_from_environment
from choreo.transports.kafka.settings import peer_of

__all__ = ["ConfluentConsumer", "ConfluentTransactions", "ConfluentTransport"]


class ConfluentTransport:
    """As `choreo.ports.Transport`, for brokers >= 4.0; with group_protocol="classic" >= 2.5.

    Header keys that are no UTF-8 it cannot send; a record with one is read without its headers.

    Args:
        bootstrap_servers: host:port, more of them separated by commas.
        security: librdkafka's own arguments for TLS and SASL; None: as `CHOREO_KAFKA_*` say.
        client_id: What the brokers' logs and quotas call this process.
        group_protocol: "consumer" (KIP-848) or "classic"; None: as CHOREO_KAFKA_GROUP_PROTOCOL says.
        group_instance_id: Of a static member; None: as CHOREO_KAFKA_GROUP_INSTANCE_ID says.
        open_s: Deadline for a connection to be up.
        send_s: Deadline of one `send`, all its acknowledgements included.
        ask_s: Deadline of one commit, one position, one change of topics; and how long a scan may stand still.
        consumer_options: librdkafka's arguments for consumers, over CONSUMER_DEFAULTS.
        producer_options: The same for producers.
    """

    name = "kafka"
    system = "kafka"

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        security: Mapping[str, Any] | None = None,
        client_id: str = "choreo",
        group_protocol: Literal["consumer", "classic"] | None = None,
        group_instance_id: str | None = None,
        open_s: float = 10.0,
        send_s: float = 30.0,
        ask_s: float = 30.0,
        consumer_options: Mapping[str, Any] | None = None,
        producer_options: Mapping[str, Any] | None = None,
    ) -> None:
        trust = security_arguments(security_from_environment()) if security is None else dict(security)
        membership = membership_from_environment(group_protocol=group_protocol, group_instance_id=group_instance_id)
        self._servers = bootstrap_servers
        self.peer = peer_of(bootstrap_servers, client_id)
        self._arguments = {"bootstrap.servers": bootstrap_servers, "client.id": client_id, **trust}
        self.principal = principal_of(trust)
        self._open_s, self._ask_s = open_s, ask_s
        self._consumer_options = {**CONSUMER_DEFAULTS, **membership.arguments(), **(consumer_options or {})}
        self._producer_arguments = {**self._arguments, **(producer_options or {})}
        self._producer = ConfluentProducer(self._producer_arguments, timeout_s=send_s)
        self._admin = ConfluentAdmin(self._arguments, timeout_s=ask_s)
        self._members: dict[str, ConfluentConsumer] = {}

    def __repr__(self) -> str:
        return f"ConfluentTransport({self._servers!r})"

    async def open(self) -> None:
        """As the port says; within `open_s` it is known why no broker can be talked to, and what to check."""
        refused, cluster_id = await self._admin.call(lambda: _refusal(self._arguments, self._open_s))
        self.peer = self.peer._replace(cluster_id=cluster_id)
        if refused:
            raise TransportError(f"Kafka cannot be reached at {self._servers}: {refused}")

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> ConfluentConsumer:
        """As the port says; returns before partitions are assigned."""
        arguments = {**self._arguments, **self._consumer_options}
        committed = CommittedOffsets(group, self._arguments, self._admin, timeout_s=self._ask_s)
        member = ConfluentConsumer(
            group, topics, assignment, arguments, admin=self._admin, committed=committed, timeout_s=self._ask_s
        )
        self._members[group] = member
        return member

    def transactions(self, group: str) -> ConfluentTransactions:
        """Commits on the log of the member that this transport has in `group` by the time they are made."""
        return ConfluentTransactions(
            group,
            lambda: self._members.get(group),
            self._arguments,
            admin=self._admin,
            timeout_s=self._ask_s,
        )

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """As the port says; RecordTooLarge when one record alone is the reason."""
        if records:
            await self._producer.send(records)

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicSpec]:
        """As the port says, without Kafka's internal ones."""
        return await self._admin.topics(names)

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """As the port says; returns when each has its leaders."""
        await self._admin.create_topics(topics)

    async def widen(self, partitions: Mapping[str, int]) -> None:
        """As the port says; returns when the new partitions have their leaders."""
        await self._admin.widen(partitions)

    async def lacking(self, wanted: Sequence[Access]) -> Sequence[Access]:
        """What of `wanted` the brokers do not let `principal` do; nothing of a topic that is not there."""
        return await denied_of(self._admin, self._arguments, wanted, timeout_s=self._ask_s)

    async def scan(self, topics: Sequence[str], *, since_ms: int, key: bytes | None = None) -> Sequence[Record]:
        """As the port says, read_committed, in order of time."""
        known = await self._admin.partitions()
        missing = [topic for topic in topics if topic not in known]
        if missing:
            raise TransportError(f"no such topic: {', '.join(missing)}; or {self.principal} may not Describe it")
        partitions = partitions_of({topic: known[topic] for topic in topics}, key)
        starts, ends = await asyncio.gather(
            self._admin.start_offsets(partitions, since_ms), self._admin.start_offsets(partitions, "latest")
        )
        spans = {partition: (starts[partition], ends[partition]) for partition in partitions}
        found: list[Record] = []
        async for records in read_range(self._arguments, self._admin, spans, stall_s=self._ask_s):
            found += [each for each in records if each.timestamp_ms >= since_ms]
        return sorted(found, key=lambda each: (each.timestamp_ms, each[:3]))

    async def close(self) -> None:
        """As the port says; consumers are closed by whoever asked for them."""
        await self._producer.close()
        self._admin.close()


def _refusal(arguments: Mapping[str, Any], timeout_s: float) -> tuple[str | None, str | None]:
    """Why there is no connection within `timeout_s`, and what to check; None, and the cluster's id, once there is.

    Blocks.
    """
    told: list[KafkaError] = []
    client: Producer = made(
        Producer, {**arguments, "error_cb": told.append, "socket.connection.setup.timeout.ms": 5_000}
    )
    until_s = time.monotonic() + timeout_s
    why = "no answer in time"
    while True:
        client.poll(0)
        fatal = [each for each in told if each.code() in _DECIDED or any(word in each.str() for word in _REFUSALS)]
        if fatal or time.monotonic() >= until_s:
            break
        try:
            return None, client.list_topics("", timeout=max(0.05, min(0.3, until_s - time.monotonic()))).cluster_id
        except KafkaException as error:
            why = reason(error)
    worth_telling = [each for each in told if each.code() != KafkaError._ALL_BROKERS_DOWN]
    errors = list(dict.fromkeys(reason(each) for each in worth_telling)) or [why]
    return f"{'; '.join(errors)}: {_next_step(worth_telling, principal_of(arguments))}", None


_WANTS_CERTIFICATE = "alert bad certificate"  # of TLS 1.2; what 1.3 calls certificate_required Java says so too
_REFUSALS = ("refused", _WANTS_CERTIFICATE)
_DECIDED = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE})


def _next_step(errors: Sequence[KafkaError], principal: str) -> str:
    codes = {each.code() for each in errors}
    text = " ".join(each.str() for each in errors)
    if KafkaError._SSL in codes:
        return "check CHOREO_KAFKA_SSL_CAFILE, and that the certificate names this host"
    if KafkaError._AUTHENTICATION in codes:
        if "OAUTHBEARER" in text:
            return "check CHOREO_KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL, ..._CLIENT_ID and ..._CLIENT_SECRET"
        which = "CHOREO_KAFKA_SASL_USERNAME and CHOREO_KAFKA_SASL_PASSWORD, and CHOREO_KAFKA_SASL_MECHANISM"
        return f"{principal} is not let in: check {which}"
    if KafkaError._RESOLVE in codes:
        return "check the name: it does not resolve"
    if "refused" in text:
        return "is Kafka running there, and is that the port of its listener?"
    if _WANTS_CERTIFICATE in text:
        return "the listener wants a certificate that it trusts: check CHOREO_KAFKA_SSL_CERTFILE"
    if KafkaError._TRANSPORT in codes:
        return "does the listener want TLS or SASL? (CHOREO_KAFKA_SECURITY_PROTOCOL)"
    return "is a firewall between, or does the listener want TLS? (CHOREO_KAFKA_SECURITY_PROTOCOL)"
