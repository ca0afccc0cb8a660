"""What every store that keeps queues of parked keys must do, as tests that its author inherits."""

import asyncio
import math
import os
from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

from choreo.parked import Leaves, Parked, ParkedStore, Waits
from choreo.ports import Claimed, ClaimRequest, CommitRequest, CommitResult, Finished, Lease, Transacted
from choreo.record import ProducerRecord
from choreo.testing.conformance_shelf import OnShelf, Shelf

HOSTILE = "a\"b'c\0d😀%s{key}\\"
CLOSING = 9
HURRIED = 12


class Queue:
    """One queue on a shelf: its events have numbers, and are emitted as those."""

    def __init__(self, shelf: Shelf, handler: str = "sort") -> None:
        self.shelf = shelf
        self.store = cast(ParkedStore, shelf.store)
        self.handler = handler
        self.queue = os.urandom(16)
        self.closing = shelf.emit(CLOSING)
        self._run = uuid4().bytes[:14]

    def waits(self, number: int, reason: str = "", *, due_s: float | None = None, attempts: int = 1) -> Waits:
        """An event goes to the queue."""
        record = self.shelf.emit(number)
        detail, flow = f"detail {HOSTILE}", f"flow {HOSTILE}"
        return Waits(self.queue, self.row(number), self.handler, record, reason, detail, attempts, flow, due_s)

    def leaves(self, number: int, *, closing: bool = True) -> Leaves:
        """An event leaves it."""
        return Leaves(self.queue, self.row(number), self.closing if closing else None)

    def row(self, number: int) -> bytes:
        """Of the event."""
        return self._run + number.to_bytes(2, "big")

    async def finished(self, lease: Lease, parking: Waits | Leaves, *emits: ProducerRecord) -> Finished:
        """A claimed unit with that result."""
        key = os.urandom(16)
        assert (await self.shelf.claim(lease, key)).verdict == "fresh"
        return Finished(lease.partition, 7, key, emits, "parked:", parking=parking)

    async def do(self, lease: Lease, *parking: Waits | Leaves) -> CommitResult:
        """Commit units with these results, together."""
        units = [await self.finished(lease, each) for each in parking]
        return await self.shelf.store.commit(CommitRequest({lease.partition: lease}, units, {}))

    async def claim(self, lease: Lease) -> Claimed:
        """Claim a new event of the queue's key."""
        request = ClaimRequest(
            lease.partition, os.urandom(16), b"12345678", self.handler, 7, "flow", 0, queue=self.queue
        )
        (answer,) = await self.shelf.store.claim([lease], [request])
        return answer

    async def heads(self) -> Sequence[Parked]:
        """Of all the group's queues."""
        return await self.store.parked(self.shelf.group)


