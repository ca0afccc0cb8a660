"""Brokers and stores by their URLs: the one place that names every adapter, each imported only when asked for."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import cast
from urllib.parse import parse_qsl, quote, urlencode

from choreo.errors import ConfigurationError
from choreo.ports import Clock, IdempotencyStore, Transport
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from choreo.transports.embedded import EmbeddedTransport

STORES = "sqlite:PATH, postgresql://..., redis://... or changelog"


def open_transport(broker: str, *, clock: Clock | None = None) -> Transport:
    """The transport of a broker URL, not opened yet.

    Raises:
        ConfigurationError: It is none of `embedded:PATH`, `kafka://HOST:PORT[,HOST:PORT]` and
            `kafka+confluent://HOST:PORT[,HOST:PORT]`.
    """
    kind, _, rest = broker.partition(":")
    if kind == "embedded" and rest:
        return EmbeddedTransport(Database(rest), clock or SystemClock())
    if kind == "kafka" and rest.strip("/"):
        from choreo.transports.kafka import KafkaTransport

        return KafkaTransport(_servers(broker))
    if kind == "kafka+confluent" and rest.strip("/"):
        require("confluent_kafka", "confluent", "kafka+confluent://...")
        from choreo.transports.confluent import ConfluentTransport

        return ConfluentTransport(_servers(broker))
    raise ConfigurationError(
        f"the broker {_shown(broker)} is not understood; write embedded:PATH, kafka://HOST:PORT[,HOST:PORT] or "
        "kafka+confluent://HOST:PORT[,HOST:PORT]"
    )


def open_store(
    url: str,
    service: str,
    group: str,
    transport: Transport | None,
    *,
    clock: Clock,
    lease_s: float = 30.0,
    topic_prefix: str = "",
) -> IdempotencyStore:
    """The store of a URL for one service, not opened yet.

    Args:
        url: `sqlite:PATH`, where `{service}` stands for the service's name; `postgresql://...` and `redis://...`,
            with `choreo_schema`, `choreo_prefix`, `choreo_connections_max` and `choreo_cluster` as parameters of
            ours; or `changelog`.
        transport: The log a changelog is kept on.

    Raises:
        ConfigurationError: It is none of them, or a package is missing.
    """
    kind, _, rest = url.partition(":")
    if kind == "sqlite" and rest and rest != ":memory:":
        database = Database(rest.replace("{service}", service))
        return SqliteStore(database, clock, with_log=False, lease_s=lease_s)
    if kind in ("postgresql", "postgres"):
        require("psycopg_pool", "postgres", "postgresql://...")
        from choreo.stores.postgres import PostgresStore

        plain, ours = _split(url, "choreo_schema", "choreo_prefix", "choreo_connections_max")
        return PostgresStore(
            plain,
            schema=ours.get("choreo_schema", "choreo"),
            prefix=ours.get("choreo_prefix", ""),
            lease_s=lease_s,
            connections_max=_count(ours.get("choreo_connections_max", "8"), "choreo_connections_max"),
        )
    if kind in ("redis", "rediss"):
        require("redis", "redis", f"{kind}://...")
        from choreo.stores.redis import RedisStore

        plain, ours = _split(url, "choreo_prefix", "choreo_cluster")
        cluster = ours.get("choreo_cluster", "").lower() in ("1", "true", "yes")
        return RedisStore(plain, prefix=ours.get("choreo_prefix", "choreo"), lease_s=lease_s, cluster=cluster)
    if url == "changelog":
        from choreo.stores.changelog import ChangelogStore, TransactionalTransport

        if not hasattr(transport, "transactions"):
            raise ConfigurationError("the store changelog is kept on Kafka: give a kafka:// broker")
        return ChangelogStore(cast("TransactionalTransport", transport), group, topic_prefix=topic_prefix)
    raise ConfigurationError(f"the store {kind}:... is not understood; write {STORES}")


def _split(url: str, *names: str) -> tuple[str, Mapping[str, str]]:
    """The URL without our parameters, which the driver would refuse, and our parameters."""
    plain, _, query = url.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    # Not urlunsplit, which takes the slashes off postgresql:///d; not "+", which libpq takes for a plus.
    left = urlencode([pair for pair in pairs if pair[0] not in names], quote_via=quote, safe="")
    return f"{plain}?{left}" if left else plain, {name: value for name, value in pairs if name in names}


def _count(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigurationError(f"{name}={text}: write a number of connections, 1 or more")
    return int(text)


def _servers(broker: str) -> str:
    """The servers of a Kafka's URL; there is nowhere in it for a user and password."""
    servers = broker.partition(":")[2].strip("/")
    if "@" in servers or "?" in servers:
        raise ConfigurationError(
            f"the broker {_shown(broker.partition('?')[0])}: a Kafka's URL holds servers only; who you are is "
            "told by CHOREO_KAFKA_SECURITY_PROTOCOL, CHOREO_KAFKA_SASL_USERNAME and the like: docs/security.md"
        )
    return servers


def _shown(url: str) -> str:
    """A URL without what may be a password."""
    before, at, host = url.rpartition("@")
    return f"{before.partition(':')[0]}://...@{host}" if at else repr(url)


def require(package: str, extra: str, wanted: str) -> None:
    """Refuse, with the command that installs what is missing.

    Raises:
        ConfigurationError: The package of an extra is not there.
    """
    if find_spec(package) is None:
        raise ConfigurationError(f'{wanted} needs a package that is not installed: pip install "choreo[{extra}]"')
