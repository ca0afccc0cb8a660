"""What every store that keeps instances of processes must do, as tests that its author inherits."""

import asyncio
import threading

from choreo.errors import Reject, StoreError
from choreo.instances import KEY_BYTES_MAX, Instance, Instances
from choreo.testing.conformance_desk import HOSTILE, with_both
from choreo.testing.conformance_timers import TimersConformance


class InstancesConformance(TimersConformance):
    """Inherit it in a class `Test...`, with `guarantees`, `store` and perhaps `log`, as of `StoreConformance`."""

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
