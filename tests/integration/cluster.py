"""A service as processes of its own on a Kafka of three brokers: load, rolling restarts, kills, and what came of it.

As a program, `python -m tests.integration.cluster JOB`, it is one of these processes.
"""

import asyncio
import faulthandler
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self, TypedDict
from uuid import uuid4

import orjson
from aiokafka.admin import AIOKafkaAdminClient

from choreo import App, Event, Service
from choreo.cli import logs
from choreo.cli.run import stop_on_signals
from choreo.errors import TransportError
from choreo.ports import TopicSpec
from choreo.publisher import Publisher
from choreo.record import Record
from choreo.runtime.clock import SystemClock
from choreo.stores.changelog import changelog_specs
from choreo.telemetry.silent import NoInstrument
from choreo.transports.kafka import KafkaTransport
from choreo.transports.kafka.producer import partition_of

ROOT = Path(__file__).parents[2]
STAMPED_BY_BROKER = (("message.timestamp.type", "LogAppendTime"),)


class Work(Event, type="cluster.work", version=1, topic="work", key="key"):
    """What is to be done; `number` grows within a key, and is there once."""

    key: str
    number: int


class Done(Event, type="cluster.done", version=1, topic="done", key="key"):
    """What was done, and by which process."""

    key: str
    number: int
    by: int


class Job(TypedDict):
    """One process: what it runs on, and where it writes what it does."""

    name: str
    folder: str
    broker: str
    store: str
    prefix: str
    handler_s: Sequence[float]
    lease_s: float


# ---- the process


