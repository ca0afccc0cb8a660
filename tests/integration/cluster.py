"""A service as processes of its own on a Kafka of three brokers: started, restarted, frozen, under load."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from uuid import uuid4

from aiokafka.admin import AIOKafkaAdminClient

from choreo.errors import TransportError
from choreo.ports import TopicSpec
from choreo.publisher import Publisher
from choreo.runtime.clock import SystemClock
from choreo.stores.changelog import changelog_specs
from choreo.telemetry.silent import NoInstrument
from choreo.transports.kafka import KafkaTransport
from choreo.transports.kafka.producer import partition_of
from tests.integration.cluster_member import Job, Work, app_of
from tests.integration.cluster_outcome import Outcome, outcome_of

ROOT = Path(__file__).parents[2]
STAMPED_BY_BROKER = (("message.timestamp.type", "LogAppendTime"),)
READABLE_S = 30.0
"""Longer than the 20 s after which a broker ends a transaction that nobody does."""


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
                [sys.executable, "-m", "tests.integration.cluster_member", json.dumps(self._job(name))],
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
        assert not any(codes), f"{codes}: {[self.log(name) for name in self.processes]}"

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
        return sum((Counter(json.loads(file.read_text())) for file in self.folder.glob("*.counts")), Counter())

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
            logs = [self.log(name) for name in self.processes] if time.monotonic() > until_s else []
            ended = {name: each.poll() for name, each in self.processes.items()}
            assert not logs, f"{len(missing)} not handled, exit codes {ended}; {logs}"
            await asyncio.sleep(0.2)

    async def outcome(self) -> Outcome:
        """Read the topics; the processes have drained, so nothing more comes.

        But a transaction that librdkafka did not come back from may hold readers back until the broker ends it.
        """
        work, done = self.app.topic("work"), self.app.topic("done")
        until_s = time.monotonic() + READABLE_S
        while True:
            found = await self.transport.scan([work, done], since_ms=0)
            begun, rows = len(self.calls("begin")), self._rows()
            outcome = outcome_of(found, work=work, done=done, published=self.published, begun=begun, rows=rows)
            if not outcome.lost or time.monotonic() > until_s:
                return outcome
            await asyncio.sleep(1)

    def _rows(self) -> Counter[int] | None:
        """How often the other handler wrote each number."""
        if self.store != "sqlite":
            return None
        with closing(sqlite3.connect(self.folder / "store.db")) as db:
            return Counter(number for (number,) in db.execute("SELECT number FROM kept"))


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
