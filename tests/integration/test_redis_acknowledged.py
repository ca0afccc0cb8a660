"""Emits on the log before their key is done in Redis: not sent again by a retry, nor reason to hold others back."""

import asyncio
import time
from pathlib import Path
from uuid import uuid4

from choreo import App, Event, Service
from choreo.errors import Reject, StoreError
from choreo.ports import CommitRequest, CommitResult
from choreo.running import Running


class Asked(Event, type="ack.asked", version=1, topic="ack-asked", key="who"):
    """Something is asked."""

    who: str


class Said(Event, type="ack.said", version=1, topic="ack-said", key="who"):
    """It was answered."""

    who: str


async def sent(found: Running, topic: str, count: int) -> int:
    """How many records the topic has, once it has so many or some seconds went by."""
    until_s = time.monotonic() + 5.0
    while True:
        records = await found.transport.scan([topic], since_ms=0)
        if len(records) >= count or time.monotonic() > until_s:
            return len(records)
        await asyncio.sleep(0.02)


async def counted(found: Running, outcome: str) -> None:
    """Wait until the desk counted one, which it does when its commit has ended."""
    until_s = time.monotonic() + 5.0
    while not found.workers["ackdesk"].counts[outcome] and time.monotonic() < until_s:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_what_a_dropped_result_sent_holds_back_nothing_of_the_next_one(tmp_path: Path, redis: str) -> None:
    """Sent, the key not written, the partition lost and taken again: what the handler decides now is sent too."""
    service, invocations, failed = Service("ackdesk"), [0], asyncio.Event()

    @service.handler(Asked)
    async def answer(asked: Asked) -> Said:
        invocations[0] += 1
        if invocations[0] > 1:
            raise Reject("not any more")
        return Said(who=asked.who)

    url = f"{redis}?choreo_prefix=ack-{uuid4().hex[:8]}"
    broker = f"embedded:{tmp_path / 'log.db'}"
    async with App(service).running(broker=broker, store=url, create_topics=True, partitions=1) as found:
        store, worker = found.stores["ackdesk"], found.workers["ackdesk"]
        commit = store.commit

        async def lost(request: CommitRequest) -> CommitResult:
            if request.finished and not failed.is_set():
                failed.set()
                raise StoreError("Redis is away")
            return await commit(request)

        store.commit = lost  # type: ignore[method-assign]
        await found.publish(Asked(who="ann"))
        await failed.wait()
        assert worker.flusher._acked
        ids = tuple(worker.leases)
        await worker.holder.revoked(ids, lost=True)
        await worker.holder.assigned(ids)
        assert await sent(found, "ackdesk.dlq", 1) == 1
        assert await sent(found, "ack-said", 1) == 1
        await counted(found, "dead_letters")
        assert invocations == [2]
        assert worker.flusher._acked == {}


async def test_a_retry_does_not_send_again_what_was_acknowledged(tmp_path: Path, redis: str) -> None:
    """The store failed after the emits were on the log: only the key is still to be written."""
    service, fails = Service("ackdesk"), [True, True]

    @service.handler(Asked)
    async def answer(asked: Asked) -> Said:
        return Said(who=asked.who)

    url = f"{redis}?choreo_prefix=ack-{uuid4().hex[:8]}"
    broker = f"embedded:{tmp_path / 'log.db'}"
    async with App(service).running(broker=broker, store=url, create_topics=True, partitions=1) as found:
        store, worker = found.stores["ackdesk"], found.workers["ackdesk"]
        commit = store.commit

        async def away(request: CommitRequest) -> CommitResult:
            if request.finished and fails:
                fails.pop()
                raise StoreError("Redis is away")
            return await commit(request)

        store.commit = away  # type: ignore[method-assign]
        await found.publish(Asked(who="ann"))
        await counted(found, "handled")
        assert worker.counts["handled"] == 1
        assert await sent(found, "ack-said", 1) == 1
        assert worker.flusher._acked == {}
