"""A service's life on a real Kafka: brokers restart, topics go and grow, offsets run out, handlers are slow."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo import App, Event, Service
from choreo.core.messages import Limits
from choreo.ports import TopicSpec
from choreo.record import TopicPartition
from choreo.running import Running, services
from choreo.transports.kafka import KafkaTransport
from deploy.kafka.cluster import LocalKafka
from deploy.kafka.jars import Missing
from tests.integration.bare_client import waited
from tests.integration.kafka_stage import QUICK, Owner, Stage
from tests.kafka_server import unavailable


class Happened(Event, type="life.happened", version=1, topic="life", key="name"):
    """What the service is told of."""

    name: str


class Noted(Event, type="life.noted", version=1, topic="notes", key="name"):
    """The same on a topic of its own."""

    name: str


class Life:
    """One service on topics of its own, and what it has handled."""

    def __init__(self, servers: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.servers = servers
        self.handled: Counter[str] = Counter()
        self.handler_s: Callable[[str], float] = lambda _: 0.0
        self.at_once = 0
        self.topic, self.notes = (f"{name}-{uuid4()}" for name in ("life", "notes"))
        self.group = f"life-{uuid4()}"
        self.store = f"sqlite:{folder}/life.db"
        self.options: dict[str, Any] = dict(QUICK)
        self.service = Service("life", group=self.group)
        self.service.handler(Happened)(self._happened)
        self.service.handler(Noted)(self._noted)
        self.app = App(
            self.service, topics={"life": self.topic, "notes": self.notes, "life.dlq": f"{self.topic}.dlq"}
        )
        monkeypatch.setattr(services, "open_transport", lambda broker, **_: self.transport())

    def transport(self) -> KafkaTransport:
        """A transport for one run."""
        return KafkaTransport(self.servers, send_s=10.0, ask_s=5.0, consumer_options=self.options)

    async def _happened(self, event: Happened) -> None:
        self.at_once += 1
        await asyncio.sleep(self.handler_s(event.name))
        self.at_once -= 1
        self.handled[event.name] += 1

    async def _noted(self, event: Noted) -> None:
        self.handled[event.name] += 1

    @asynccontextmanager
    async def running(self, *, partitions: int = 1, **settings: Any) -> AsyncIterator[Running]:
        """The service at work, all its partitions taken."""
        async with self.app.running(
            broker=f"kafka://{self.servers}",
            store=self.store,
            create_topics=True,
            create_schema=True,
            partitions=partitions,
            drain_s=5.0,
            **settings,
        ) as running:
            yield running

    async def all_of(self, names: list[str], *, within_s: float = 10.0) -> None:
        """Wait until each was handled, and check that each was once."""
        await waited(lambda: all(self.handled[name] for name in names), within_s=within_s)
        assert {name: self.handled[name] for name in names} == dict.fromkeys(names, 1)


@asynccontextmanager
async def admin(servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client."""
    client = AIOKafkaAdminClient(bootstrap_servers=servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
def life(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    """A service of this test alone."""
    return Life(kafka, tmp_path, monkeypatch)


def names(what: str, count: int) -> list[str]:
    """Keys, and so lanes, of their own."""
    return [f"{what}-{number}" for number in range(count)]


async def publish(running: Running, *events: Event) -> None:
    """One after the other, each acknowledged."""
    for event in events:
        await running.publish(event)


def warnings_of(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """What choreo's worker warned of, with all of these words in it."""
    found = [record.getMessage() for record in caplog.records if record.name == "choreo.worker"]
    return [message for message in found if all(word in message for word in words)]


async def test_broker_restart_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only broker is killed while events wait for it; started again, the service goes on by itself."""
    broker = LocalKafka(tmp_path / "kafka")
    try:
        await asyncio.to_thread(broker.start)
    except Missing as error:
        unavailable(str(error))
    try:
        life = Life(broker.bootstrap_servers, tmp_path, monkeypatch)
        async with life.running() as running:
            before, while_down = names("before", 30), names("after", 30)
            life.handler_s = lambda _: 0.02
            await publish(running, *(Happened(name=name) for name in before))
            await waited(lambda: len(life.handled) > 5)
            await asyncio.to_thread(broker.kill, 1)
            await asyncio.to_thread(broker.restart, 1)
            await publish(running, *(Happened(name=name) for name in while_down))
            await life.all_of(before + while_down, within_s=15.0)
    finally:
        await asyncio.to_thread(broker.stop)


async def test_deleted_topic_is_told_and_the_others_go_on(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """An error that says so, again and again but ever more seldom; no spinning; made anew, it is read again."""
    async with life.running() as running:
        await publish(running, Happened(name="before"), Noted(name="noted before"))
        await life.all_of(["before", "noted before"])
        async with admin(life.servers) as client:
            await client.delete_topics([life.topic])
        await waited(lambda: warnings_of(caplog, life.topic, "was it deleted"), within_s=10)
        cpu_s, lines = time.process_time(), len(caplog.records)
        await publish(running, Noted(name="noted after"))
        await life.all_of(["noted after"])
        await asyncio.sleep(2)
        assert time.process_time() - cpu_s < 1.0
        assert len(warnings_of(caplog, "was it deleted")) <= 3
        assert len(caplog.records) - lines < 100
        await life.transport().create_topics([TopicSpec(life.topic, 1)])
        await publish(running, Happened(name="after"))
        await life.all_of(["after"])


async def test_widened_topic_is_read_whole(life: Life) -> None:
    """Partitions added while the service runs are taken within metadata_max_age_ms, and read from their beginning."""
    async with life.running() as running:
        worker = running.workers["life"]
        await publish(running, Happened(name="before"))
        await life.all_of(["before"])
        await running.transport.widen({life.topic: 3})
        events = names("after", 30)
        await publish(running, *(Happened(name=name) for name in events))
        await waited(lambda: len([each for each in worker.leases if each.topic == life.topic]) == 3, within_s=8)
        await life.all_of(events)


async def test_offset_out_of_range_stops_its_partition_only(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """While it runs: what was deleted is said with its offsets, the other partitions go on, the log stays short."""
    life.options["max_partition_fetch_bytes"] = 1_000
    limits = Limits(unfinished_max=1, concurrency=1)
    async with life.running(limits=limits) as running:
        life.handler_s = lambda name: 1.5 if name == "slow-0" else 0.0
        slow = names("slow", 40)
        await publish(running, *(Happened(name=name) for name in slow))
        await waited(lambda: life.at_once)
        async with admin(life.servers) as client:
            await client.delete_records({KafkaPartition(life.topic, 0): RecordsToDelete(before_offset=39)})
        await waited(lambda: warnings_of(caplog, f"{life.topic}/0", "--to-earliest"), within_s=10)
        noted = names("noted", 20)
        await publish(running, *(Noted(name=name) for name in noted))
        await life.all_of(noted)
        await asyncio.sleep(2)
        assert 1 <= len(warnings_of(caplog, "--to-earliest")) <= 4
        assert "slow-39" not in life.handled, "never a silent reset"


async def test_back_pressure_pauses_and_resumes(life: Life) -> None:
    """Two partitions of 300 events, never more than a few in the process: each is handled once."""
    limits = Limits(concurrency=8, unfinished_max=10)
    events = names("event", 600)
    life.handler_s = lambda _: 0.002
    most, paused = 0, 0
    async with life.running(partitions=2, limits=limits) as running:
        worker = running.workers["life"]
        real = worker.consumer.pause

        def pause(partition: TopicPartition) -> None:
            nonlocal paused
            paused += 1
            real(partition)

        worker.consumer.pause = pause  # type: ignore[method-assign]
        publishing = asyncio.gather(*(running.publish(Happened(name=name)) for name in events))
        while len(life.handled) < len(events):
            most = max(most, life.at_once)
            await asyncio.sleep(0.005)
        await publishing
        await life.all_of(events)
        assert paused > 2
        assert 1 < most <= 8


async def test_handler_longer_than_the_poll_interval_keeps_its_partition(life: Life) -> None:
    """Eight seconds at an interval of three: nobody is evicted, other keys go on, and it is handled once."""
    life.options["max_poll_interval_ms"] = 3_000
    life.handler_s = lambda name: 8.0 if name == "long" else 0.0
    told: list[str] = []
    async with life.running(partitions=2) as running:
        worker = running.workers["life"]
        revoked: Callable[..., Awaitable[None]] = worker.holder.revoked

        async def tell(*arguments: Any, **options: Any) -> None:
            told.append("revoked")
            await revoked(*arguments, **options)

        worker.holder.revoked = tell  # type: ignore[method-assign]
        await publish(running, Happened(name="long"))
        await waited(lambda: life.at_once)
        quick = names("quick", 20)
        await publish(running, *(Happened(name=name) for name in quick))
        await life.all_of(quick, within_s=4)
        assert not life.handled["long"]
        await life.all_of(["long"], within_s=10)
        assert told == []


async def test_close_ends_although_partitions_cannot_be_taken(kafka: str) -> None:
    """An `assigned` that tries for ever, as while a store is down, is cancelled; `revoked` is told as always."""
    async with Stage(kafka) as stage:
        topic, owner = await stage.topic(), Owner()

        async def never() -> None:
            await asyncio.Event().wait()

        owner.on_assigned = never
        _, consumer = await stage.join(topic, owner=owner)
        await waited(lambda: owner.told)
        started_s = time.monotonic()
        await consumer.close()
        assert time.monotonic() - started_s < 3
        assert owner.told == [("assigned", 1, False), ("revoked", 1, False)]


async def test_offset_out_of_range_at_start_stops_its_partition_only(
    life: Life, caplog: pytest.LogCaptureFixture
) -> None:
    """Found when the partition is taken: said, and the partitions beside it flow."""
    async with life.running() as running:
        await publish(running, Happened(name="first"))
        await life.all_of(["first"])
    async with life.running() as running:
        events = names("lost", 3)
        life.handler_s = lambda _: 60.0
        await publish(running, *(Happened(name=name) for name in events))
        await waited(lambda: life.at_once)
    async with admin(life.servers) as client:
        await client.delete_records({KafkaPartition(life.topic, 0): RecordsToDelete(before_offset=3)})
    async with life.running() as running:
        await waited(lambda: warnings_of(caplog, f"{life.topic}/0", "--to-earliest"))
        await publish(running, Noted(name="noted"))
        await life.all_of(["noted"], within_s=4)
        assert len(warnings_of(caplog, "--to-earliest")) <= 4
