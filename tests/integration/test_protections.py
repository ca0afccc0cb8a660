"""Each protection of the engine has a test that fails without it, and a companion that proves so by removing it.

Workers on real SQLite files and a log in memory. A crash is a worker whose tasks all end where they stand.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from choreo import App, Event, Service
from choreo.core.partition import Partition
from choreo.envelope import Envelope, read, write
from choreo.errors import TransportError
from choreo.ports import Assignment, Consumer, Peer, Start, TopicSpec
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.runtime import emitting
from choreo.runtime.clock import SystemClock
from choreo.runtime.emitting import Emitter
from choreo.runtime.invoking import Invoker
from choreo.runtime.outgoing import Outgoing
from choreo.runtime.worker import Ports, Worker
from choreo.sqlite import leases
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from choreo.stores.sqlite import commit as sqlite_commit
from choreo.telemetry.setup import instrument_from_environment

ASKED, POURED = TopicPartition("asks", 0), TopicPartition("pours", 0)


class Asked(Event, type="asked", version=1, topic="asks", key="who"):
    """Somebody wants tea."""

    who: str


class Poured(Event, type="poured", version=1, topic="pours", key="who"):
    """Somebody has tea."""

    who: str


kitchen, bell = Service("kitchen"), Service("bell")


class World:
    """What outlives a worker: gates that hold handlers up, and what handlers did."""

    def __init__(self) -> None:
        self.poured: list[str] = []
        self.rung: list[str] = []
        self.held: dict[str, asyncio.Event] = {}


@kitchen.handler(Asked)
async def pour(asked: Asked, world: World) -> Poured:
    """Pour, once the gate for this guest is open."""
    if (gate := world.held.pop(asked.who, None)) is not None:
        await gate.wait()
    world.poured.append(asked.who)
    return Poured(who=asked.who)


@bell.handler(Poured)
async def ring(poured: Poured, world: World) -> None:
    """Ring."""
    world.rung.append(poured.who)


app = App(kitchen, bell, resources={World: World})


class Log:
    """A transport in memory: topics of one partition; every member gets all of it, as after a split brain."""

    name, system, peer = "memory", "memory", Peer()

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = defaultdict(list)
        self.offsets: dict[tuple[str, TopicPartition], int] = {}
        self.refuses = False

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> Consumer:
        """A member that will be told of every partition."""
        return Member(self, group, [TopicPartition(topic, 0) for topic in topics], assignment)

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Append, unless the broker is away."""
        if self.refuses:
            raise TransportError("the broker is away")
        for topic, key, value, headers, _ in records:
            log = self.records[topic]
            log.append(Record(topic, 0, len(log), key, value, headers, 1_000))

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicSpec]:
        """Not asked for."""
        return {}

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Not asked for."""

    async def widen(self, partitions: Mapping[str, int]) -> None:
        """Not asked for."""

    async def scan(self, topics: Sequence[str], *, since_ms: int, key: bytes | None = None) -> Sequence[Record]:
        """Everything."""
        return [record for topic in topics for record in self.records[topic]]

    async def ask(self, *guests: str) -> None:
        """Publish."""
        for who in guests:
            event = Asked(who=who)
            headers = write(Envelope(f"id of {who}", "/guests", "asked", version=1, correlationid=who))
            await self.send([ProducerRecord("asks", event.record_key(), event.payload(), headers)])

    def guests_with_tea(self) -> list[str]:
        """Who is on the topic of what was poured, as often as they are."""
        return [str(Poured.from_payload(record.value or b"").who) for record in self.records["pours"]]


class Member:
    """A consumer of all partitions from its first fetch on."""

    def __init__(self, log: Log, group: str, partitions: Sequence[TopicPartition], assignment: Assignment) -> None:
        self.member = uuid4().hex
        self._log, self._group, self._partitions, self._assignment = log, group, list(partitions), assignment
        self._positions: dict[TopicPartition, int] = {}
        self._told = False

    @property
    def joined(self) -> bool:
        """Once it was told of its partitions."""
        return self._told

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """What is new."""
        if not self._told:
            self._told = True
            await self._assignment.assigned(self._partitions)
        await asyncio.sleep(0.002)
        found: list[Record] = []
        for partition, at in self._positions.items():
            found += self._log.records[partition.topic][at:]
            self._positions[partition] = len(self._log.records[partition.topic])
        return found

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """Committed, or the beginning."""
        return self._log.offsets.get((self._group, partition), 0)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch from there."""
        self._positions[partition] = offset

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The length of each."""
        return {partition: len(self._log.records[partition.topic]) for partition in partitions}

    def drained(self, partition: TopicPartition) -> bool:
        """Whether all of it was fetched."""
        return self._positions.get(partition) == len(self._log.records[partition.topic])

    def pause(self, partition: TopicPartition) -> None:
        """Fetch no more of it."""
        self._positions.pop(partition, None)

    def resume(self, partition: TopicPartition) -> None:
        """Not needed here."""

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """A broker that believes every member: fencing is not its work here."""
        self._log.offsets |= {(self._group, partition): offset for partition, offset in offsets.items()}

    async def close(self) -> None:
        """Leave."""


class Stage:
    """Workers on one log and one folder of stores."""

    def __init__(self, folder: Path) -> None:
        self.log, self.world = Log(), World()
        self._folder = folder
        self._workers: list[tuple[Worker, SqliteStore]] = []

    async def start(self, service: Service, *, file: str = "") -> Worker:
        """A worker as in a process of its own: its connection to the file is not shared."""
        clock = SystemClock()
        store = SqliteStore(Database(str(self._folder / f"{file or service.name}.db")), clock, with_log=False)
        await store.open()
        instrument = instrument_from_environment(service.name, system="memory")
        worker = Worker(
            service,
            app.input_topics(service.name),
            Ports(self.log, store, instrument, clock),
            app.router(service.name),
            Emitter(service, app.topic),
            Invoker({World: self.world}, (), clock),
        )
        self._workers.append((worker, store))
        await worker.start()
        return worker

    async def crash(self, worker: Worker) -> None:
        """End all of its tasks where they stand; nothing is committed, released or given back."""
        timer = [worker._timer] if worker._timer else []
        tasks = [*worker._loops, *worker._tasks, *timer]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        worker._failure.cancel()
        for each, store in self._workers:
            if each is worker:
                await store.close()
        self._workers = [each for each in self._workers if each[0] is not worker]

    async def close(self) -> None:
        """Crash whoever is left."""
        for worker, _ in list(self._workers):
            await self.crash(worker)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty log and an empty folder."""
    stage = Stage(tmp_path)
    yield stage
    await stage.close()


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait for something that will happen."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def never(condition: Callable[[], object], for_s: float = 0.3) -> None:
    """What would have happened by now has not."""
    with pytest.raises(TimeoutError):
        await until(condition, for_s)


