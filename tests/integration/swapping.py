"""Two processes of one group that take each other's place again and again, and the count of what they emitted.

`python -m tests.integration.swapping` is one of them: it joins and leaves as its standard input says.
"""

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import psycopg

from choreo import App, Event, Service
from choreo.core.emission import derived_id
from choreo.ports import CommitRequest, CommitResult
from choreo.record import Record
from choreo.running import Running
from choreo.transports.confluent import settings as confluent_settings
from choreo.transports.kafka import settings as aiokafka_settings

ROOT = Path(__file__).parents[2]
SOURCE = "/swap"
SERVICE = "swap"
PARTITIONS = 12
HANDLER_S_MAX = 0.003
ANSWER_S = 60.0
OWNED_S = 40.0
OWNED = {"own": 1, "own-all": PARTITIONS}
BEAT_MS = 300


class Arrived(Event, type="swap.arrived", version=1, topic="arrived", key="name"):
    """The input; numbers ascend, also within a name."""

    name: str
    number: int


class Passed(Event, type="swap.passed", version=1, topic="passed", key="name"):
    """Emitted by the handler that writes nothing."""

    name: str
    number: int
    by: str


class Booked(Event, type="swap.booked", version=1, topic="booked", key="name"):
    """Emitted by the handler that writes a row in its transaction."""

    name: str
    number: int
    by: str


def app(prefix: str, *, table: str | None, member: str = "") -> App:
    """The service on topics of this prefix; `table` is for the second handler, which there is none without."""
    service = Service(SERVICE, group=f"{prefix}swap")

    async def passing(arrived: Arrived) -> Passed:
        await asyncio.sleep(random.uniform(0.0, HANDLER_S_MAX))
        return Passed(name=arrived.name, number=arrived.number, by=member)

    async def booking(arrived: Arrived, db: psycopg.AsyncConnection[Any]) -> Booked:
        # The table has no unique column but the one it counts with: what is booked twice is there twice.
        await db.execute(f"INSERT INTO {table} (name, number) VALUES (%s, %s)", (arrived.name, arrived.number))
        return Booked(name=arrived.name, number=arrived.number, by=member)

    service.handler(Arrived)(passing)
    if table is not None:
        service.handler(Arrived)(booking)
    topics = {name: prefix + name for name in ("arrived", "passed", "booked", f"{SERVICE}.dlq")}
    return App(service, topics=topics, name="swap")


# ---- a member


def hear_soon() -> None:
    """Beat as often as swaps want it: a member learns of a rebalance from the answer to a heartbeat."""
    aiokafka_settings.CONSUMER_DEFAULTS = {**aiokafka_settings.CONSUMER_DEFAULTS, "heartbeat_interval_ms": BEAT_MS}
    classic = {**confluent_settings.CLASSIC_DEFAULTS, "heartbeat.interval.ms": BEAT_MS}
    confluent_settings.CLASSIC_DEFAULTS = classic


async def live(prefix: str, table: str | None, member: str, broker: str, store: str) -> None:
    """Do what standard input says, a word a line, and answer each with the word done; until its end."""
    stack, running = AsyncExitStack(), None
    made = app(prefix, table=table, member=member)
    while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if word == "join":
            running = await stack.enter_async_context(made.running(broker=broker, store=store))
        elif word in OWNED:
            assert running is not None
            await _owning(running, OWNED[word])
        elif word == "freeze":
            assert running is not None
            _freeze(running)
            continue  # answered from there
        elif word == "leave":
            _raise_failure(running)
            await stack.aclose()
            running = None
        print(f"{word} done", flush=True)


async def _owning(running: Running, partitions: int) -> None:
    """Return when it has so many partitions to work on."""
    async with asyncio.timeout(OWNED_S):
        while len(running.workers[SERVICE].leases) < partitions:  # noqa: ASYNC110 - nothing says so but the worker's state
            await asyncio.sleep(0.02)


