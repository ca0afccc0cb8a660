"""The pairs of broker and store that choreo has, each with its crash points and its promise."""

from collections.abc import Mapping

from choreo.testing.crash_points import (
    AIOKAFKA,
    AIOKAFKA_TRANSACTION,
    CONFLUENT_TRANSACTION,
    HANDLER,
    SQLITE_LOG,
    store_points,
)
from choreo.testing.crashing import Pair

SQLITE = "choreo.stores.sqlite:SqliteStore"
IN_SQLITE = {"inside the transaction": "choreo.stores.sqlite.commit:Commit.run"}
POSTGRES = "choreo.stores.postgres:PostgresStore"
REDIS = "choreo.stores.redis:RedisStore"
CHANGELOG = "choreo.stores.changelog:ChangelogStore"


def embedded() -> Pair:
    """Log, keys and rows in one file and one transaction."""
    points = {**HANDLER, **store_points(SQLITE, outbox=False), **SQLITE_LOG, **IN_SQLITE}
    return Pair("embedded + SQLite", "embedded:{folder}/log.db", "", points, rows=True, emits_once=True)


def kafka_sqlite(servers: str, environment: Mapping[str, str]) -> Pair:
    """Keys, outbox and rows in one transaction of a file."""
    points = {**HANDLER, **store_points(SQLITE, outbox=True), **IN_SQLITE, **AIOKAFKA}
    store = "sqlite:{folder}/{service}.db"
    return Pair(
        "Kafka + SQLite", f"kafka://{servers}", store, points, rows=True, emits_once=False, environment=environment
    )


def kafka_postgres(servers: str, url: str, environment: Mapping[str, str]) -> Pair:
    """Keys, outbox and rows in one transaction of PostgreSQL."""
    points = {**HANDLER, **store_points(POSTGRES, outbox=True), **AIOKAFKA}
    # So many processes at once would have all the connections that a server of default settings gives.
    store = f"{url}{'&' if '?' in url else '?'}choreo_connections_max=2"
    return Pair(
        "Kafka + PostgreSQL",
        f"kafka://{servers}",
        store,
        points,
        rows=True,
        emits_once=False,
        environment=environment,
    )


def kafka_redis(servers: str, url: str, environment: Mapping[str, str]) -> Pair:
    """Emits sent and acknowledged, then keys completed, then the offset."""
    points = {**HANDLER, **store_points(REDIS, outbox=False), **AIOKAFKA}
    return Pair(
        "Kafka + Redis",
        f"kafka://{servers}",
        url,
        points,
        rows=False,
        emits_once=False,
        environment=environment,
    )


def kafka_changelog(servers: str, environment: Mapping[str, str]) -> Pair:
    """Emits, keys and offset in one transaction on the log, through aiokafka."""
    points = {**HANDLER, **store_points(CHANGELOG, outbox=False), **AIOKAFKA_TRANSACTION}
    return Pair(
        "Kafka + changelog",
        f"kafka://{servers}",
        "changelog",
        points,
        rows=False,
        emits_once=True,
        environment=environment,
    )


def confluent_changelog(servers: str, environment: Mapping[str, str]) -> Pair:
    """The same through librdkafka."""
    points = {**HANDLER, **store_points(CHANGELOG, outbox=False), **CONFLUENT_TRANSACTION}
    return Pair(
        "Kafka (confluent) + changelog",
        f"kafka+confluent://{servers}",
        "changelog",
        points,
        rows=False,
        emits_once=True,
        environment=environment,
    )
