"""What every store that keeps instances of processes must do, as tests that its author inherits."""

import asyncio
import math
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast
from uuid import uuid4

from choreo.errors import Reject, StoreError
from choreo.instances import INSTANCES, KEY_BYTES_MAX, Instance, Instances, Timer, TimerStore
from choreo.ports import CommitRequest, Finished, Lease, Transacted
from choreo.testing.conformance_shelf import OnShelf, Shelf

Change = Callable[[Instances], object]
HOSTILE = "a\"b'c\0d😀%s{key}\\"
LONG_S, CLAIM_S, AGAIN_S = 3_600.0, 3.0, 0.05


class Desk:
    """A shelf on which one process handles events, each of which changes instances."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.process = f"approval-{uuid4()}"
        self.timer_store = cast(TimerStore, shelf.store)

    async def unit(self, lease: Lease, change: Change) -> Transacted:
        """One claimed event whose handler changes instances; it emits one event, numbered 1."""
        key = os.urandom(16)
        assert (await self.shelf.claim(lease, key)).verdict == "fresh"

        def invoke(instances: Instances, _: Any) -> Finished:
            change(instances)
            return Finished(lease.partition, 7, key, (self.shelf.emit(1),), "handled")

        return Transacted(lease.partition, key, key, INSTANCES, False, invoke)

    async def handle(self, change: Change, lease: Lease | None = None) -> BaseException | None:
        """Commit one event; returns what its handler raised."""
        lease = lease or await self.shelf.lease(self.shelf.p)
        return (await self.commit(lease, await self.unit(lease, change)))[0]

    async def commit(self, lease: Lease, *units: Transacted) -> list[BaseException | None]:
        """Commit some; returns what their handlers raised."""
        result = await self.shelf.store.commit(CommitRequest({lease.partition: lease}, (), {}, units))
        assert not result.refused
        return [each if isinstance(each, BaseException) else None for each in result.transacted]

    async def now_ms(self) -> int:
        """The store's clock."""
        told: list[int] = []
        await self.handle(lambda instances: told.append(instances.now_ms))
        return told[0]

    async def set_timers(self, *timers: Timer) -> None:
        """Set them in one transaction."""

        def set_all(instances: Instances) -> None:
            for timer in timers:
                instances.set_timer(timer)

        assert await self.handle(set_all) is None

    async def due(self, limit: int = 100, claim_s: float = LONG_S) -> tuple[list[str], float]:
        """Names of the timers that are due, and when the next one is."""
        timers, next_s = await self.timer_store.due([self.process], limit=limit, claim_s=claim_s)
        return [timer.name for timer in timers], next_s

    async def timers(self, key: str = "1") -> Sequence[Timer]:
        """What is stored of one instance's."""
        found = await self.timer_store.instance(self.process, key)
        return [] if found is None else found[1]

    def instance(self, key: str = "1", **fields: Any) -> Instance:
        """One that is new."""
        return Instance(self.process, key, 1, "waiting", b"{}")._replace(**fields)

    def timer(self, name: str, due_ms: int, **fields: Any) -> Timer:
        """Of the instance 1."""
        return Timer(self.process, "1", name, "token", due_ms)._replace(**fields)