class ParkedConformance(OnShelf):
    """Inherit it in a class `Test...`, as `StoreConformance`."""

    def closes(self, *numbers: int) -> list[int]:
        """Emitted when a queue became empty: where the emits are on the log by the same commit, nothing."""
        return list(numbers) if "outbox" in self.guarantees else []

    async def test_claim_says_whether_the_key_is_parked(self) -> None:
        """From the commit on that parks it until the one that takes the last event out; of this key, where asked."""
        async with self.shelf() as shelf:
            queue, other, lease = Queue(shelf), Queue(shelf), await shelf.lease(shelf.p)
            assert await queue.claim(lease) == Claimed("fresh")
            await queue.do(lease, queue.waits(1, "handler_failed"))
            assert await queue.claim(lease) == Claimed("fresh", parked=True)
            assert await other.claim(lease) == Claimed("fresh")
            assert not (await shelf.claim(lease, os.urandom(16))).parked
            await queue.do(lease, queue.leaves(1))
            if self.closes(CLOSING):
                assert (await queue.claim(lease)).parked
                await queue.do(lease, queue.leaves(1, closing=False))
            assert not (await queue.claim(lease)).parked
            assert await queue.store.parked_keys(shelf.group) == 0

    async def test_events_leave_in_the_order_they_came(self) -> None:
        """Each that leaves emits the next; behind the last one the queue is closed, and the key parked no more."""
        async with self.shelf() as shelf:
            queue, lease = Queue(shelf), await shelf.lease(shelf.p)
            await queue.do(lease, queue.waits(1, "handler_failed"))
            await queue.do(lease, queue.waits(2), queue.waits(3))
            assert await self.emitted(shelf, lease) == []
            assert [head.behind for head in await queue.heads()] == [2]
            await queue.do(lease, queue.leaves(1))
            await queue.do(lease, queue.leaves(2))
            assert await self.emitted(shelf, lease) == [2, 3]
            result = await queue.do(lease, queue.leaves(3))
            assert await self.emitted(shelf, lease) == [2, 3, *self.closes(CLOSING)]
            assert [record for _, record in result.outbox] == [queue.closing] * len(self.closes(CLOSING))
            await queue.do(lease, queue.leaves(3, closing=False))
            assert await queue.heads() == []

    async def test_event_that_waits_for_nothing_is_emitted_at_once(self) -> None:
        """Its key was parked when it was claimed, and is no more: it is handled in its turn all the same."""
        async with self.shelf() as shelf:
            queue, lease = Queue(shelf), await shelf.lease(shelf.p)
            result = await queue.do(lease, queue.waits(1), queue.waits(2))
            assert await self.emitted(shelf, lease) == [1]
            if "outbox" in self.guarantees:
                assert [record.value for _, record in result.outbox] == [b"1"]
            await queue.do(lease, queue.leaves(1))
            assert await self.emitted(shelf, lease) == [1, 2]

    async def test_event_that_came_while_the_queue_was_closed_is_next(self) -> None:
        """Nothing is stranded between the last event and the end of the queue."""
        async with self.shelf() as shelf:
            queue, lease = Queue(shelf), await shelf.lease(shelf.p)
            await queue.do(lease, queue.waits(1, "handler_failed"))
            await queue.do(lease, queue.leaves(1))
            await queue.do(lease, queue.waits(2))
            await queue.do(lease, queue.leaves(1, closing=False))
            assert await self.emitted(shelf, lease) == [*self.closes(CLOSING), 2]
            assert (await queue.claim(lease)).parked

    async def test_head_that_fails_again_keeps_its_place(self) -> None:
        """With its new record and reason; nothing is emitted. Attempts add up."""
        async with self.shelf() as shelf:
            queue, lease = Queue(shelf, HOSTILE), await shelf.lease(shelf.p)
            await queue.do(lease, queue.waits(1, "handler_failed", attempts=3))
            await queue.do(lease, queue.waits(2))
            (before,) = await queue.heads()
            again = queue.waits(1, HOSTILE, attempts=2)._replace(record=shelf.emit(5))
            await queue.do(lease, again)
            assert await self.emitted(shelf, lease) == []
            (head,) = await queue.heads()
            assert head == before._replace(record=shelf.emit(5), reason=HOSTILE, attempts=5)
            assert (head.handler, head.correlation_id, head.behind) == (HOSTILE, f"flow {HOSTILE}", 1)
            assert abs(head.parked_ms - before.parked_ms) < 60_000

    async def test_commit_that_is_repeated_changes_no_queue_twice(self) -> None:
        """Its end was not known: the same again parks nothing anew, and takes nothing more out."""
        async with self.shelf() as shelf:
            queue, lease = Queue(shelf), await shelf.lease(shelf.p)
            await queue.do(lease, queue.waits(1, "handler_failed"), queue.waits(2), queue.waits(3))
            for parking in (queue.leaves(1), queue.waits(4)):
                unit = await queue.finished(lease, parking)
                request = CommitRequest({lease.partition: lease}, [unit], {})
                await shelf.store.commit(request)
                await shelf.store.commit(request)
            assert await self.emitted(shelf, lease) == [2]
            assert [head.behind for head in await queue.heads()] == [2]

    async def test_stale_owner_changes_no_queue(self) -> None:
        """Its commit is refused, and its queue with it."""
        async with self.shelf() as shelf:
            queue, lease = Queue(shelf), await shelf.lease(shelf.p)
            await queue.do(lease, queue.waits(1, "handler_failed"))
            units = [await queue.finished(lease, each) for each in (queue.leaves(1), queue.waits(2))]
            newer = await shelf.lease(shelf.p, "two")
            result = await shelf.store.commit(CommitRequest({lease.partition: lease}, units, {}))
            assert result.refused == {shelf.p}
            assert await self.emitted(shelf, newer) == []
            assert [(head.row, head.behind) for head in await queue.heads()] == [(queue.row(1), 0)]

    async def test_heads_are_looked_at_by_handler_and_key(self) -> None:
        """And counted; those of another group are not there."""
        async with self.shelf() as shelf:
            lease = await shelf.lease(shelf.p)
            one, two = Queue(shelf), Queue(shelf, "weigh")
            await one.do(lease, one.waits(1, "handler_failed"), one.waits(2))
            await two.do(lease, two.waits(3, "rejected"))
            assert [head.row for head in await one.heads()] == [one.row(1), two.row(3)]
            assert [head.row for head in await one.store.parked(shelf.group, handler="weigh")] == [two.row(3)]
            assert len(await one.store.parked(shelf.group, key=b"k")) == 2
            assert await one.store.parked(shelf.group, key=b"other") == []
            assert await one.store.parked(f"{shelf.group} other") == []
            assert await one.store.parked_keys(shelf.group) == 2

    async def test_head_is_sent_when_it_is_due(self) -> None:
        """Not before, nor what is behind it; not twice in a row, but again if nothing comes of it."""
        async with self.shelf() as shelf:
            queue, lease = Queue(shelf), await shelf.lease(shelf.p)
            told: list[float] = []
            queue.store.on_timer.append(told.append)

            async def due() -> tuple[list[bytes | None], float]:
                heads, next_s = await queue.store.heads_due(shelf.group, limit=5, claim_s=0.0)
                await queue.store.heads_sent(heads, again_s=60.0)
                return [head.record.value for head in heads], next_s

            assert await due() == ([], math.inf)
            await queue.do(lease, queue.waits(1, "handler_failed", due_s=50.0), queue.waits(2, "odd", due_s=0.001))
            assert len(told) == 1
            assert told[0] <= 0.001
            found, next_s = await due()
            assert (found, 0 < next_s <= 50.0) == ([], True)
            await queue.do(lease, queue.leaves(1))
            await asyncio.sleep(0.01)
            assert (await due())[0] == [b"2"]
            found, next_s = await due()
            assert (found, 0 < next_s <= 60.0) == ([], True)
            await queue.do(lease, queue.waits(2, "handler_failed"))
            assert await due() == ([], math.inf)  # its delays are used up

    async def test_handler_inside_the_commit_takes_its_event_out_of_the_queue(self) -> None:
        """With its rows, or not at all."""
        if "rows" not in self.guarantees:
            return
        async with self.shelf() as shelf:
            queue, lease = Queue(shelf), await shelf.lease(shelf.p)
            await queue.do(lease, queue.waits(1, "handler_failed"), queue.waits(2))
            for fails in (True, False):
                key = os.urandom(16)
                await shelf.claim(lease, key)
                inside = self._leaving(queue, self.inside(shelf, lease, key, f"row {key.hex()}", 5, "a", fails=fails))
                request = CommitRequest({lease.partition: lease}, (), {}, (inside,))
                (outcome,) = (await shelf.store.commit(request)).transacted
                assert isinstance(outcome, Finished) == (not fails)
                assert [head.behind for head in await queue.heads()] == [1 if fails else 0]
            assert await self.emitted(shelf, lease) == [5, 2]

    def _leaving(self, queue: Queue, inside: Transacted) -> Transacted:
        """The same, and its event leaves the queue."""

        def left(finished: Finished) -> Finished:
            return finished._replace(parking=queue.leaves(1))

        def invoke(transaction: Any, connection: Any) -> Finished:
            return left(inside.invoke(transaction, connection))

        async def invoke_async(transaction: Any, connection: Any) -> Finished:
            return left(await inside.invoke(transaction, connection))

        call = invoke_async if inside.is_async else invoke
        return Transacted(inside.partition, inside.digest, inside.lane, inside.wants, inside.is_async, call)

    async def test_nothing_is_stranded_between_two_owners(self) -> None:
        """One puts an event in while another takes the last one out: whichever is first, it is emitted, and once."""
        async with self.shelf() as shelf:
            p, q = await shelf.lease(shelf.p), await shelf.lease(shelf.q, "two")
            closing = not self.closes(CLOSING)
            for _ in range(HURRIED):
                queue = Queue(shelf)
                await queue.do(q, queue.waits(1, "handler_failed"))
                if not closing:
                    await queue.do(q, queue.leaves(1))
                put, take = (
                    await queue.finished(p, queue.waits(2)),
                    await queue.finished(q, queue.leaves(1, closing=closing)),
                )
                await asyncio.gather(
                    shelf.store.commit(CommitRequest({p.partition: p}, [put], {})),
                    shelf.store.commit(CommitRequest({q.partition: q}, [take], {})),
                )
            emitted = await self.emitted(shelf, p)
            if "outbox" in self.guarantees:
                emitted += await self.emitted(shelf, q)
            assert emitted.count(2) == HURRIED
            assert await queue.store.parked_keys(shelf.group) == HURRIED
