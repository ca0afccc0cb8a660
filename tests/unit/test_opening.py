"""Brokers and stores by URL: our own parameters are split off, and what is wrong is told without passwords."""

from typing import Any

import pytest

from choreo import opening
from choreo.errors import ChoreoError, ConfigurationError
from choreo.opening import open_store, open_transport
from choreo.runtime.clock import SystemClock
from choreo.stores.sqlite import SqliteStore
from choreo.transports.embedded import EmbeddedTransport


def store(url: str) -> Any:
    """The store of a URL for the service `desk` of the group `desks`."""
    return open_store(url, "desk", "desks", None, clock=SystemClock(), lease_s=12.0)


def test_sqlite_paths_name_the_service() -> None:
    """`{service}` stands for it, anywhere and more than once."""
    found = store("sqlite:data/{service}/{service}.db")
    assert isinstance(found, SqliteStore)
    assert found._db.path == "data/desk/desk.db"
    assert "outbox" in found.carries


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("postgresql://u:p%40ss@h:5/d", "postgresql://u:p%40ss@h:5/d"),
        ("postgresql://u@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require"),
        ("postgresql://u@one:1,two:2/d?target_session_attrs=primary", None),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=%2Frun%2Fpostgresql"),
        ("postgresql://h/d?options=-c%20geqo%3Doff", "postgresql://h/d?options=-c%20geqo%3Doff"),
    ],
)
def test_parameters_of_ours_are_split_off(given: str, plain: str | None) -> None:
    """What is left means the same to the driver, sockets, several hosts and spaces included."""
    sign = "&" if "?" in given else "?"
    left, ours = opening._split(f"{given}{sign}choreo_schema=s&choreo_prefix=a%20b", "choreo_schema", "choreo_prefix")
    assert (left, dict(ours)) == (plain or given, {"choreo_schema": "s", "choreo_prefix": "a b"})


def test_postgres_is_given_schema_and_prefix() -> None:
    """And the driver is not: it would refuse a parameter it does not know."""
    pytest.importorskip("psycopg_pool")
    found = store("postgresql://me:secret@127.0.0.1:1/shop?choreo_schema=keys&choreo_prefix=shop_&sslmode=disable")
    assert found._names.schema == "keys"
    assert all(table.startswith("shop_") for table in found._names.tables.values())
    assert found._server.url == "postgresql://me:secret@127.0.0.1:1/shop?sslmode=disable"
    assert found._lease_s == 12.0
    assert store("postgres://me@127.0.0.1:1/shop")._names.schema == "choreo"


@pytest.mark.parametrize(("scheme", "cluster"), [("redis", False), ("rediss", False), ("redis", True)])
def test_redis_is_given_prefix_and_cluster(scheme: str, cluster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`choreo_cluster=true` asks for a cluster's client."""
    redis = pytest.importorskip("choreo.stores.redis.store")
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(redis, "RedisClient", lambda url, **options: asked.append((url, options["cluster"])))
    url = f"{scheme}://:secret@127.0.0.1:1/3?choreo_prefix=shop&socket_timeout=2"
    found = store(url + ("&choreo_cluster=true" if cluster else ""))
    assert (found._prefix, found._lease_s) == ("shop", 12.0)
    assert asked == [(f"{scheme}://:secret@127.0.0.1:1/3?socket_timeout=2", cluster)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://me:secret@h/d", "the store mysql:... is not understood; write sqlite:PATH, postgresql://..."),
        ("secret", "the store"),
        ("", "is not understood"),
        ("sqlite:", "the store sqlite:... is not understood"),
        ("sqlite::memory:", "the store sqlite:... is not understood"),
        ("changelog", "kept on Kafka: give a kafka:// broker"),
        ("changelog:secret", "the store changelog:... is not understood"),
        ("redis://:secret[@h/0", "URL"),
        ("postgresql://me:secret@h/d?choreo_schema=" + "x" * 100, "schema"),
    ],
)
def test_store_that_cannot_be_is_a_configuration_error(url: str, said: str) -> None:
    """It names what is there to write, and never the password."""
    with pytest.raises(ConfigurationError) as caught:
        store(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value).replace("the store secret:...", "")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("embedded:", "write embedded:PATH"),
        ("kafka://", "write embedded:PATH"),
        ("localhost:9092", "kafka://HOST:PORT"),
        ("amqp://me:secret@h:1", "kafka+confluent://HOST:PORT"),
        ("kafkas://me:secret@h:1", "kafka+confluent://HOST:PORT"),
        ("", "write embedded:PATH"),
    ],
)
def test_broker_that_cannot_be_is_a_configuration_error(url: str, said: str) -> None:
    """It names what is there to write, and never the password."""
    with pytest.raises(ConfigurationError) as caught:
        open_transport(url)
    assert "is not understood" in str(caught.value)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_embedded_broker_is_a_file() -> None:
    """Its path is whatever follows the first colon."""
    found = open_transport("embedded:a:b.db")
    assert isinstance(found, EmbeddedTransport)
    assert found._db.path == "a:b.db"


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("postgresql://me:secret@h/d", "psycopg_pool", "postgres"),
        ("redis://:secret@h/0", "redis", "redis"),
        ("rediss://:secret@h/0", "redis", "redis"),
        ("kafka+confluent://h:1", "confluent_kafka", "confluent"),
    ],
)
def test_missing_package_is_told_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
) -> None:
    """The command that installs it is there to be copied."""
    monkeypatch.setattr(opening, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(ChoreoError) as caught:
        open_transport(url) if url.startswith("kafka") else store(url)
    assert f'needs a package that is not installed: pip install "choreo[{extra}]"' in str(caught.value)
    assert "secret" not in str(caught.value)
