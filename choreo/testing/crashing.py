"""Crash tests of a pair of broker and store: a process killed again and again at one point, and what is there then.

Each point has a flow of its own: topics, groups, tables. All points of a pair live at once, since most of a crash is
waiting until the broker gives the dead member up.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from choreo import envelope as cloudevents
from choreo.core.emission import derived_id
from choreo.envelope import Envelope
from choreo.opening import open_store, open_transport
from choreo.ports import TopicSpec, Transport
from choreo.record import ProducerRecord, Record
from choreo.runtime.clock import SystemClock
from choreo.testing import crash_child, crash_flow
from choreo.testing.crash_points import CrashPoint

EVENTS_A_LIFE = 12
SETTLE_S = 1.0
LIFE_S_MAX = crash_child.LIFE_S_MAX + 30.0


@dataclass(frozen=True)
class Pair:
    """A broker and a store, as `choreo run` is given them, and what their makers promise together.

    Attributes:
        store: Empty for the embedded broker. `{folder}` stands for a folder of the flow's own, in `broker` too.
        points: Sub-steps to crash at; each is tried before and after.
        rows: The handler's rows are part of the commit.
        emits_once: No emit is on the log twice; else a resend keeps its id and is dropped by who reads it.
        environment: For the processes, e.g. a short session.
    """

    name: str
    broker: str
    store: str
    points: Mapping[str, str]
    rows: bool
    emits_once: bool
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What is there after the last crash and one life that ended well.

    Attributes:
        crashes: Lives that ended at the point; `misses` had nothing left to do before they came to it.
        lost: Emits and rows that are missing.
        rows_twice, emits_twice: Beyond the first one of each.
        reordered: Emits of a key whose first appearance is before that of a predecessor.
        heard_twice: Emits that the next service handled more than once.
    """

    point: str
    crashes: int = 0
    misses: int = 0
    events: int = 0
    lost: int = 0
    rows_twice: int = 0
    emits_twice: int = 0
    reordered: int = 0
    heard_twice: int = 0
    dead_letters: int = 0
    errors: list[str] = field(default_factory=list)

    def broken(self, pair: Pair) -> list[str]:
        """Promises of the pair that did not hold, in words; empty if all did."""
        found = [f"{name}: {value}" for name, value in self._never(pair).items() if value]
        return [f"{pair.name}, {self.point}: {each}" for each in found] + self.errors

    def _never(self, pair: Pair) -> dict[str, int]:
        never = {
            "lost": self.lost,
            "reordered": self.reordered,
            "dead letters": self.dead_letters,
            "no crash at all": not self.crashes,
            "handled twice by the next service": self.heard_twice,
        }
        if pair.rows:
            never["rows twice"] = self.rows_twice
        if pair.emits_once:
            never["emits twice"] = self.emits_twice
        return never


class Case:
    """One crash point of a pair: its flow, from the first order to the count."""

    def __init__(self, pair: Pair, point: CrashPoint, folder: Path, run: str) -> None:
        self.folder = folder / point.title.replace(" ", "-")
        self.folder.mkdir(parents=True)
        self.prefix = f"crash-{run}-{point.title.replace(' ', '-')}-"
        self._source = f"/{self.prefix}"  # a flow's own: others may share its store, and are named as it is
        self.point = point
        self.outcome = Outcome(point.title)
        self._pair = pair
        self._broker = pair.broker.replace("{folder}", str(self.folder))
        self._store = pair.store.replace("{folder}", str(self.folder))
        self._app = crash_flow.app(self._store, self.prefix)

    def job(self, point: CrashPoint | None) -> crash_child.Job:
        """One life."""
        return {
            "point": point,
            "prefix": self.prefix,
            "broker": self._broker,
            "store": self._store,
            "environment": dict(self._pair.environment),
        }

    async def prepare(self) -> None:
        """Topics, and the store's schema."""
        transport = await self._transport()
        await transport.create_topics(self._specs())
        if self._store == "changelog":
            from choreo.stores.changelog.topics import changelog_specs

            known = await transport.topics([spec.name for spec in self._specs()])
            for name, service in self._app.services.items():
                inputs = {topic: known[topic] for topic in self._app.input_topics(name)}
                await transport.create_topics(changelog_specs(service.group, inputs))
        await transport.close()
        if self._store and self._store != "changelog":
            await self._with_store(lambda store: store.apply())

    def _specs(self) -> list[TopicSpec]:
        """All topics but those of replays: nobody replays anything here."""
        specs = self._app.topic_specs(crash_flow.PARTITIONS)
        return [spec for spec in specs if not spec.name.endswith(".replay")]

    async def publish(self, count: int) -> None:
        """More orders, every fourth of them twice."""
        numbers = range(self.outcome.events, self.outcome.events + count)
        transport = await self._transport()
        await transport.send(
            [_ordered(self.prefix, self._source, n) for n in numbers for _ in range(2 if n % 4 == 0 else 1)]
        )
        await transport.close()
        self.outcome.events += count

    async def count(self) -> Outcome:
        """Look at everything that is there."""
        await asyncio.sleep(SETTLE_S)  # Kafka answers a transaction's commit before readers see it
        outcome, events = self.outcome, range(self.outcome.events)
        found = await self._emitted()
        for handler, event in crash_flow.emitted_types(self._pair.rows).items():
            records = found[self.prefix + event.event_topic]
            ids = Counter(_id(record) for record in records)
            expected = [derived_id("stock", handler, self._source, f"order-{n}", event.event_type, 0) for n in events]
            outcome.lost += sum(not ids[each] for each in expected)
            outcome.emits_twice += sum(ids.values()) - len(ids)
            outcome.reordered += _reordered(records)
        outcome.dead_letters = sum(len(found[self.prefix + topic]) for topic in ("stock.dlq", "audit.dlq"))
        heard = Counter(orjson.loads(each.value or b"")["of"] for each in _firsts(found[self.prefix + "heard"]))
        wanted = len(crash_flow.emitted_types(self._pair.rows)) * len(events)
        outcome.lost += wanted - len(heard)
        outcome.heard_twice = sum(heard.values()) - len(heard)
        if self._pair.rows:
            rows = Counter(await self._rows())
            outcome.lost += sum(not rows[n] for n in events)
            outcome.rows_twice = sum(rows.values()) - len(rows)
        return outcome

    async def _emitted(self) -> dict[str, list[Record]]:
        transport = await self._transport()
        topics = [spec.name for spec in self._specs()]
        found: dict[str, list[Record]] = {topic: [] for topic in topics}
        for record in await transport.scan(topics, since_ms=0):
            found[record.topic].append(record)
        await transport.close()
        return {
            topic: sorted(records, key=lambda each: (each.partition, each.offset)) for topic, records in found.items()
        }

    async def _rows(self) -> list[int]:
        rows: list[int] = []
        table = crash_flow.effect_table(self.prefix)

        def read(connection: Any) -> None:
            rows.extend(row[0] for row in connection.execute(f"SELECT number FROM {table}").fetchall())

        await self._with_store(lambda store: store.run(read))
        return rows

    async def _with_store(self, ask: Any) -> None:
        url = self._store or f"sqlite:{self._broker.partition(':')[2]}"
        store = open_store(url, "stock", f"{self.prefix}stock", None, clock=SystemClock())
        await store.open()
        try:
            await ask(store)
        finally:
            await store.close()

    async def _transport(self) -> Transport:
        transport = open_transport(self._broker)
        await transport.open()
        return transport


