"""Commits whose end is not known, answers that come late, and hooks and handlers that fail in odd ways."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import pytest

from choreo import App, Event, Service
from choreo.core import messages as m
from choreo.core.alarms import Alarms
from choreo.core.retry import RetryPolicy
from choreo.errors import StoreError, TransportError
from choreo.ports import CommitRequest, CommitResult, Lease
from choreo.record import ProducerRecord, TopicPartition
from choreo.running import Running
from tests.integration.bad_days import running


class Asked(Event, type="test.asked", version=1, topic="asked", key="who"):
    """Something is asked."""

    who: str
    number: int


class Noted(Event, type="test.noted", version=1, topic="asked", key="who"):
    """Something is to be noted in a row."""

    who: str
    number: int


class Said(Event, type="test.said", version=1, topic="said", key="who"):
    """It was answered."""

    who: str
    number: int


RETRY = RetryPolicy(attempts_max=2, base_s=0.01, cap_s=0.02)


def desk(before: Callable[[Noted], object] = lambda noted: None) -> Service:
    """A service with an ordinary handler and one that transacts."""
    service = Service("desk", retry=RETRY)

    @service.handler(Asked)
    async def answer(asked: Asked) -> Said:
        return Said(who=asked.who, number=asked.number)

    @service.handler(Noted)
    def note(noted: Noted, db: Connection) -> Said:
        before(noted)
        return Said(who=noted.who, number=noted.number)

    return service


@asynccontextmanager
async def at_work(folder: Path, service: Service, around: Sequence[Any] = ()) -> AsyncIterator[Running]:
    """The service on an embedded log and, with an outbox, a store in a file of its own."""
    app = App(service, around=around)
    async with running(app, "two_files", folder / "log.db", folder / "store.db", partitions=1) as found:
        assert await until(lambda: taken(found))
        yield found


async def said(found: Running) -> list[int]:
    """Numbers on the log of what was said, each once, in order."""
    records = await found.transport.scan(["said"], since_ms=0)
    return list(dict.fromkeys(Said.from_payload(record.value or b"").number for record in records))


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> bool:
    """Whether it comes true in time."""
    until_s = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(0.02)
    return True


async def test_what_an_unknown_commit_left_is_sent_before_what_follows_it_in_its_lane(tmp_path: Path) -> None:
    """The flush that is told to have failed was durable; the next one has the lane's next event with it."""
    async with at_work(tmp_path, desk()) as found:
        store, fails = found.stores["desk"], [True]
        commit = store.commit

        async def unknown(request: CommitRequest) -> CommitResult:
            result = await commit(request)
            if request.finished and fails:
                fails.clear()
                await found.publish(Asked(who="ann", number=2))
                raise StoreError("the answer was lost")
            return result

        store.commit = unknown  # type: ignore[method-assign]
        await found.publish(Asked(who="ann", number=1))
        assert await until(lambda: all_said(found, 2))
        assert await said(found) == [1, 2]


async def taken(found: Running) -> bool:
    """Whether the service has its partition."""
    return bool(found.workers["desk"].leases)


async def all_said(found: Running, count: int) -> bool:
    """Whether so many were answered."""
    return len(await said(found)) == count


async def test_a_commit_that_fails_while_another_is_resent_is_resent_too(tmp_path: Path) -> None:
    """Both ends are unknown, of a flush and of a transaction; neither's emits stay in the outbox."""
    async with at_work(tmp_path, desk()) as found:
        store, both_fail, reading, failed = found.stores["desk"], {"flush", "transaction"}, *_events(2)
        commit, pending = store.commit, store.pending

        async def unknown(request: CommitRequest) -> CommitResult:
            kind = "transaction" if request.transacted else "flush"
            if kind == "transaction" and kind in both_fail:
                await reading.wait()
            result = await commit(request)
            if kind in both_fail and (request.finished or request.transacted):
                both_fail.discard(kind)
                if kind == "transaction":
                    failed.set()
                raise StoreError("the answer was lost")
            return result

        async def slowly(lease: Lease) -> Sequence[tuple[int, ProducerRecord]]:
            rows = await pending(lease)
            if not reading.is_set():
                reading.set()
                await failed.wait()
                await asyncio.sleep(0)
            return rows

        store.commit, store.pending = unknown, slowly  # type: ignore[method-assign]
        await found.publish(Asked(who="ann", number=1))
        await found.publish(Noted(who="bob", number=2))
        assert await until(lambda: all_said(found, 2)), await said(found)


def _events(count: int) -> list[asyncio.Event]:
    return [asyncio.Event() for _ in range(count)]


async def test_an_outbox_that_cannot_be_read_is_read_again(tmp_path: Path) -> None:
    """Nothing else happens to the service meanwhile that would make it look."""
    async with at_work(tmp_path, desk()) as found:
        store, fails, unread = found.stores["desk"], [True], [True]
        commit, pending = store.commit, store.pending

        async def unknown(request: CommitRequest) -> CommitResult:
            result = await commit(request)
            if request.finished and fails:
                fails.clear()
                raise StoreError("the answer was lost")
            return result

        async def unreadable(lease: Lease) -> Sequence[tuple[int, ProducerRecord]]:
            if unread:
                unread.clear()
                raise StoreError("the store is away")
            return await pending(lease)

        store.commit, store.pending = unknown, unreadable  # type: ignore[method-assign]
        await found.publish(Asked(who="ann", number=1))
        assert await until(lambda: all_said(found, 1))
        assert found.workers["desk"].outgoing._unconfirmed == {}


