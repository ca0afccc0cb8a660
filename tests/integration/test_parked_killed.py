"""A process killed at each step of the parking of an event and of the release of its key, on real servers.

Each point has a service of its own, with topics, queues and rows of its own; all of them live at once.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.opening import open_store, open_transport
from choreo.parked import ParkedStore
from choreo.record import ProducerRecord
from choreo.runtime.clock import SystemClock
from tests.integration.parked_child import (
    AFTER,
    BEFORE,
    KEYS,
    LIFE_S_MAX,
    Asked,
    Job,
    Point,
    Poured,
    app_of,
    table_of,
)
from tests.integration.test_parked_kafka import database

STORE = "choreo.stores.postgres:PostgresStore."
CLAIM, COMMIT, CONFIRM = STORE + "claim", STORE + "commit", STORE + "sent"
SEND, OFFSET = "choreo.transports.kafka:KafkaTransport.send", "choreo.transports.kafka.consumer:KafkaConsumer.commit"
GIVEN_UP, DONE = "choreo.runtime.parking:Parker.waits", "choreo.runtime.parking:Parker.leaves"
QUEUE = "choreo.stores.postgres.parked:change"
DUE, TOLD = STORE + "heads_due", STORE + "heads_sent"
QUICK = {"CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000", "CHOREO_KAFKA_GROUP_PROTOCOL": "classic"}


def after(since: str, target: str, *calls: int) -> list[Point]:
    """A step is done, and the next one is not; what was decided or written within a transaction is not committed."""
    return [Point(since, "after", target, call) for call in calls]


BY_HAND = [
    *after("parked", GIVEN_UP, 1, 2),
    *after("parked", QUEUE, 1, 2),
    *after("parked", COMMIT, 1, 3),
    *after("parked", OFFSET, 1, 2),
    Point("released", "before", SEND, 1),
    *after("released", SEND, 1, 3, 5),
    *after("released", DONE, 1, 2, 4, 6),
    *after("released", COMMIT, 2, 4, 6, 8),
    *after("released", CONFIRM, 1, 2, 4),
]
BY_ITSELF = [
    *after("parked", COMMIT, 1),
    Point("released", "before", DUE, 1),
    *after("released", DUE, 1),
    *after("released", TOLD, 1),
    *after("released", DONE, 2),
]
KILLED = 0.8
"""At least so many of them; where others were faster, a process had done everything before it came to its point."""


class Found(NamedTuple):
    """Of one service when all is over: what it did and emitted by key, what is still parked, dead letters."""

    rows: dict[str, list[int]]
    emitted: dict[str, list[int]]
    parked: int
    dead: int


EVERY = {who: list(range(AFTER)) for who in KEYS}
WANTED = Found(rows=EVERY, emitted=EVERY, parked=0, dead=0)


def lived(jobs: list[Job]) -> list[int]:
    """A life of each; exit codes."""
    command = [sys.executable, "-m", "tests.integration.parked_child"]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **QUICK},
        start_new_session=True,
    )
    try:
        said, _ = child.communicate(json.dumps(jobs).encode(), timeout=LIFE_S_MAX + 20)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # those it forked too
        child.communicate()
        raise
    codes: list[int] = json.loads(said)
    return codes


async def prepare(jobs: list[Job]) -> None:
    """Topics, the schema, and the first events of each."""
    store = open_store(jobs[0]["store"], "any", "any", None, clock=SystemClock())
    await store.open()
    await store.apply()
    await store.close()
    transport = open_transport(jobs[0]["broker"])
    await transport.open()
    records = []
    for job in jobs:
        app = app_of(job["name"], Mended(job["mended"]), delayed=job["delayed"])
        await transport.create_topics(app.topic_specs(1))
        for number in range(BEFORE):
            for who in KEYS:
                event = Asked(who=who, number=number)
                headers = cloudevents.write(
                    Envelope(f"{job['name']}-{who}-{number}", "/test", "kill.asked", version=1)
                )
                records.append(ProducerRecord(app.topic("asks"), who.encode(), event.payload(), headers))
    await transport.send(records)
    await transport.close()


async def found(jobs: list[Job]) -> dict[str, Found]:
    """What each service has come to."""
    transport = open_transport(jobs[0]["broker"])
    await transport.open()
    store: Any = open_store(jobs[0]["store"], "any", "any", None, clock=SystemClock())
    await store.open()
    queues: ParkedStore = store
    came: dict[str, Found] = {}
    with psycopg.connect(jobs[0]["store"]) as connection:
        for name in (job["name"] for job in jobs):
            emitted: dict[str, dict[str, int]] = defaultdict(dict)
            for record in sorted(await transport.scan([f"{name}.cups"], since_ms=0), key=lambda each: each.offset):
                cup = Poured.from_payload(record.value or b"")
                emitted[cup.who].setdefault(cloudevents.read(record.headers, record.value or b"")[0].id, cup.number)
            rows: dict[str, list[int]] = defaultdict(list)
            query = f"SELECT who, number FROM {table_of(name)} ORDER BY id"
            for who, number in connection.execute(query.encode()):
                rows[who].append(number)
            dead = await transport.scan([f"{name}.dlq"], since_ms=0)
            on_log = {who: list(numbers.values()) for who, numbers in emitted.items()}
            came[name] = Found(dict(rows), on_log, len(await queues.parked(name)), len(dead))
    await store.close()
    await transport.close()
    return came


async def test_a_parked_key_keeps_its_order_wherever_its_process_is_killed(
    kafka: str, postgres: str, tmp_path: Path
) -> None:
    """Nothing is lost, done twice or overtaken, and no key stays parked."""
    run = uuid4().hex[:8]
    points = [*BY_HAND, *BY_ITSELF]
    async with database(postgres) as url:

        def job(number: int) -> Job:
            return {
                "name": f"desk-{run}-{number}",
                "delayed": number >= len(BY_HAND),
                "point": points[number],
                "broker": f"kafka://{kafka}",
                "store": url,
                "mended": str(tmp_path / f"mended-{number}"),
            }

        jobs = [job(number) for number in range(len(points))]
        await prepare(jobs)
        killed = await asyncio.to_thread(lived, jobs)
        ended = await asyncio.to_thread(lived, [{**each, "point": None} for each in jobs])
        came = await found(jobs)
    assert dict(zip(points, ended, strict=True)) == dict.fromkeys(points, 0)
    assert {point: came[each["name"]] for point, each in zip(points, jobs, strict=True)} == {
        point: WANTED for point in points
    }
    assert set(killed) <= {0, -signal.SIGKILL}
    assert killed.count(-signal.SIGKILL) >= KILLED * len(points), dict(zip(points, killed, strict=True))