# ---- lease


async def overtaken(stage: Stage) -> int:
    """A member stops in the middle of an event and is overtaken by another, then goes on; the offset afterwards."""
    gate = stage.world.held["Ada"] = asyncio.Event()
    await stage.log.ask("Ada", "Bob", "Cyd")
    frozen = await stage.start(kitchen)
    await until(lambda: frozen.counts["handled"] == 2)
    await stage.start(kitchen)
    await until(lambda: stage.log.offsets.get(("kitchen", ASKED)) == 3)
    done = frozen.counts["handled"]
    gate.set()
    await until(lambda: len(stage.world.poured) == 4)
    await until(lambda: frozen.counts["handled"] > done or ASKED not in frozen.leases)
    await asyncio.sleep(0.05)
    assert sorted(stage.log.guests_with_tea()) == ["Ada", "Bob", "Cyd"]
    return frozen.counts["handled"] - done


async def test_lease_fences_a_member_that_was_overtaken(stage: Stage) -> None:
    """The frozen member's commit writes nothing: its epoch is not the newest."""
    assert await overtaken(stage) == 0


async def test_lease_is_needed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the epoch, in leases and in claims, a member that lost its partition commits for it."""
    monkeypatch.setattr(leases, "lost", lambda db, held: set())
    monkeypatch.setattr(sqlite_commit, "OUR_CLAIM", '"group" = ? AND topic = ? AND "partition" = ? AND ? IS NOT NULL')
    assert await overtaken(stage) > 0


# ---- derived id


async def store_is_lost(stage: Stage) -> list[str]:
    """The kitchen's store is lost with its keys and all is handled again; what the bell did in the end."""
    await stage.start(bell)
    first = await stage.start(kitchen)
    await stage.log.ask("Ada", "Bob")
    await until(lambda: len(stage.world.rung) == 2)
    await stage.crash(first)
    stage.log.offsets.pop(("kitchen", ASKED))
    await stage.start(kitchen, file="another")
    await until(lambda: len(stage.log.guests_with_tea()) == 4)
    await until(lambda: stage.log.offsets.get(("bell", POURED)) == 4)
    return sorted(stage.world.rung)