@pytest.mark.parametrize("late", ["commit", "transaction", "renew"])
async def test_a_late_refusal_of_a_former_assignment_leaves_the_new_one_alone(tmp_path: Path, late: str) -> None:
    """The partition was lost and came back to the same member, while the store was asked with the old lease."""
    async with at_work(tmp_path, desk()) as found:
        store, worker, (asked, answer) = found.stores["desk"], found.workers["desk"], _events(2)
        commit, renew, first = store.commit, store.renew, [True]

        async def held(request: CommitRequest) -> CommitResult:
            if first and (request.transacted if late == "transaction" else request.finished):
                first.clear()
                asked.set()
                await answer.wait()
            return await commit(request)

        async def held_renewal(*arguments: Any) -> frozenset[TopicPartition]:
            asked.set()
            await answer.wait()
            return await renew(*arguments)

        store.commit = held  # type: ignore[method-assign]
        (id_,) = worker.leases
        renewing = None
        if late == "renew":
            store.renew = held_renewal  # type: ignore[method-assign, assignment]
            renewing = asyncio.create_task(worker._keeper.renew())
        else:
            event = Asked(who="ann", number=1) if late == "commit" else Noted(who="ann", number=1)
            await found.publish(event)
        await asked.wait()
        await worker.holder.revoked([id_], lost=True)
        await worker.holder.assigned([id_])
        lease = worker.leases[id_]
        answer.set()
        if renewing is not None:
            await renewing
        await found.publish(Asked(who="ann", number=2))
        assert await until(lambda: all_said(found, 1 + (late != "renew")), 3.0)
        assert worker.leases == {id_: lease}


async def test_a_hook_that_raises_around_a_transacting_handler_is_a_failed_attempt(tmp_path: Path) -> None:
    """As around any other handler: the event is tried again, then dead-lettered, and others are handled."""
    told: list[str] = []

    @asynccontextmanager
    async def tracker(context: Any) -> AsyncIterator[None]:
        try:
            yield
        except ValueError as error:
            told.append(str(error))
            raise
        finally:
            told.append("left")

    @asynccontextmanager
    async def tenant(context: Any) -> AsyncIterator[None]:
        if context.envelope.correlationid == "unknown":
            raise LookupError("no such tenant")
        yield

    def before(noted: Noted) -> None:
        if noted.number == 2:
            raise ValueError("two")

    async with at_work(tmp_path, desk(before), around=[tracker, tenant]) as found:
        worker = found.workers["desk"]
        await found.publish(Noted(who="ann", number=1), correlation_id="unknown")
        await found.publish(Noted(who="bob", number=2))
        await found.publish(Noted(who="cid", number=3))
        assert await until(lambda: all_said(found, 1))

        async def both() -> bool:
            return worker.counts["dead_letters"] == 2

        assert await until(both)
        assert worker.failure is None
        assert (told.count("two"), told.count("left")) == (2, 5)
        assert worker.counts["failed_attempts"] == 4


@pytest.mark.parametrize("error", [asyncio.CancelledError, StopIteration])
@pytest.mark.parametrize("transacts", [False, True])
async def test_a_plain_handler_may_raise_what_python_uses_itself(
    tmp_path: Path, error: type[BaseException], transacts: bool
) -> None:
    """`next()` of nothing, or a cancelled call inside: a failed attempt, and the events of its key go on."""
    service = Service("desk", retry=RETRY)

    def odd(number: int) -> None:
        if number == 1:
            raise error

    if transacts:

        @service.handler(Noted)
        def note(noted: Noted, db: Connection) -> Said:
            odd(noted.number)
            return Said(who=noted.who, number=noted.number)

    else:

        @service.handler(Noted)
        def say(noted: Noted) -> Said:
            odd(noted.number)
            return Said(who=noted.who, number=noted.number)

    async with at_work(tmp_path, service) as found:
        await found.publish(Noted(who="ann", number=1))
        await found.publish(Noted(who="ann", number=2))
        assert await until(lambda: all_said(found, 1))

        async def counted() -> bool:
            return found.workers["desk"].counts["dead_letters"] == 1

        assert await until(counted)  # the commit is known here some time after its emits are seen on the log


async def test_a_bug_that_shows_at_a_tick_stops_the_worker(tmp_path: Path) -> None:
    """Silence would be worse: nothing would ever be woken again."""
    async with at_work(tmp_path, desk()) as found:
        worker = found.workers["desk"]
        worker.engine._alarms.set(None, 0.0)  # type: ignore[arg-type]
        worker._timer = None
        worker._perform(m.Wait(0.0))

        async def stopped() -> bool:
            return worker.failure is not None

        assert await until(stopped)
        worker.engine._alarms = Alarms()


async def test_a_service_that_cannot_leave_its_group_does_not_cut_short_another(tmp_path: Path) -> None:
    """Its own tasks end, the other one's handler is waited for, and then it is said."""
    other, began, ended = Service("other", retry=RETRY), asyncio.Event(), asyncio.Event()

    @other.handler(Asked)
    async def slow(asked: Asked) -> None:
        began.set()
        await asyncio.sleep(0.3)
        ended.set()

    app, log_path = App(desk(), other), tmp_path / "log.db"
    with pytest.raises(TransportError, match="the group is away"):  # noqa: PT012
        async with running(app, "one_file", log_path, log_path, partitions=1) as found:
            desk_, slow_ = found.workers["desk"], found.workers["other"]
            close = desk_.consumer.close

            async def failing() -> None:
                await close()
                raise TransportError("the group is away")

            desk_.consumer.close = failing  # type: ignore[method-assign]
            await found.publish(Asked(who="ann", number=1))
            await began.wait()
    assert ended.is_set()
    assert slow_.counts["handled"] == 1
    assert (desk_._tasks, slow_._tasks) == (set(), set())
