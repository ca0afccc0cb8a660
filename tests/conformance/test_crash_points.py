"""A process SIGKILLed at each durable sub-step of a commit, and started again: nothing lost, nothing done twice."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from choreo import envelope as cloudevents
from choreo.core.emission import derived_id
from choreo.envelope import Envelope
from choreo.ports import TopicSpec, Transport
from choreo.record import ProducerRecord
from choreo.opening import open_transport
from tests.conformance import crash_child

_Result = TypeVar("_Result")
ROOT = Path(__file__).parent.parent.parent
POINTS = [
    f"{moment} {step}"
    for step in ("claim", "handler", "store commit", "send", "offset commit")
    for moment in ("before", "after")
    if (moment, step) != ("before", "handler")
]
EVENTS, LATE = 40, 2
"""Events before the crash, of which every fourth is there twice; and events that come while the process is dead."""


@dataclass
class Outcome:
    """What is there after a crash and a second life."""

    codes: list[int] = field(default_factory=list)
    errors: str = ""
    rows: Counter[int] = field(default_factory=Counter)
    emits: dict[str, Counter[str]] = field(default_factory=dict)
    crashed_with: int = 0


class Case:
    """One crash point on one pair: its own topics, group and file."""

    def __init__(self, point: str, broker: Callable[[Path], str], folder: Path) -> None:
        self.folder = folder / point.replace(" ", "-")
        self.folder.mkdir()
        self.broker = broker(self.folder / "store.db")
        self.prefix = f"{self.folder.parent.name}-{self.folder.name}-{os.getpid()}-"
        self.point = point

    def job(self, point: str) -> crash_child.Job:
        """One life of its service."""
        path = str(self.folder / "store.db")
        return {
            "point": point,
            "prefix": self.prefix,
            "broker": self.broker,
            "path": path,
            "events": EVENTS + LATE,
        }

    async def publish(self, numbers: range) -> None:
        """Create the topics and send events of these numbers."""
        transport = await self._open()
        names = ("orders", "reserved", "greeted", "stock.dlq")
        await transport.create_topics([TopicSpec(self.prefix + name, crash_child.PARTITIONS) for name in names])
        await transport.send([self._ordered(n) for n in numbers for _ in range(2 if n % 4 == 0 else 1)])
        await transport.close()

    async def emitted(self) -> dict[str, Counter[str]]:
        """Ids of what is on the topics it emits to, and how often."""
        transport = await self._open()
        topics = [self.prefix + name for name in ("reserved", "greeted", "stock.dlq")]
        found: dict[str, Counter[str]] = {}
        for record in await transport.scan(topics, since_ms=0):
            id_ = dict(record.headers)["ce_id"] or b""
            found.setdefault(record.topic.removeprefix(self.prefix), Counter())[id_.decode()] += 1
        await transport.close()
        return found

    async def _open(self) -> Transport:
        transport = open_transport(self.broker)
        await transport.open()
        return transport

    def _ordered(self, number: int) -> ProducerRecord:
        customer = f"customer {number % 8}"
        value = json.dumps({"customer": customer, "number": number}).encode()
        headers = cloudevents.write(Envelope(f"order-{number}", "/test", "crash.ordered", version=1))
        # Late ones are last in each partition: once they are done, everything before them was read again.
        partition = number % crash_child.PARTITIONS
        return ProducerRecord(self.prefix + "orders", customer.encode(), value, headers, partition)

    def rows(self) -> list[int]:
        """What the handler wrote."""
        connection = sqlite3.connect(self.folder / "store.db", timeout=10)
        try:
            return [row[0] for row in connection.execute("SELECT number FROM effect")]
        finally:
            connection.close()


def outcomes(broker: Callable[[Path], str], folder: Path) -> dict[str, Outcome]:
    """Every crash point's, all at once: most of it is waiting for the dead to be given up."""
    cases = [Case(point, broker, folder) for point in POINTS]
    found = [Outcome() for _ in cases]
    asyncio.run(each(case.publish(range(EVENTS)) for case in cases))
    run([case.job(case.point) for case in cases], found)
    for case, outcome in zip(cases, found, strict=True):
        outcome.crashed_with = len(case.rows())
    asyncio.run(each(case.publish(range(EVENTS, EVENTS + LATE)) for case in cases))
    run([case.job("") for case in cases], found)
    emits = asyncio.run(each(case.emitted() for case in cases))
    for case, outcome, emitted in zip(cases, found, emits, strict=True):
        outcome.rows, outcome.emits = Counter(case.rows()), emitted
    return dict(zip(POINTS, found, strict=True))


async def each(calls: Iterable[Awaitable[_Result]]) -> list[_Result]:
    """All of them at once."""
    return list(await asyncio.gather(*calls))


def run(jobs: Sequence[crash_child.Job], found: Sequence[Outcome]) -> None:
    """A process for each job, until all are dead or done."""
    script = [sys.executable, "-m", "tests.conformance.crash_child", json.dumps(jobs)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=90, check=True)
    for code, outcome in zip(json.loads(done.stdout), found, strict=True):
        outcome.codes.append(code)
        outcome.errors = done.stderr[-4000:]


@pytest.fixture(scope="module")
def on_embedded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Log, keys and rows in one file."""
    return outcomes(lambda path: f"embedded:{path}", tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module")
def on_kafka(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Keys, outbox and rows in one file, the log on Kafka."""
    return outcomes(lambda _: f"kafka://{kafka}", tmp_path_factory.mktemp("kafka"))


def expected(handler: str, type_: str) -> set[str]:
    """Ids of what a handler emits, which anybody can compute."""
    return {derived_id("stock", handler, "/test", f"order-{number}", type_, 0) for number in range(EVENTS + LATE)}


def check(outcome: Outcome) -> None:
    """It was killed, it ended well the second time, and each effect is there once."""
    assert outcome.codes == [-9, 0], outcome.errors
    assert outcome.crashed_with < EVENTS, "everything was done before it was killed"
    missing = [number for number in range(EVENTS + LATE) if not outcome.rows[number]]
    twice = [number for number, count in outcome.rows.items() if count > 1]
    assert (missing, twice) == ([], []), "rows lost, rows written twice"
    assert set(outcome.emits) == {"reserved", "greeted"}, "there are dead letters, or no emits"
    assert set(outcome.emits["reserved"]) == expected("reserve", "crash.reserved")
    assert set(outcome.emits["greeted"]) == expected("greet", "crash.greeted")


@pytest.mark.parametrize("point", POINTS)
def test_embedded_loses_and_repeats_nothing(on_embedded: dict[str, Outcome], point: str) -> None:
    """Emits are part of the commit: each is on the log once."""
    check(on_embedded[point])
    repeated = [id_ for ids in on_embedded[point].emits.values() for id_, count in ids.items() if count > 1]
    assert repeated == []


@pytest.mark.parametrize("point", POINTS)
def test_kafka_loses_nothing_and_repeats_no_row(on_kafka: dict[str, Outcome], point: str) -> None:
    """An emit may be sent again, under the same id."""
    check(on_kafka[point])
