"""A rolling deploy on Kafka and PostgreSQL: two members of the approval, replaced one at a time, under load."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import psycopg

from choreo import App, Event
from choreo.opening import open_store
from choreo.publisher import Publisher
from choreo.record import Record
from choreo.runtime.clock import SystemClock
from choreo.telemetry.silent import NoInstrument
from choreo.transports.kafka import KafkaTransport
from deploy.kafka.node import free_ports
from handlers.approval.events import ExpenseApproved, ExpenseSubmitted
from handlers.approval.process import LARGE_CENTS, Approval
from tests.integration.rolling_outcome import SOURCE, Handled, Outcome, Row, Span

ROOT = Path(__file__).parents[2]
Build = Literal["v1", "v2"]
PARTITIONS = 4
READY_S, DRAIN_S, SETTLED_S = 60.0, 40.0, 120.0
TICK_S = 0.1
AGAIN_EVERY = 10
"""Of what is published every tenth is published again, under its id."""


class Rolled(NamedTuple):
    """One member replaced: seconds from SIGTERM until it had drained, and until the other build was in the group."""

    drained_s: float
    ready_s: float


class Members:
    """Processes of `choreo run`, at most one a name."""

    def __init__(self, folder: Path, options: Sequence[str], environment: dict[str, str]) -> None:
        self._folder = folder
        self._options = options
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self._builds: dict[str, Build] = {}
        self.spans: list[Span] = []
        """When which builds ran, in order; the last one goes on."""

    async def start(self, name: str, build: Build) -> None:
        """Start it, and wait until it is ready, as an orchestrator does before it goes on with the next one."""
        self._note({**self._builds, name: build})
        self._spawn(name, build)
        until_s = time.monotonic() + READY_S
        while not await asyncio.to_thread(self._is_ready, name):
            assert self._processes[name].poll() is None, self.log(build)
            assert time.monotonic() < until_s, self.log(build)
            await asyncio.sleep(0.05)

    def _spawn(self, name: str, build: Build) -> None:
        (self._ports[name],) = free_ports(1)
        command = [sys.executable, "-m", "choreo", "run", f"tests.integration.rolling_builds:{build}"]
        command += [*self._options, "--health-port", str(self._ports[name])]
        with open(self._folder / f"{build}.log", "ab") as said:
            self._processes[name] = subprocess.Popen(
                command, cwd=self._folder, env=self._environment, stdout=said, stderr=said
            )

    def _is_ready(self, name: str) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._ports[name]}/readyz", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    async def stop(self, *names: str) -> None:
        """SIGTERM; they must drain, and end well."""
        processes = {name: self._processes.pop(name) for name in names}
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in processes.items():
            assert await asyncio.to_thread(process.wait, DRAIN_S) == 0, self.log(self._builds[name])
        self._note({name: build for name, build in self._builds.items() if name not in names})

    async def replace(self, names: Sequence[str], build: Build) -> None:
        """All of them at once; those that run are stopped first."""
        await self.stop(*(name for name in names if name in self._processes))
        await asyncio.gather(*(self.start(name, build) for name in names))

    async def roll(self, build: Build) -> list[Rolled]:
        """Replace all of them, one at a time."""
        found = []
        for name in list(self._processes):
            begun_s = time.monotonic()
            await self.stop(name)
            drained_s = time.monotonic() - begun_s
            await self.start(name, build)
            found.append(Rolled(drained_s, time.monotonic() - begun_s))
        return found

    def _note(self, builds: dict[str, Build]) -> None:
        now_ms, running = int(time.time() * 1000), frozenset(builds.values())
        self._builds = builds
        if not self.spans or self.spans[-1].builds != running:
            self.spans = [*self.spans[:-1], *(each._replace(until_ms=now_ms) for each in self.spans[-1:])]
            self.spans.append(Span(now_ms, 2**62, running))

    def log(self, build: Build) -> str:
        """What members of a build have said."""
        return (self._folder / f"{build}.log").read_text(errors="replace")

    def kill(self) -> None:
        """Leave none behind."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(10)


