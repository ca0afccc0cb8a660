"""librdkafka's arguments: our defaults with their reasons, and the `CHOREO_KAFKA_*` that aiokafka is set by too."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from choreo.transports.kafka.security import KafkaSecurity
from choreo.transports.kafka.settings import wrong

MESSAGE_BYTES_MAX = 16 * 1024 * 1024

CONSUMER_DEFAULTS: Mapping[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "enable.partition.eof": True,  # how `drained` knows
    "allow.auto.create.topics": False,
    # A drain may take long; the thread that polls waits for it.
    "max.poll.interval.ms": 300_000,
    # Fetched ahead, all partitions together; librdkafka's own is 64 MB.
    "queued.max.messages.kbytes": 16 * 1024,
    "queued.min.messages": 10_000,
    "fetch.wait.max.ms": 250,
    "fetch.error.backoff.ms": 100,
    # Of a partition at a time: with more the others wait behind it. A larger record, a dead letter say, comes alone.
    "fetch.message.max.bytes": 1024 * 1024,
    "receive.message.max.bytes": 100_000_000,
    "topic.metadata.refresh.interval.ms": 30_000,  # how soon new partitions are seen
    "socket.timeout.ms": 10_000,
    "reconnect.backoff.max.ms": 1_000,
}

CLASSIC_DEFAULTS: Mapping[str, Any] = {
    "partition.assignment.strategy": "cooperative-sticky",
    "heartbeat.interval.ms": 3_000,
}

PRODUCER_DEFAULTS: Mapping[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    # librdkafka's own is CRC32: the same key would go elsewhere than from Java, aiokafka or another choreo.
    "partitioner": "murmur2_random",
    "linger.ms": 2,
    "batch.size": 128 * 1024,
    # A dead letter is larger than the 1 MB original it quotes; the topic's own limit decides.
    "message.max.bytes": MESSAGE_BYTES_MAX,
    "queue.buffering.max.messages": 100_000,
    "retry.backoff.ms": 20,
    "request.timeout.ms": 10_000,
    "socket.timeout.ms": 10_000,
    "reconnect.backoff.max.ms": 1_000,
    "topic.metadata.propagation.max.ms": 10_000,
    "topic.metadata.refresh.interval.ms": 60_000,  # how soon keys go to new partitions
    "allow.auto.create.topics": False,
}


TRANSACTION_DEFAULTS: Mapping[str, Any] = {
    # Sent when all are handed over, for then they are flushed, and in one batch a partition where that will do: while
    # a second one waits for the acknowledgement of the first, librdkafka's thread spins (seen in 2.16).
    "linger.ms": 100,
}

TRANSACTION_BATCHES: Sequence[Mapping[str, Any]] = (
    {"batch.size": 1_000_000},
    {"batch.size": PRODUCER_DEFAULTS["batch.size"]},
    {"batch.num.messages": 1},
)
"""The next one after a topic has taken no batch of this size; librdkafka never splits one."""


class ConfluentMembership(BaseSettings):
    """How a member belongs to its group, read from the environment.

    `group_protocol`: "consumer" is KIP-848, of brokers >= 4.0; "classic" is the older one, here with cooperative
    hand-over. `group_instance_id`: a name that survives a restart, unique within the group; its partitions wait for
    it. `session_timeout_ms`: classic only; with "consumer" it is the group's own, kept by the broker.
    """

    model_config = SettingsConfigDict(env_prefix="CHOREO_KAFKA_", frozen=True, hide_input_in_errors=True)

    group_protocol: Literal["consumer", "classic"] = "consumer"
    group_instance_id: str | None = None
    session_timeout_ms: int = 45_000

    def arguments(self) -> dict[str, Any]:
        """What librdkafka's consumer takes."""
        found: dict[str, Any] = {"group.protocol": self.group_protocol}
        if self.group_protocol == "classic":  # librdkafka refuses these for the other one
            beat_ms = min(CLASSIC_DEFAULTS["heartbeat.interval.ms"], self.session_timeout_ms // 3)
            found.update(CLASSIC_DEFAULTS)
            found.update({"session.timeout.ms": self.session_timeout_ms, "heartbeat.interval.ms": beat_ms})
        if self.group_instance_id:
            found["group.instance.id"] = self.group_instance_id
        return found


def membership_from_environment(**given: Any) -> ConfluentMembership:
    """What is given, and the rest as `CHOREO_KAFKA_*` say, or ConfigurationError naming the variable."""
    try:
        return ConfluentMembership(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise wrong("CHOREO_KAFKA_", error) from None


def security_arguments(security: KafkaSecurity) -> dict[str, Any]:
    """The same trust that aiokafka is given, in librdkafka's words.

    Raises:
        ConfigurationError: Something is missing or a file cannot be read; says which variable to set.
    """
    security.arguments()  # checks that nothing is missing, reads the files, warns
    found: dict[str, Any] = {"security.protocol": security.security_protocol}
    if security.security_protocol.endswith("SSL"):
        files = {
            "ssl.ca.location": security.ssl_cafile,
            "ssl.certificate.location": security.ssl_certfile,
            "ssl.key.location": security.ssl_keyfile,
        }
        found.update({name: path for name, path in files.items() if path})
        if security.ssl_key_password:
            found["ssl.key.password"] = security.ssl_key_password.get_secret_value()
        found["ssl.endpoint.identification.algorithm"] = "https" if security.ssl_check_hostname else "none"
    if security.security_protocol.startswith("SASL"):
        found["sasl.mechanism"] = security.sasl_mechanism
        if security.sasl_mechanism == "OAUTHBEARER":
            assert security.sasl_oauthbearer_client_secret is not None, "checked above"
            told = {
                "method": "oidc",
                "token.endpoint.url": security.sasl_oauthbearer_token_endpoint_url,
                "client.id": security.sasl_oauthbearer_client_id,
                "client.secret": security.sasl_oauthbearer_client_secret.get_secret_value(),
                "scope": security.sasl_oauthbearer_scope,
            }
            found.update({f"sasl.oauthbearer.{name}": text for name, text in told.items() if text})
        elif security.sasl_mechanism != "GSSAPI":
            assert security.sasl_password is not None, "checked above"
            found["sasl.username"] = security.sasl_username
            found["sasl.password"] = security.sasl_password.get_secret_value()
    return found
