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
    Mended,
    Point,
    Poured,
    app_of,
    table_of,
)
from tests.integration.test_parked_kafka import database

STORE = "choreo.stores.postgres:PostgresStore."
CLAIM, CONFIRM = STORE + "claim", STORE + "sent"
SEND, OFFSET = "choreo.transports.kafka:KafkaTransport.send", "choreo.transports.kafka.consumer:KafkaConsumer.commit"
QUEUE = "choreo.stores.postgres.parked:change"
"""Within the commit."""
NOTED = STORE + "heads_sent"
QUICK = {"CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000", "CHOREO_KAFKA_GROUP_PROTOCOL": "classic"}

PARKED = [
    Point("waits", nth, moment, target)
    for nth in (1, 2)  # the event that failed, and the one behind it
    for moment, target in (("before", QUEUE), ("after", QUEUE), ("before", OFFSET), ("after", OFFSET))
]
RELEASED = [Point("released", 1, *each) for each in (("before", SEND), ("after", SEND), ("after", CLAIM))]
FOLLOWED = [
    Point("leaves", nth, moment, target)
    for nth in (1, 3, AFTER - 1)  # the event that failed, one behind it, the last one
    for moment, target in (("after", QUEUE), ("before", SEND), ("after", SEND), ("after", CONFIRM))
]
CLOSED = [Point("leaves", AFTER, *each) for each in (("after", QUEUE), ("before", OFFSET))]
BY_HAND = [*PARKED, *RELEASED, *FOLLOWED, *CLOSED]
BY_ITSELF = [
    Point("released", 1, "before", NOTED),
    Point("released", 1, "after", NOTED),
    Point("leaves", 1, "before", SEND),
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
