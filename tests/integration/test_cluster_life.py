"""A service's life on three brokers: coordinators move, members are restarted in turn, one is frozen and wakes."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from deploy.kafka.cluster import LocalKafka
from deploy.kafka.jars import Missing
from tests.integration.cluster import Group, coordinator_of, in_sync
from tests.kafka_server import unavailable

PROPERTIES = {
    # As low as the tests want it; the broker's own is 45 s.
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
}
CLASSIC = {"CHOREO_KAFKA_GROUP_PROTOCOL": "classic"}


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """Three of them."""
    kafka = LocalKafka(tmp_path_factory.mktemp("cluster"), nodes=3, properties=PROPERTIES)
    try:
        kafka.start()
    except Missing as error:
        unavailable(str(error))
    yield kafka
    kafka.stop()


async def test_coordinators_are_killed_one_after_another(brokers: LocalKafka, tmp_path: Path) -> None:
    """Each broker dies once, the group's coordinator first: nothing is lost, and no process is started again."""
    servers = brokers.bootstrap_servers
    pairs = {
        "aiokafka, changelog": Group(tmp_path, servers, "kafka", "changelog"),
        "confluent, changelog": Group(tmp_path, servers, "kafka+confluent", "changelog"),
        "aiokafka, SQLite": Group(tmp_path, servers, "kafka", "sqlite"),
    }
    async with AsyncExitStack() as stack:
        for group in pairs.values():
            group.per_s = 40.0
            await stack.enter_async_context(group)
            group.start("one")
        for group in pairs.values():
            await group.all_owned("one")
        async with AsyncExitStack() as loads:
            for group in pairs.values():
                await loads.enter_async_context(group.load())
            for group in pairs.values():
                await asyncio.sleep(1)
                await _kill_and_bring_back(brokers, await coordinator_of(servers, group.group))
        for group in pairs.values():
            await group.settled()
            await group.stop()
        outcomes = {name: await group.outcome() for name, group in pairs.items()}
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome.figures()}")
        assert (outcome.lost, outcome.reordered, outcome.kept_wrongly) == (0, 0, 0), name
        assert len(outcome.by) == 1, f"{name}: one process, all the time"
    assert outcomes["aiokafka, changelog"].duplicated == outcomes["confluent, changelog"].duplicated == 0


async def _kill_and_bring_back(brokers: LocalKafka, node: int) -> None:
    """SIGKILL; back after 3 s, when the others have noticed; until all copies are in sync."""
    await asyncio.to_thread(brokers.kill, node)
    await asyncio.sleep(3)
    await asyncio.to_thread(brokers.restart, node)
    await in_sync(brokers.bootstrap_servers)