class InstancesConformance(OnShelf):
    """Inherit it in a class `Test...`, with `guarantees`, `store` and perhaps `log`, as of `StoreConformance`."""

    @asynccontextmanager
    async def desk(self) -> AsyncIterator[Desk]:
        """What one test plays on."""
        async with self.shelf() as shelf:
            assert INSTANCES in shelf.store.transaction_types
            yield Desk(shelf)

    # ---- instances

    async def test_an_instance_is_stored_as_it_is(self) -> None:
        """Every field, whatever is in it; its revision counts commits, and the store says when it was stored."""
        async with self.desk() as desk:
            new = desk.instance(HOSTILE, version=3, state=HOSTILE, data=b"\0{}", ended=True, deferred=b"[1]")
            new = new._replace(correlation_id=HOSTILE)
            before_ms = await desk.now_ms()
            assert await desk.handle(lambda instances: instances.save(new)) is None
            loaded: list[Instance | None] = []
            await desk.handle(lambda instances: loaded.append(instances.load(desk.process, HOSTILE)))
            (found,) = loaded
            assert found is not None
            assert found == new._replace(revision=1, updated_ms=found.updated_ms)
            assert before_ms <= found.updated_ms <= await desk.now_ms()
            await desk.handle(lambda instances: instances.save(found._replace(state="done", ended=False)))
            again = await desk.timer_store.instance(desk.process, HOSTILE)
            assert again is not None
            assert again[0]._replace(updated_ms=0) == found._replace(
                state="done", ended=False, revision=2, updated_ms=0
            )
            assert again[1] == []
            assert await desk.timer_store.instance(desk.process, "another") is None
            assert await desk.timer_store.instance("another", HOSTILE) is None

    async def test_a_handler_that_raises_leaves_neither_instance_nor_timer(self) -> None:
        """Nor an emit; what the unit beside it stored is committed."""
        async with self.desk() as desk:
            due_ms = await desk.now_ms()
            lease = await desk.shelf.lease(desk.shelf.p)

            def fails(instances: Instances) -> None:
                instances.save(desk.instance("bad"))
                instances.set_timer(desk.timer("bad", due_ms, key="bad"))
                raise ZeroDivisionError

            def works(instances: Instances) -> None:
                instances.save(desk.instance("good"))
                instances.set_timer(desk.timer("good", due_ms, key="good"))

            before = await self.emitted(desk.shelf, lease)
            units = [await desk.unit(lease, fails), await desk.unit(lease, works)]
            failed, worked = await desk.commit(lease, *units)
            assert isinstance(failed, ZeroDivisionError)
            assert worked is None
            assert len(await self.emitted(desk.shelf, lease)) == len(before) + 1
            assert [each.key for each in await desk.timer_store.instances(desk.process)] == ["good"]
            assert (await desk.due())[0] == ["good"]

    async def test_an_instance_stored_meanwhile_is_not_overwritten(self) -> None:
        """Neither by a revision that is old, nor by one that says it is new: StoreError, and nothing of the unit."""
        async with self.desk() as desk:
            due_ms = await desk.now_ms()
            for revision, stored in ((0, "first"), (1, "second")):
                now = desk.instance(state=stored, revision=revision)
                assert await desk.handle(lambda instances, now=now: instances.save(now)) is None  # type: ignore[misc]

                def late(instances: Instances, revision: int = revision) -> None:
                    instances.set_timer(desk.timer("late", due_ms))
                    instances.save(desk.instance(state="late", revision=revision))

                assert isinstance(await desk.handle(late), StoreError)
                found = await desk.timer_store.instance(desk.process, "1")
                assert found is not None
                assert (found[0].state, found[0].revision, found[1]) == (stored, revision + 1, [])

    async def test_until_the_commit_nobody_else_loads_it(self) -> None:
        """Two transactions that each add to what they loaded: nothing is lost, and nobody is told to try again."""
        async with self.desk() as desk:
            await desk.handle(lambda instances: instances.save(desk.instance(data=b"0")))
            leases = await desk.shelf.store.acquire(desk.shelf.group, [desk.shelf.p, desk.shelf.q], "one")
            both = threading.Barrier(2)

            def add(instances: Instances) -> None:
                with_both(both)
                found = instances.load(desk.process, "1")
                assert found is not None
                with_both(both)  # who does not lock has loaded, on both sides, before either stores
                instances.save(found._replace(data=b"%d" % (int(found.data) + 1)))

            units = [await desk.unit(lease, add) for lease in leases]
            outcomes = await asyncio.gather(
                *(desk.commit(lease, unit) for lease, unit in zip(leases, units, strict=True))
            )
            assert outcomes == [[None], [None]]
            found = await desk.timer_store.instance(desk.process, "1")
            assert found is not None
            assert found[0].data == b"2"

    async def test_of_two_transactions_that_make_an_instance_one_is_told_to_try_again(self) -> None:
        """None of them overwrites what the other stored."""
        async with self.desk() as desk:
            leases = await desk.shelf.store.acquire(desk.shelf.group, [desk.shelf.p, desk.shelf.q], "one")
            both = threading.Barrier(2)

            def make(instances: Instances) -> None:
                found = instances.load(desk.process, "1")
                with_both(both)
                instances.save((found or desk.instance())._replace(data=b"x"))

            units = [await desk.unit(lease, make) for lease in leases]
            outcomes = await asyncio.gather(
                *(desk.commit(lease, unit) for lease, unit in zip(leases, units, strict=True))
            )
            told = [outcome for (outcome,) in outcomes if outcome is not None]
            found = await desk.timer_store.instance(desk.process, "1")
            assert found is not None
            assert all(isinstance(each, StoreError) for each in told)
            assert found[0].revision == 2 - len(told)

    async def test_a_key_that_no_index_takes_is_rejected(self) -> None:
        """The event can never succeed; one byte less is taken."""
        async with self.desk() as desk:
            key = "é" * (KEY_BYTES_MAX // 2)
            assert await desk.handle(lambda instances: instances.load(desk.process, key)) is None
            assert await desk.handle(lambda instances: instances.save(desk.instance(key))) is None
            outcome = await desk.handle(lambda instances: instances.load(desk.process, f"{key}x"))
            assert isinstance(outcome, Reject)

    async def test_instances_are_listed_by_key_page_by_page(self) -> None:
        """Of one process, in one state or in any."""
        async with self.desk() as desk:

            def some(instances: Instances) -> None:
                for number in range(25):
                    state = "done" if number % 5 == 0 else "waiting"
                    instances.save(desk.instance(f"{number:02}", state=state, ended=state == "done"))
                instances.save(desk.instance("99", process=f"{desk.process}-other"))

            await desk.handle(some)
            found = [each.key for each in await desk.timer_store.instances(desk.process, limit=20)]
            found += [each.key for each in await desk.timer_store.instances(desk.process, after=found[-1])]
            assert found == [f"{number:02}" for number in range(25)]
            done = await desk.timer_store.instances(desk.process, state="done", after="05", limit=2)
            assert [(each.key, each.ended) for each in done] == [("10", True), ("15", True)]

    # ---- timers

    async def test_timers_are_set_replaced_and_cancelled_by_name(self) -> None:
        """Each as it is, of its own instance."""
        async with self.desk() as desk:
            one = Timer(desk.process, "1", HOSTILE, HOSTILE, 2**41, 7, HOSTILE, "00-abc-01")
            two, three, other = desk.timer("2", 1), desk.timer("3", 1), desk.timer("1", 1, key="2")

            def keep(instances: Instances) -> None:
                for timer in (three, two, one, other):
                    instances.set_timer(timer)
                instances.save(desk.instance("1"))
                instances.save(desk.instance("2"))
                assert instances.timers(desk.process, "1") == [two, three, one]

            assert await desk.handle(keep) is None
            assert await desk.timers() == [two, three, one]
            newer = two._replace(token="newer", due_ms=5)  # nosec B106  # noqa: S106 (of a timer)
            await desk.handle(lambda instances: instances.set_timer(newer))
            assert await desk.timers() == [newer, three, one]
            await desk.handle(lambda instances: instances.cancel_timers(desk.process, "1", ["2", HOSTILE, "none"]))
            assert await desk.timers() == [three]
            await desk.handle(lambda instances: instances.cancel_timers(desk.process, "1"))
            assert await desk.timers() == []
            assert await desk.timers("2") == [other]

    async def test_due_timers_are_found_oldest_first_and_by_nobody_else(self) -> None:
        """At most `limit`, of these processes; until when the next one is due is told."""
        async with self.desk() as desk:
            now_ms = await desk.now_ms()
            assert await desk.due() == ([], math.inf)
            ages = {"c": 1_000, "a": 3_000, "b": 2_000, "later": -60_000}
            await desk.set_timers(*(desk.timer(name, now_ms - age_ms) for name, age_ms in ages.items()))
            assert await desk.timer_store.due(["another"], limit=9, claim_s=1.0) == ([], math.inf)
            assert await desk.due(limit=2) == (["a", "b"], 0.0)
            names, next_s = await desk.due()
            assert names == ["c"]
            assert 30.0 < next_s <= 60.0
            assert (await desk.due())[0] == []

    async def test_timers_are_counted_and_told_by_flow(self) -> None:
        """Those to be sent now, found or not; those of a flow in order, and of no other."""
        async with self.desk() as desk:
            now_ms = await desk.now_ms()
            late, later = desk.timer("late", now_ms - 10), desk.timer("later", now_ms + 60_000)
            other = desk.timer("other", now_ms + 1)._replace(correlation_id="another")
            await desk.set_timers(later, late, other)
            store = desk.timer_store
            assert [timer.name for timer in await store.timers_of(late.correlation_id)] == ["late", "later"]
            assert await store.timers_of("nobody's") == []
            assert await store.overdue([desk.process]) in (1, 2), "the other one may be due by now"
            assert await store.overdue(["another process"]) == 0

    async def test_timers_found_by_one_that_died_are_found_again(self) -> None:
        """When their claim has run out."""
        async with self.desk() as desk:
            await desk.set_timers(desk.timer("a", await desk.now_ms() - 10))
            assert (await desk.due(claim_s=AGAIN_S))[0] == ["a"]
            await asyncio.sleep(2 * AGAIN_S)
            assert (await desk.due())[0] == ["a"]

    async def test_a_timer_that_was_sent_is_found_again_if_it_stays(self) -> None:
        """Not before `again_s`; one that has long been due, not before it was due for twice as long."""
        async with self.desk() as desk:
            now_ms = await desk.now_ms()
            await desk.set_timers(desk.timer("new", now_ms - 10), desk.timer("old", now_ms - 60_000))
            timers, _ = await desk.timer_store.due([desk.process], limit=9, claim_s=0.0)
            assert [timer.name for timer in timers] == ["old", "new"]
            await desk.timer_store.due_sent(timers, again_s=LONG_S)
            assert (await desk.due())[0] == []
            await desk.timer_store.due_sent(timers, again_s=AGAIN_S)
            names: list[str] = []
            for _ in range(200):  # on a busy machine it is older by now, and waits for as long
                names, next_s = await desk.due()
                if names:
                    break
                await asyncio.sleep(AGAIN_S)
            assert names == ["new"]
            assert 30.0 < next_s < 90.0

    async def test_a_timer_set_anew_is_not_touched_by_what_was_sent_of_the_former(self) -> None:
        """Neither one with a new token, nor the next firing of the same; and one cancelled does not come back."""
        async with self.desk() as desk:
            now_ms = await desk.now_ms()
            former = [desk.timer(name, now_ms - 10) for name in ("anew", "next", "gone")]
            await desk.set_timers(*former)
            assert len((await desk.due())[0]) == 3
            anew = desk.timer("anew", now_ms - 1, token="newer")  # nosec B106  # noqa: S106 (of a timer)
            next_ = desk.timer("next", now_ms + 60_000, number=2)
            await desk.set_timers(anew, next_)
            await desk.handle(lambda instances: instances.cancel_timers(desk.process, "1", ["gone"]))
            await desk.timer_store.due_sent(former, again_s=AGAIN_S)
            names, next_s = await desk.due()
            assert names == ["anew"]
            assert next_s > 30.0, "fired before it was due"
            await asyncio.sleep(2 * AGAIN_S)
            assert (await desk.due())[0] == []

    async def test_those_who_look_at_once_share_what_is_due(self) -> None:
        """Each timer is found once, and what one notes as sent is not lost to another that looks at that moment."""
        async with self.desk() as desk:
            now_ms, found = await desk.now_ms(), list[str]()
            await desk.set_timers(*(desk.timer(f"{number:04}", now_ms - 9999 + number) for number in range(3_000)))

            async def send() -> None:
                while True:
                    timers, next_s = await desk.timer_store.due([desk.process], limit=50, claim_s=CLAIM_S)
                    found.extend(timer.name for timer in timers)
                    await desk.timer_store.due_sent(timers, again_s=LONG_S)
                    if not timers and next_s > CLAIM_S:
                        return
                    await asyncio.sleep(0)

            await asyncio.gather(*(send() for _ in range(4)))
            assert sorted(found) == [f"{number:04}" for number in range(3_000)]

    async def test_a_commit_tells_when_its_timers_are_due(self) -> None:
        """The first of them, once it is there to be found."""
        async with self.desk() as desk:
            now_ms, told = await desk.now_ms(), list[float]()
            desk.timer_store.on_timer.append(told.append)
            await desk.handle(lambda instances: instances.save(desk.instance()))
            assert told == []
            await desk.set_timers(desk.timer("a", now_ms + 90_000), desk.timer("b", now_ms + 60_000))
            assert len(told) == 1
            assert 30.0 < told[0] <= 60.0


def with_both(barrier: threading.Barrier) -> None:
    """Wait for the other side for a moment, if it can get here."""
    with suppress(threading.BrokenBarrierError):
        barrier.wait(0.3)