def crash(
    pair: Pair, points: Sequence[CrashPoint], folder: Path, *, crashes: int, seed: int
) -> Iterator[list[Outcome]]:
    """Kill a process `crashes` times at each point, then let one end well; yields the outcomes after each life.

    Only those yielded last are counted. A life that ends before it comes to its point is made up for, once each.
    """
    chance = random.Random(seed)
    run = os.urandom(4).hex()  # not of the seed: topics of an earlier run may be there still
    cases = [Case(pair, point, folder, run) for point in points]
    asyncio.run(_each(case.prepare() for case in cases))
    for _ in range(2 * crashes):
        left = [case for case in cases if case.outcome.crashes < crashes]
        if not left:
            break
        asyncio.run(_each(case.publish(EVENTS_A_LIFE) for case in left))
        _live(left, [case.job(case.point._replace(call=_call(case.point, chance))) for case in left])
        yield [case.outcome for case in cases]
    asyncio.run(_each(case.publish(EVENTS_A_LIFE) for case in cases))
    _live(cases, [case.job(None) for case in cases])
    yield asyncio.run(_each(case.count() for case in cases))


def _call(point: CrashPoint, chance: random.Random) -> int:
    """At which call to die: few are the claims of so few events; the first of the others may be of the start."""
    return chance.randint(1, 2) if point.name == "claim" else chance.randint(2, 4)


async def _each(calls: Any) -> list[Any]:
    return list(await asyncio.gather(*calls))


def _live(cases: Sequence[Case], jobs: Sequence[crash_child.Job]) -> None:
    """A process for each job, until all are dead or done."""
    command = [sys.executable, "-m", "choreo.testing.crash_child"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(command, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        codes, said = child.communicate(json.dumps(jobs), timeout=LIFE_S_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # those it forked too
        said = child.communicate()[1]
        raise RuntimeError(f"lives did not end within {LIFE_S_MAX:g} s:\n{said[-4000:]}") from None
    if child.returncode != 0:
        raise RuntimeError(f"the process that forks ended with {child.returncode}:\n{said[-4000:]}")
    lines = [line for line in said.split("\n") if line.strip()]
    for case, job, code in zip(cases, jobs, json.loads(codes), strict=True):
        case.outcome.crashes += code == -9
        if code != (0 if job["point"] is None else -9):
            case.outcome.misses += code == 0  # it had done everything before it came to that call
        if code not in (0, -9) or (code == -9 and job["point"] is None):
            own = [line for line in lines if case.prefix in line][-12:] or lines[-12:]
            case.outcome.errors.append(f"{case.point.title}: a life ended with {code}: {' | '.join(own)}")


def _ordered(prefix: str, source: str, number: int) -> ProducerRecord:
    customer = f"customer {number % crash_flow.CUSTOMERS}"
    value = orjson.dumps({"customer": customer, "number": number})
    headers = cloudevents.write(Envelope(f"order-{number}", source, "crash.ordered", version=1))
    partition = number % crash_flow.PARTITIONS  # a customer's are all in one
    return ProducerRecord(f"{prefix}orders", customer.encode(), value, headers, partition)


def _id(record: Record) -> str:
    return (dict(record.headers)["ce_id"] or b"").decode()


def _firsts(records: Sequence[Record]) -> list[Record]:
    """Each id's first record."""
    found: dict[str, Record] = {}
    for record in records:
        found.setdefault(_id(record), record)
    return list(found.values())


def _reordered(records: Sequence[Record]) -> int:
    """Records whose number is below that of one before them, of the same key; resends do not count."""
    latest: dict[bytes | None, int] = defaultdict(lambda: -1)
    wrong = 0
    for record in _firsts(records):
        number = orjson.loads(record.value or b"")["number"]
        wrong += number < latest[record.key]
        latest[record.key] = max(latest[record.key], number)
    return wrong
