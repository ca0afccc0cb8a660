"""`choreo trace` with servers: what a Kafka tells of a flow, what PostgreSQL does, and what Redis does."""

import asyncio
import importlib
from pathlib import Path
from uuid import uuid4

import pytest

from tests.tea_app import TARGET, choreo, tea_folder

here = pytest.fixture(tea_folder)


def drawn_with(store: str, broker: str = "embedded:tea.db") -> str:
    """A flow whose last service did not run, as `choreo trace` draws it."""
    choreo("topics", "apply", TARGET, "--broker", broker)
    module = importlib.import_module("tea_for_tests")

    async def serve() -> None:
        settings = {"broker": broker, "store": store, "create_schema": True}
        async with module.app.running(["kitchen"], **settings) as running:
            await running.publisher.publish(module.Asked(who="Ada"))
            for _ in range(1000):
                await asyncio.sleep(0.02)
                if running.workers["kitchen"].counts["handled"]:
                    return

    asyncio.run(serve())
    return choreo("trace", "--key", "Ada", TARGET, "--broker", broker, "--store", store).stdout


def test_postgres_tells_attempts_and_what_is_waited_for(here: Path, postgres: str) -> None:
    """As the SQLite store does."""
    drawn = drawn_with(f"{postgres}{'&' if '?' in postgres else '?'}choreo_schema=trace_{uuid4().hex}")
    assert "kitchen.pour handled " in drawn
    assert "waiting for bell.ring, 00:00:0" in drawn
    assert "postgres: 1 keys" in drawn


def test_redis_tells_by_its_keys_what_was_handled(here: Path, redis: str) -> None:
    """Not how often and how long, and that is said."""
    drawn = drawn_with(f"{redis}{'&' if '?' in redis else '?'}choreo_prefix={uuid4().hex}")
    assert "kitchen.pour done by its idempotency key" in drawn
    assert "waiting for bell.ring, 00:00:0" in drawn
    assert "the store keeps digests of keys" in drawn


def test_flow_on_kafka_is_found_by_its_key(here: Path, kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In topics with a prefix; each service's store is a file of its own, and that of one is not here."""
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", f"{uuid4().hex}.")
    drawn = drawn_with("sqlite:{service}.db", f"kafka://{kafka}")
    assert "kitchen.pour handled " in drawn
    assert "unknown whether bell.ring has handled it, 00:00:0" in drawn
    assert "there is no bell.db here" in drawn