def app_of(job: Job) -> App:
    """One handler that takes its time and emits; with SQLite another one that writes a row."""
    calls = os.open(Path(job["folder"]) / "calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    worker, prefix = Service("worker", group=f"{job['prefix']}worker"), job["prefix"]

    def note(what: str, number: int) -> None:
        os.write(calls, f"{what} {number} {os.getpid()}\n".encode())

    async def work(work: Work) -> Done:
        note("begin", work.number)
        await asyncio.sleep(random.uniform(*job["handler_s"]))
        note("end", work.number)
        return Done(key=work.key, number=work.number, by=os.getpid())

    def keep(work: Work, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO kept VALUES (?)", (work.number,))

    worker.handler(Work)(work)
    if job["store"].startswith("sqlite"):
        worker.on_start(lambda db: db.execute("CREATE TABLE IF NOT EXISTS kept (number INTEGER)"))
        worker.handler(Work)(keep)
    return App(worker, topics={name: prefix + name for name in ("work", "done", "worker.dlq")}, name="cluster")


async def live(job: Job) -> None:
    """Run until SIGTERM, telling how many partitions are owned; in the end, what was counted."""
    logs.configure(as_json=False)
    faulthandler.register(signal.SIGUSR1)  # where it hangs, if it does
    stop, folder = stop_on_signals(), Path(job["folder"])
    running = app_of(job).running(
        broker=job["broker"], store=job["store"], lease_s=job["lease_s"], create_schema=True, drain_s=20.0
    )
    async with running as services:
        worker = services.workers["worker"]
        failing = asyncio.ensure_future(services.failed())
        while not stop.is_set() and not failing.done():
            (folder / f"{job['name']}.owned").write_text(str(len(worker.leases)))
            await asyncio.sleep(0.1)
        if failing.done():
            failing.result()
        failing.cancel()
    (folder / f"{job['name']}.owned").write_text("0")
    with open(folder / f"{job['name']}.counts", "a") as file:
        file.write(json.dumps(worker.counts) + "\n")


# ---- the test's side


class Outcome(NamedTuple):
    """What the topics hold in the end, and how long it took.

    `pause_s`: longest time between two results of one partition. `delay_s`: longest from an event on its topic to its
    result on its own, sorted; both by the brokers' clock. `redone`: handlers begun beyond one an event.
    """

    lost: int
    duplicated: int
    reordered: int
    kept_wrongly: int
    pause_s: float
    delay_s: Sequence[float]
    redone: int
    by: Mapping[int, int]

    def figures(self) -> str:
        """One line for people."""
        p50, p99 = (self.delay_s[int(len(self.delay_s) * part)] for part in (0.5, 0.99))
        return (
            f"{len(self.delay_s)} events, lost {self.lost}, duplicated {self.duplicated}, reordered {self.reordered}, "
            f"redone {self.redone}, pause {self.pause_s:.1f} s, delay p50 {p50 * 1000:.0f} ms, "
            f"p99 {p99 * 1000:.0f} ms, max {self.delay_s[-1]:.1f} s"
        )


@dataclass
class Group:
    """One service on topics of its own; used as a context manager, which leaves no process behind.

    `client` is the broker URL's scheme; `keys` a partition; `per_s` events altogether.
    """

    folder: Path
    servers: str
    client: str = "kafka"
    store: str = "changelog"
    partitions: int = 6
    keys: int = 4
    per_s: float = 100.0
    handler_s: tuple[float, float] = (0.0, 0.0)
    lease_s: float = 30.0
    replication: int = 3
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prefix = f"cluster-{uuid4().hex[:8]}."
        self.group = f"{self.prefix}worker"
        self.published: list[int] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = self.folder / self.prefix.rstrip(".")
        self.folder.mkdir(parents=True)
        self.transport = KafkaTransport(self.servers, send_s=10.0)
        self.app = app_of(self._job("none"))
        self._publisher = Publisher(self.transport, NoInstrument(), SystemClock(), topic=self.app.topic)

    async def __aenter__(self) -> Self:
        inputs = {self.app.topic("work"): TopicSpec(self.app.topic("work"), self.partitions, self.replication)}
        specs = [
            *(spec._replace(config=STAMPED_BY_BROKER) for spec in inputs.values()),
            TopicSpec(self.app.topic("done"), self.partitions, self.replication, STAMPED_BY_BROKER),
            TopicSpec(self.app.topic("worker.dlq"), 1, self.replication),
            *(changelog_specs(self.group, inputs) if self.store == "changelog" else ()),
        ]
        await self.transport.create_topics(specs)
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()  # also one that is stopped
                process.wait(10)
        await self.transport.close()

    # ---- processes

    def start(self, name: str, **environment: str) -> None:
        """Start a process of the service; its log goes on where an earlier one of the name left it."""
        with open(self.folder / f"{name}.log", "ab") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.cluster", json.dumps(self._job(name))],
                cwd=ROOT,
                env={**os.environ, **self.environment, **environment},
                stdout=output,
                stderr=output,
            )

    def _job(self, name: str) -> Job:
        store = f"sqlite:{self.folder}/store.db" if self.store == "sqlite" else self.store
        broker = f"{self.client}://{self.servers}"
        return Job(
            name=name,
            folder=str(self.folder),
            broker=broker,
            store=store,
            prefix=self.prefix,
            handler_s=self.handler_s,
            lease_s=self.lease_s,
        )

    async def restart(self, name: str, **environment: str) -> None:
        """SIGTERM, wait until it has drained, start it again; it must have ended well."""
        process = self.processes[name]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 40) == 0, self.log(name)
        self.start(name, **environment)

    async def stop(self) -> None:
        """SIGTERM to all; each must have run until now, and drain."""
        assert {name: each.poll() for name, each in self.processes.items()} == dict.fromkeys(self.processes)
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        codes = [await asyncio.to_thread(process.wait, 40) for process in self.processes.values()]
        assert not any(codes), [self.log(name) for name in self.processes]

    def owned(self, name: str) -> int:
        """How many partitions the process of this name has."""
        try:
            return int((self.folder / f"{name}.owned").read_text() or 0)
        except FileNotFoundError:
            return 0

    async def all_owned(self, *names: str, each: int = 1, within_s: float = 60.0) -> None:
        """Wait until these processes share all partitions."""
        until_s = time.monotonic() + within_s
        while True:
            owned = [self.owned(name) for name in names]
            if sum(owned) == self.partitions and min(owned) >= each:
                return
            assert time.monotonic() < until_s, f"{owned} {[self.log(name) for name in names]}"
            await asyncio.sleep(0.1)

    def calls(self, what: str) -> list[tuple[int, int]]:
        """Number and process of each handler that began, or ended."""
        lines = (line.split() for line in (self.folder / "calls").read_text().splitlines())
        return [(int(number), int(by)) for kind, number, by in lines if kind == what]

    def counts(self) -> Counter[str]:
        """What all processes counted that have drained."""
        files = self.folder.glob("*.counts")
        return sum((Counter(json.loads(line)) for file in files for line in file.open()), Counter())

    def log(self, name: str) -> str:
        """The last lines a process of this name has said."""
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-25:])

    # ---- events

    def keys_of(self, partition: int) -> list[str]:
        """Keys that go to this partition."""
        names, every = (f"key-{n}" for n in range(10_000)), range(self.partitions)
        found = (name for name in names if partition_of(name.encode(), every, ()) == partition)
        return [name for name, _ in zip(found, range(self.keys), strict=False)]

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Publish all the while, each key in order, each event until it is acknowledged."""
        stop = asyncio.Event()
        keys = [key for n in range(self.partitions) for key in self.keys_of(n)]
        each_s = len(keys) / self.per_s
        async with asyncio.TaskGroup() as tasks:
            for index, key in enumerate(keys):
                tasks.create_task(self._publish(key, range(index, 10**9, len(keys)), each_s, stop))
            try:
                yield
            finally:
                stop.set()

    async def _publish(self, key: str, numbers: range, each_s: float, stop: asyncio.Event) -> None:
        next_s = time.monotonic() + random.uniform(0, each_s)
        for number in numbers:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if stop.is_set():
                return
            await self.publish(key, number)
            next_s += each_s

    async def publish(self, key: str, number: int) -> None:
        """One event, again with its own id until the brokers have it."""
        while True:
            try:
                await self._publisher.publish(Work(key=key, number=number), id=f"{self.prefix}{number}")
                self.published.append(number)
                return
            except TransportError:
                await asyncio.sleep(0.2)

    async def settled(self, *, within_s: float = 60.0) -> None:
        """Wait until a handler of every published event has ended."""
        until_s = time.monotonic() + within_s
        while missing := set(self.published) - {number for number, _ in self.calls("end")}:
            assert time.monotonic() < until_s, f"{len(missing)} not handled; {[map(self.log, self.processes)]}"
            await asyncio.sleep(0.2)

    async def outcome(self) -> Outcome:
        """Read the topics; the processes have drained, so nothing more comes."""
        work, done = self.app.topic("work"), self.app.topic("done")
        found = await self.transport.scan([work, done], since_ms=0)
        came: dict[int, int] = {}
        for record in found:
            if record.topic == work:
                came.setdefault(_event(record)["number"], record.timestamp_ms)
        results = sorted((each for each in found if each.topic == done), key=lambda each: each[:3])
        first: dict[int, Record] = {}
        for record in results:
            first.setdefault(_event(record)["number"], record)
        return Outcome(
            len(set(self.published) - set(first)),
            len(results) - len(first),
            _reordered(first),
            self._kept_wrongly(first),
            _pause_s(list(first.values())),
            sorted((record.timestamp_ms - came[number]) / 1000 for number, record in first.items()),
            len(self.calls("begin")) - len(first),
            Counter(_event(record)["by"] for record in results),
        )

    def _kept_wrongly(self, numbers: Collection[int]) -> int:
        """How many rows are missing or there twice."""
        if self.store != "sqlite":
            return 0
        with closing(sqlite3.connect(self.folder / "store.db")) as db:
            rows = Counter(number for (number,) in db.execute("SELECT number FROM kept"))
        return sum(abs(rows[number] - 1) for number in {*numbers, *rows})


def _event(record: Record) -> dict[str, int]:
    found: dict[str, int] = orjson.loads(record.value or b"{}")
    return found


def _reordered(first: Mapping[int, Record]) -> int:
    last: dict[bytes | None, int] = defaultdict(lambda: -1)
    wrong = 0
    for number, record in first.items():  # as they are on the topic
        wrong += number < last[record.key]
        last[record.key] = max(number, last[record.key])
    return wrong


def _pause_s(results: Sequence[Record]) -> float:
    times: dict[int, list[int]] = defaultdict(list)
    for record in results:
        times[record.partition].append(record.timestamp_ms)
    gaps = [later - at for found in times.values() for at, later in zip(found, found[1:], strict=False)]
    return max(gaps, default=0) / 1000


# ---- the brokers


@asynccontextmanager
async def admin(servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client."""
    client = AIOKafkaAdminClient(bootstrap_servers=servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def coordinator_of(servers: str, group: str) -> int:
    """The number of the broker that coordinates the group."""
    async with admin(servers) as client:
        return int(await client.find_coordinator(group))


async def in_sync(servers: str, replicas: int = 3, *, within_s: float = 60.0) -> None:
    """Wait until every partition has so many copies in sync."""
    until_s = time.monotonic() + within_s
    async with admin(servers) as client:
        while True:
            topics = await client.describe_topics()
            late = [each["topic"] for each in topics for part in each["partitions"] if len(part["isr"]) < replicas]
            if not late:
                return
            assert time.monotonic() < until_s, f"not in sync: {late}"
            await asyncio.sleep(0.3)


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