def _freeze(running: Running) -> None:
    """Stand still as a suspended virtual machine does, with results in hand that are about to be committed."""
    store = running.stores[SERVICE]
    commit = store.commit

    async def late(request: CommitRequest) -> CommitResult:
        if request.finished or request.transacted:
            store.commit = commit  # type: ignore[method-assign]
            print("freeze done", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        return await commit(request)

    store.commit = late  # type: ignore[method-assign]


def _raise_failure(running: Running | None) -> None:
    failure = running.workers[SERVICE].failure if running is not None else None
    if failure is not None:
        raise failure


class Member:
    """The process, from the side of the test."""

    def __init__(self, name: str, folder: Path, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.name = name
        self.joined = False
        self._said = folder / f"{name}.log"
        self._arguments = {**arguments, "member": name}
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Have the process, which does nothing yet."""
        command = [sys.executable, "-m", "tests.integration.swapping", json.dumps(self._arguments)]
        pipe = subprocess.PIPE
        with open(self._said, "ab") as said:  # noqa: ASYNC230 - a local file, opened once
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=said, env=self._environment, cwd=ROOT
            )

    async def tell(self, word: str) -> None:
        """Have it `join`, `leave`, `freeze` at its next commit, wait until it has a partition (`own`) or all of them
        (`own-all`); returns when that is done.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n".encode())
        async with asyncio.timeout(ANSWER_S):
            answer = (await self._process.stdout.readline()).decode().strip()
        if answer != f"{word} done":
            raise AssertionError(f"{self.name} was told to {word} and ended:\n{self.log()}")
        self.joined = word == "join" if word in ("join", "leave") else self.joined

    def thaw(self) -> None:
        """Have it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        """Leave no process behind."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def log(self) -> str:
        """The last lines of what it said."""
        return "\n".join(self._said.read_text(errors="replace").splitlines()[-25:])


# ---- what is there in the end


@dataclass
class Tally:
    """Of one kind of event or row.

    Attributes:
        moves: By partition, how often the next event was another member's; what proves that owners changed.
    """

    lost: int
    twice: int
    foreign: int
    reordered: int
    moves: Sequence[int]

    @property
    def wrong(self) -> dict[str, int]:
        """What may not be, whatever the store; `twice` is for the caller to judge."""
        found = {"lost": self.lost, "foreign": self.foreign, "reordered": self.reordered}
        return {name: count for name, count in found.items() if count}


def tally_log(records: Iterable[Record], handler: str, type_: str, events: int) -> Tally:
    """Count by event id; of several with one id the first stands for it."""
    firsts: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    members: dict[int, list[str]] = defaultdict(list)
    for record in sorted(records, key=lambda each: (each.partition, each.offset)):
        id_ = (dict(record.headers)["ce_id"] or b"").decode()
        counts[id_] += 1
        if counts[id_] == 1:
            firsts[id_] = orjson.loads(record.value or b"")
            members[record.partition].append(firsts[id_]["by"])
    expected = {derived_id(SERVICE, handler, SOURCE, input_id(n), type_, 0) for n in range(events)}
    return Tally(
        lost=len(expected - set(counts)),
        twice=sum(counts.values()) - len(counts),
        foreign=len(set(counts) - expected),
        reordered=overtaken((each["name"], each["number"]) for each in firsts.values()),
        moves=[_changes(each) for each in members.values()],
    )


def tally_rows(rows: Sequence[tuple[str, int]], events: int) -> Tally:
    """Count rows by number; `rows` in the order in which they were written."""
    counts: Counter[int] = Counter()
    firsts = []
    for name, number in rows:
        counts[number] += 1
        if counts[number] == 1:
            firsts.append((name, number))
    return Tally(
        lost=len(set(range(events)) - set(counts)),
        twice=len(rows) - len(counts),
        foreign=len(set(counts) - set(range(events))),
        reordered=overtaken(firsts),
        moves=(),
    )


def overtaken(firsts: Iterable[tuple[str, int]]) -> int:
    """How many (name, number) come after one of the same name with a higher number."""
    latest: dict[str, int] = {}
    wrong = 0
    for name, number in firsts:
        wrong += number < latest.get(name, -1)
        latest[name] = max(number, latest.get(name, -1))
    return wrong


def input_id(number: int) -> str:
    """The id under which an input is published, as often as it is."""
    return f"arrived-{number}"


def _changes(members: Sequence[str]) -> int:
    return sum(before != after for before, after in pairwise(members))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    hear_soon()
    asyncio.run(live(**json.loads(sys.argv[1])))
