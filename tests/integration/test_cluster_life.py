"""A service's life on three brokers: coordinators move, members are restarted in turn, one is frozen and wakes."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from choreo.ports import TopicSpec
from choreo.record import ProducerRecord, TopicPartition
from choreo.transports.confluent import ConfluentConsumer, ConfluentTransport
from choreo.transports.confluent.client import Consumer, Place
from choreo.transports.confluent.poll import PollThread
from choreo.transports.kafka import KafkaTransport
from deploy.kafka.cluster import LocalKafka
from deploy.kafka.jars import Missing
from tests.integration.cluster import Group, admin, coordinator_of, in_sync
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
    """One group's coordinator dies, then another's: nothing is lost, and no process is started again."""
    servers = brokers.bootstrap_servers
    pairs = {
        "aiokafka, changelog": Group(tmp_path, servers, "kafka", "changelog"),
        "aiokafka, SQLite": Group(tmp_path, servers, "kafka", "sqlite"),
        "confluent, changelog": Group(tmp_path, servers, "kafka+confluent", "changelog"),
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


ROLLING: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "aiokafka, eager": ("kafka", {}),
    "confluent, classic": ("kafka+confluent", CLASSIC),
    "confluent, KIP-848": ("kafka+confluent", {}),
}


@pytest.mark.parametrize("way", ["aiokafka, eager", "confluent, classic"])
async def test_members_are_restarted_in_turn(brokers: LocalKafka, tmp_path: Path, way: str) -> None:
    """One of three members, drained and started again under load: nothing is lost, repeated or done twice."""
    client, environment = ROLLING[way]
    group = Group(tmp_path, brokers.bootstrap_servers, client, handler_s=(0.05, 0.2), environment=environment)
    group.per_s = 60.0
    await roll(group, restarts=1)
    outcome = await group.outcome()
    print(f"{way}: {outcome.figures()}, {dict(group.counts())}")
    assert (outcome.lost, outcome.duplicated, outcome.reordered, outcome.redone) == (0, 0, 0, 0)
    assert group.counts()["failed_attempts"] == 0


async def roll(group: Group, *, restarts: int, static: bool = False) -> None:
    """Three members under load; one after the other is restarted when all have partitions."""
    names = ("one", "two", "three")
    own = {name: {"CHOREO_KAFKA_GROUP_INSTANCE_ID": f"{group.group}-{name}"} if static else {} for name in names}
    async with group:
        for name in names:
            group.start(name, **own[name])
        await group.all_owned(*names)
        async with group.load():
            await asyncio.sleep(2)
            for name in names[:restarts]:
                await group.restart(name, **own[name])
                await group.all_owned(*names)
            await asyncio.sleep(1)
        await group.settled()
        await group.stop()


@pytest.mark.parametrize(
    ("client", "store"), [("kafka", "changelog"), ("kafka+confluent", "changelog"), ("kafka", "sqlite")]
)
async def test_member_frozen_in_its_handlers_commits_nothing_when_it_wakes(
    brokers: LocalKafka, tmp_path: Path, client: str, store: str
) -> None:
    """SIGSTOP for longer than its session, another one does its work, SIGCONT: what it had in hand is refused."""
    environment = {"CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000"}
    group = Group(tmp_path, brokers.bootstrap_servers, client, store, handler_s=(1.0, 1.0), environment=environment)
    group.partitions, group.lease_s = 2, 3.0
    async with group:
        group.start("frozen")
        await group.all_owned("frozen")
        frozen = group.processes["frozen"]
        keys = [key for partition in range(2) for key in group.keys_of(partition)]
        await asyncio.gather(*(group.publish(key, number) for number, key in enumerate(keys)))
        await _until(lambda: len(group.calls("begin")) == len(keys))
        frozen.send_signal(signal.SIGSTOP)
        assert group.calls("end") == []
        group.start("other")
        await _until(lambda: len(group.calls("end")) == len(keys), within_s=60)
        assert {by for _, by in group.calls("end")} == {group.processes["other"].pid}
        frozen.send_signal(signal.SIGCONT)
        later = [group.publish(key, len(keys) + number) for number, key in enumerate(keys)]
        await asyncio.gather(*later)
        await group.settled()
        await group.all_owned("frozen", "other")
        await group.stop()
        outcome = await group.outcome()
    assert (outcome.lost, outcome.duplicated, outcome.reordered, outcome.kept_wrongly) == (0, 0, 0, 0)
    assert len(outcome.delay_s) == 2 * len(keys)
    assert outcome.redone >= len(keys), "both had begun them"


async def _until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s, "not in time"
        await asyncio.sleep(0.05)


async def test_partition_is_read_whole_from_where_it_was_sought(
    brokers: LocalKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leader stands still while it is assigned, and takes up records before it answers: none is skipped.

    librdkafka asked for the log's end would go there when the answer comes, although the partition was sought since.
    """
    transport, topic, found = KafkaTransport(brokers.bootstrap_servers), f"sought-{uuid4()}", []
    await transport.create_topics([TopicSpec(topic, 1, 3)])
    async with admin(brokers.bootstrap_servers) as client:
        leader = (await client.describe_topics([topic]))[0]["partitions"][0]["leader"]
    pid = next(int(str(node["pid"])) for node in brokers.status() if node["node"] == leader)
    assign = PollThread._on_assign

    def frozen(thread: PollThread, consumer: Consumer, places: list[Place]) -> None:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()  # sooner than the controller misses it
        assign(thread, consumer, places)

    monkeypatch.setattr(PollThread, "_on_assign", frozen)
    reading = ConfluentTransport(brokers.bootstrap_servers, group_protocol="classic")
    owner = _Seeker()
    owner.consumer = await reading.consumer(await _group_led_elsewhere(brokers, leader), [topic], owner)
    try:
        until_s = time.monotonic() + 6
        while time.monotonic() < until_s:
            await transport.send([ProducerRecord(topic, b"k", b"v", (), 0)])
            found += [each.offset for each in await owner.consumer.fetch(records_max=500, wait_s=0.01)]
    finally:
        await owner.consumer.close()
        await reading.close()
        await transport.close()
    assert len(found) > 20
    assert found == list(range(len(found)))


class _Seeker:
    """Reads from the beginning on, without asking anybody."""

    consumer: ConfluentConsumer

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self.consumer.seek(partition, 0)

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        pass


async def _group_led_elsewhere(brokers: LocalKafka, leader: int) -> str:
    while True:
        group = f"sought-{uuid4()}"
        if await coordinator_of(brokers.bootstrap_servers, group) != leader:
            return group


async def test_broker_of_classic_groups_only_is_told_of_with_what_to_set(tmp_path: Path) -> None:
    """KIP-848 is refused by the broker: every fetch says so, not only the first; with `classic` it works."""
    kafka = LocalKafka(tmp_path / "kafka", properties={"group.coordinator.rebalance.protocols": "classic"})
    try:
        await asyncio.to_thread(kafka.start)
    except Missing as error:
        unavailable(str(error))
    try:
        group = Group(tmp_path, kafka.bootstrap_servers, "kafka+confluent", partitions=1, replication=1)
        async with group:
            group.start("one")
            told = "set CHOREO_KAFKA_GROUP_PROTOCOL=classic"
            await _until(lambda: group.log("one").count(told) > 1)
            await group.stop()
            group.start("one", **CLASSIC)
            await group.all_owned("one")
            await group.stop()
    finally:
        await asyncio.to_thread(kafka.stop)
