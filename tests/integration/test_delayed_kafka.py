"""Delayed retries on a real Kafka: on time, by one handler, over a restart, with keys beside the log and on it."""

import asyncio
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from choreo import App, Context, Delayed, Event, Service
from choreo import envelope as cloudevents
from choreo.runtime.emitting import original
from tests.integration.bare_client import waited

EVENTS = 24
DELAYS_S = (1, 2)


class Asked(Event, type="delayed.asked", version=1, topic="asks", key="who"):
    number: int
    who: str


class Poured(Event, type="delayed.poured", version=1, topic="cups", key="who"):
    number: int
    who: str


class Desk:
    """A service one third of whose events fail for ever, another third once; and each attempt, when it was made."""

    def __init__(self, prefix: str) -> None:
        self.attempts: dict[int, list[tuple[int, float]]] = defaultdict(list)
        self.heard: list[int] = []
        service = Service("desk", group=f"{prefix}desk")

        @service.handler(Asked, retry=Delayed(*DELAYS_S))
        async def pour(asked: Asked, ctx: Context) -> Poured:
            self.attempts[asked.number].append((ctx.attempt, time.monotonic()))
            if asked.number % 3 == 2 or (asked.number % 3 == 1 and ctx.attempt == 1):
                raise ConnectionError
            return Poured(number=asked.number, who=asked.who)

        @service.handler(Asked)
        async def hear(asked: Asked) -> None:
            self.heard.append(asked.number)

        self.app = App(service)

    def done(self) -> bool:
        """Whether every attempt there is to be was made."""
        made = {number: len(found) for number, found in self.attempts.items()}
        return made == {number: number % 3 + 1 for number in range(EVENTS)} and len(self.heard) >= EVENTS


@pytest.mark.parametrize("kind", ["sqlite", "changelog"])
async def test_delayed_retries_on_kafka(
    kafka: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is on time and goes on counting, whoever has its partition by then; the rest of its key is not held up."""
    prefix = f"delayed-{uuid4()}-"
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", prefix)
    desk = Desk(prefix)
    store = f"sqlite:{tmp_path}/{{service}}.db" if kind == "sqlite" else "changelog"
    running_here = partial(desk.app.running, broker=f"kafka://{kafka}", store=store)
    async with running_here(create_topics=True, create_schema=True, partitions=2) as running:
        for number in range(EVENTS):
            await running.publish(Asked(number=number, who=f"guest {number % 4}"))
        await waited(lambda: len(desk.attempts) == EVENTS, within_s=30)
    async with running_here() as running:  # another process has them now
        await waited(desk.done, within_s=60)
        await asyncio.sleep(2 * max(DELAYS_S))  # for what should not come
        cups = await running.transport.scan([f"{prefix}cups"], since_ms=0)
        letters = await running.transport.scan([f"{prefix}desk.dlq"], since_ms=0)
    assert desk.done()
    assert len(desk.heard) == EVENTS
    for number, found in desk.attempts.items():
        assert [attempt for attempt, _ in found] == list(range(1, 2 + number % 3))
        for (_, before), (_, after), delay_s in zip(found, found[1:], DELAYS_S, strict=False):
            assert after - before >= delay_s - 0.05
    ids = {cloudevents.read(record.headers, record.value or b"")[0].id for record in cups}
    assert len(cups) == len(ids) == EVENTS * 2 // 3
    told = [original(record) for record in letters]
    assert [(each["handler"], each["attempts"]) for each in told] == [("pour", "3")] * (EVENTS // 3)
    assert {each["original-topic"] for each in told} == {f"{prefix}asks"}