async def test_derived_id_lets_the_next_service_drop_what_is_emitted_again(stage: Stage) -> None:
    """A re-run emits the same ids, and who handled them before does not do so again."""
    assert await store_is_lost(stage) == ["Ada", "Bob"]
    ids = [read(record.headers, record.value or b"")[0].id for record in stage.log.records["pours"]]
    assert ids[:2] == ids[2:]


async def test_derived_id_is_needed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ids at random the bell rings twice for each guest."""
    monkeypatch.setattr(emitting, "derived_id", lambda *_: str(uuid4()))
    assert await store_is_lost(stage) == ["Ada", "Ada", "Bob", "Bob"]


# ---- watermark


async def slow_and_fast(stage: Stage) -> None:
    """The first event hangs, the second is done; then the process dies and another takes over."""
    gate = stage.world.held["Ada"] = asyncio.Event()
    await stage.log.ask("Ada", "Bob")
    worker = await stage.start(kitchen)
    await until(lambda: stage.log.guests_with_tea() == ["Bob"] and not worker.engine._commits.flight)
    await asyncio.sleep(0.05)
    await stage.crash(worker)
    assert not gate.is_set()
    await stage.start(kitchen)


async def test_watermark_keeps_what_is_unfinished(stage: Stage) -> None:
    """The offset stays below an event that is not finished, and it comes again."""
    await slow_and_fast(stage)
    await until(lambda: stage.log.guests_with_tea() == ["Bob", "Ada"])


async def test_watermark_is_needed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the highest finished offset committed, as many consumers do, the slow event is lost."""
    monkeypatch.setattr(Partition, "watermark", lambda self: self.position)
    await slow_and_fast(stage)
    await never(lambda: "Ada" in stage.log.guests_with_tea())


# ---- outbox


async def dies_before_sending(stage: Stage) -> None:
    """The commit is durable, the broker is away, the process dies; then all is well and another takes over."""
    worker = await stage.start(kitchen)
    await stage.log.ask("Ada")
    stage.log.refuses = True
    await until(lambda: worker.engine._commits.flight and stage.world.poured)
    await asyncio.sleep(0.1)
    assert stage.log.guests_with_tea() == []
    await stage.crash(worker)
    stage.log.refuses = False
    await stage.start(kitchen)


async def test_outbox_is_sent_by_whoever_takes_over(stage: Stage) -> None:
    """The emit arrives, though the handler is not run again."""
    await dies_before_sending(stage)
    await until(lambda: stage.log.guests_with_tea() == ["Ada"])
    assert stage.world.poured == ["Ada"]


async def test_outbox_resend_is_needed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the key says done, the event is dropped as a duplicate, and what it caused is lost."""

    async def forgets(self: Outgoing, lease: object) -> None:
        """Send nothing."""

    monkeypatch.setattr(Outgoing, "resend", forgets)
    await dies_before_sending(stage)
    await until(lambda: stage.log.offsets.get(("kitchen", ASKED)) == 1)
    await never(lambda: stage.log.guests_with_tea())