class Deploy:
    """Topics, tables, members and load of one run.

    Args:
        instances: In flight, all the time.
        per_s: Expenses a second: as many begin as are decided; each is three events.
        day_s: How long a day of the process takes.
        look_s: How often an event that waits for another build is looked at.
    """

    def __init__(
        self,
        folder: Path,
        servers: str,
        postgres: str,
        *,
        instances: int,
        per_s: float,
        day_s: float,
        look_s: float,
    ) -> None:
        run = uuid4().hex[:8]
        self.instances, self.per_s, self.day_s = instances, per_s, day_s
        self._prefix, self.schema, self._postgres = f"rolling-{run}.", f"rolling_{run}", postgres
        self._store = f"{postgres}{'&' if '?' in postgres else '?'}choreo_schema={self.schema}"
        self.app = App(Approval)
        self.transport = KafkaTransport(servers)
        self._publisher = Publisher(self.transport, NoInstrument(), SystemClock(), topic=self._topic, source=SOURCE)
        options = ["--broker", f"kafka://{servers}", "--store", self._store, "--log-level", "warning"]
        environment = {"CHOREO_TOPIC_PREFIX": self._prefix, "ROLLING_DAY_S": str(day_s)}
        environment["ROLLING_LOOK_S"] = str(look_s)
        self.members = Members(folder, options, environment)
        self.submitted = self.again = 0
        self.decided: Counter[int] = Counter()
        self._published, self._steady_ms = 0, (0, 2**62)
        self._chance = random.Random(run)
        self._sending = asyncio.Lock()

    def _topic(self, logical: str) -> str:
        return self._prefix + logical

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator["Deploy"]:
        """Topics and tables are there; in the end the tables go, and every process that is left."""
        await self.transport.open()
        try:
            specs = self.app.topic_specs(PARTITIONS)
            await self.transport.create_topics([each._replace(name=self._topic(each.name)) for each in specs])
            store = open_store(self._store, "approval", "approval", None, clock=SystemClock())
            await store.open()
            await store.apply()
            await store.close()
            yield self
        finally:
            self.members.kill()
            await self.transport.close()
            self._execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")

    def _execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._postgres, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    # ---- load

    async def submit(self, count: int) -> None:
        """So many more expenses, all of them large: version 2 has them looked at twice, version 1 has not."""
        numbers = range(self.submitted, self.submitted + count)
        self.submitted += count
        await self._publish(
            [
                (ExpenseSubmitted(request_id=f"r{n}", employee="e", manager=f"m{n}", cents=LARGE_CENTS + 1), f"s{n}")
                for n in numbers
            ]
        )

    async def decide(self, numbers: Sequence[int], turn: int) -> None:
        """They are approved: first by the manager, then by finance, which version 1 has no use for."""
        events = [ExpenseApproved(request_id=f"r{n}", by="finance" if turn > 1 else f"m{n}") for n in numbers]
        await self._publish([(event, f"a{n}-{turn}") for event, n in zip(events, numbers, strict=True)])
        self.decided.update(numbers)

    async def _publish(self, events: Sequence[tuple[Event, str]]) -> None:
        again = [each for at, each in enumerate(events, self._published) if at % AGAIN_EVERY == 0]
        self._published += len(events)
        self.again += len(again)
        if events:
            await self._publisher.publish_many([*events, *again])

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """At a steady rate: one begins, any one is decided, and one that was decided a while ago a second time."""
        stop = asyncio.Event()
        self._steady_ms = int(time.time() * 1000), 2**62
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._load(stop))
            try:
                yield
            finally:
                stop.set()

    async def _load(self, stop: asyncio.Event) -> None:
        once: deque[int] = deque()
        owed, last_s = 0.0, time.monotonic()
        while not stop.is_set():
            await asyncio.sleep(TICK_S)
            async with self._sending:  # all of a tick, or nothing of it
                now_s = time.monotonic()
                owed, last_s = owed + (now_s - last_s) * self.per_s, now_s
                count, owed = int(owed), owed % 1
                chosen = self._chance.sample([n for n in range(self.submitted) if not self.decided[n]], count)
                await self.submit(count)
                await self.decide(chosen, 1)
                once.extend(chosen)
                await self.decide([once.popleft() for _ in range(len(once) - self.instances // 10)], 2)

    async def finish(self) -> None:
        """Decide all that is not decided, a hundred at a time."""
        for turn in (1, 2):
            left = [number for number in range(self.submitted) if self.decided[number] < turn]
            for at in range(0, len(left), 100):
                await self.decide(left[at : at + 100], turn)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is published meanwhile; what came before was published at a steady rate."""
        async with self._sending:
            self._steady_ms = self._steady_ms[0], int(time.time() * 1000)
            yield

    # ---- what came of it

    def in_flight(self) -> int:
        """Instances that have begun and have not ended."""
        ((count,),) = self._execute(f"SELECT count(*) FROM {self.schema}.instance WHERE NOT ended AND state <> ''")
        return int(count)

    async def outcome(self) -> Outcome:
        """What store and log hold now."""
        # In this order: what is handled is stored, and what is stored will be on the log.
        handled = self._execute(
            "SELECT digest, convert_from(correlation_id, 'UTF8'), convert_from(topic, 'UTF8'), timestamp_ms, "
            f"(extract(epoch FROM done_at) * 1000)::int8, attempts FROM {self.schema}.key WHERE done"
        )
        rows = self._execute(
            "SELECT convert_from(key, 'UTF8'), version, convert_from(state, 'UTF8'), ended, updated_ms "
            f"FROM {self.schema}.instance"
        )
        records = await self.transport.scan(
            [self._topic(each) for each in ("letters", "approvals", "approval.dlq")], since_ms=0
        )
        return Outcome(
            submitted=self.submitted,
            decided=dict(self.decided),
            day_s=self.day_s,
            steady_ms=self._steady_ms,
            spans=self.members.spans,
            rows={key: Row(*rest) for key, *rest in rows},
            handled=[Handled(*each) for each in handled],
            records=[self._bare(each) for each in records],
        )

    def _bare(self, record: Record) -> Record:
        return record._replace(topic=record.topic.removeprefix(self._prefix))

    async def quiet(self) -> Outcome:
        """Wait until all that can be handled by what runs now is handled; what is wrong is for the caller to say."""
        until_s = time.monotonic() + SETTLED_S
        while True:
            outcome = await self.outcome()
            if not outcome.problems() or outcome.dead_letters or time.monotonic() > until_s:
                return outcome
            await asyncio.sleep(1.0)
