"""What every store must do whose instances are counted, and changed by hand beside the services that run."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import cast

import pytest

from choreo.errors import StoreError
from choreo.instances import COUNT_KEYS_MAX, Count, Instance, Instances, Intervention, OperatedStore
from choreo.testing.conformance_desk import HOSTILE, Desk, with_both
from choreo.testing.conformance_instances import InstancesConformance


class OperatedConformance(InstancesConformance):
    """`InstancesConformance` and what an `OperatedStore` does besides; inherit it in its place."""

    async def test_instances_are_counted_by_version_state_and_timer(self) -> None:
        """Those of one process, each once; with the first keys, in their order."""
        async with self.desk() as desk:

            def some(instances: Instances) -> None:
                for number in range(7):
                    key = f"{number}"
                    instances.save(desk.instance(key, version=1 + number // 5, state=HOSTILE, ended=number == 6))
                    if number < 2:
                        instances.set_timer(desk.timer(HOSTILE, 2**41, key=key))
                        instances.set_timer(desk.timer("other", 2**41, key=key))
                instances.save(desk.instance("9", process=f"{desk.process}-other"))

            await desk.handle(some)
            assert sorted(await _operated(desk).census(desk.process), key=str) == sorted(
                [
                    Count(1, HOSTILE, False, None, 5, tuple("01234"[:COUNT_KEYS_MAX])),
                    Count(1, HOSTILE, False, HOSTILE, 2, ("0", "1")),
                    Count(1, HOSTILE, False, "other", 2, ("0", "1")),
                    Count(2, HOSTILE, False, None, 1, ("5",)),
                    Count(2, HOSTILE, True, None, 1, ("6",)),
                ],
                key=str,
            )
            assert await _operated(desk).census("none") == []

    async def test_a_change_by_hand_is_kept_with_who_made_it_and_why(self) -> None:
        """Instance, timer and record in one; told of one instance, and of a flow, in order, with the store's time."""
        async with self.desk() as desk:
            now_ms, told = await desk.now_ms(), list[float]()
            desk.timer_store.on_timer.append(told.append)
            made = [Intervention(desk.process, HOSTILE, f"{HOSTILE} {n}", HOSTILE, "why", HOSTILE * 99) for n in "12"]

            def change(instances: Instances) -> Sequence[Intervention]:
                assert instances.load(desk.process, HOSTILE) is None
                instances.save(desk.instance(HOSTILE))
                instances.set_timer(desk.timer("a", now_ms + 60_000, key=HOSTILE))
                return made

            done = await _operated(desk).intervene(change)
            assert [each._replace(at_ms=0) for each in done] == made
            assert all(now_ms <= each.at_ms <= now_ms + 60_000 for each in done)
            assert await _operated(desk).interventions(desk.process, HOSTILE) == done
            assert await _operated(desk).interventions(correlation_id=HOSTILE * 99) == done
            assert await _operated(desk).interventions(desk.process, "1") == []
            assert await _operated(desk).interventions(correlation_id="none") == []
            assert await _operated(desk).interventions(since_ms=done[0].at_ms) == done
            assert await _operated(desk).interventions(since_ms=done[-1].at_ms + 1) == []
            assert [each.name for each in await desk.timers(HOSTILE)] == ["a"]
            assert len(told) == 1

    async def test_a_change_by_hand_that_fails_leaves_nothing(self) -> None:
        """Neither where it raises, nor where the instance was stored since."""
        async with self.desk() as desk:
            await desk.handle(lambda instances: instances.save(desk.instance(data=b"1")))

            def stale(instances: Instances) -> Sequence[Intervention]:
                instances.set_timer(desk.timer("a", 1))
                instances.save(desk.instance(data=b"2"))
                return [Intervention(desk.process, "1", "what", "who", "why")]

            def raises(instances: Instances) -> Sequence[Intervention]:
                stale(instances)
                raise StoreError("of the caller's own")

            for change in (stale, raises):
                with pytest.raises(StoreError):
                    await _operated(desk).intervene(change)
            found = await desk.timer_store.instance(desk.process, "1")
            assert found is not None
            assert (found[0].data, found[1]) == (b"1", [])
            assert await _operated(desk).interventions(desk.process, "1") == []

    async def test_changes_by_hand_and_by_events_lose_nothing(self) -> None:
        """Each adds to what it loaded, at once."""
        async with self.desk() as desk:
            await desk.handle(lambda instances: instances.save(desk.instance(data=b"0")))
            lease = await desk.shelf.lease(desk.shelf.p)

            def add(instances: Instances) -> Sequence[Intervention]:
                found = instances.load(desk.process, "1")
                assert found is not None
                instances.save(found._replace(data=b"%d" % (int(found.data) + 1)))
                return [Intervention(desk.process, "1", "add", "who", "why")]

            async def by_events() -> None:
                for _ in range(10):
                    assert await desk.handle(add, lease) is None

            async def by_hand() -> None:
                for _ in range(10):
                    await _operated(desk).intervene(add)

            await asyncio.gather(by_events(), by_hand(), by_hand())
            found = await desk.timer_store.instance(desk.process, "1")
            assert found is not None
            assert found[0].data == b"30"
            assert len(await _operated(desk).interventions(desk.process, "1")) == 20

    async def test_a_change_by_hand_gives_way_to_a_service(self) -> None:
        """Where each waits for an instance that the other has, the event is handled."""
        async with self.desk() as desk:

            def both(instances: Instances) -> None:
                for key in "12":
                    instances.save(desk.instance(key))

            await desk.handle(both)
            meet = threading.Barrier(2)

            def load(instances: Instances, keys: str) -> None:
                found: list[Instance] = []
                for key in keys:
                    instance = instances.load(desk.process, key)
                    assert instance is not None
                    found.append(instance)
                    if key == keys[0]:
                        with_both(meet)
                for instance in found:
                    instances.save(instance)

            def by_hand(instances: Instances) -> Sequence[Intervention]:
                load(instances, "21")
                return []

            told = await asyncio.gather(
                desk.handle(lambda instances: load(instances, "12")),
                _operated(desk).intervene(by_hand),
                return_exceptions=True,
            )
            assert told[0] is None
            assert told[1] == [] or isinstance(told[1], StoreError)

    # ---- retention

    async def test_ended_instances_go_when_the_group_is_a_retention_beyond_their_end(self) -> None:
        """In log time, as keys; those in flight stay, those to be woken, and those of another process."""
        async with self.desk() as desk:

            def some(instances: Instances) -> None:
                for key in ("1", "2", "woken"):
                    instances.save(desk.instance(key, state="done", ended=True))
                instances.set_timer(desk.timer("entry", 2**41, key="woken"))
                instances.save(desk.instance("open"))
                instances.save(desk.instance("other", process=f"{desk.process}-other", ended=True))

            await desk.handle(some)
            end_ms = await desk.now_ms()
            leases = [await desk.shelf.lease(desk.shelf.p), await desk.shelf.lease(desk.shelf.q)]
            await desk.shelf.store.renew(leases, 30.0, {desk.shelf.p: end_ms + 20_000})
            assert await purged(desk, 5_000) == 0, "the other partition's progress is not known yet"
            await desk.shelf.store.renew(leases, 30.0, {desk.shelf.q: end_ms + 10_000})
            assert await purged(desk, 15_000) == 0
            assert await purged(desk, 5_000) == 2
            assert [each.key for each in await desk.timer_store.instances(desk.process)] == ["open", "woken"]
            assert await desk.timer_store.instance(f"{desk.process}-other", "other") is not None
            await desk.handle(lambda instances: instances.cancel_timers(desk.process, "woken"))
            assert await purged(desk, 5_000) == 1

    async def test_an_instance_that_somebody_takes_up_again_stays(self) -> None:
        """By hand it is put back into a state, while those that ended are deleted."""
        async with self.desk() as desk:
            await desk.handle(lambda instances: instances.save(desk.instance(ended=True)))
            now_ms, lease = await desk.now_ms(), await desk.shelf.lease(desk.shelf.p)
            await desk.shelf.store.renew([lease], 30.0, {desk.shelf.p: now_ms + 20_000})
            taken, loop = asyncio.Event(), asyncio.get_running_loop()

            def take_up(instances: Instances) -> Sequence[Intervention]:
                found = instances.load(desk.process, "1")
                assert found is not None
                loop.call_soon_threadsafe(taken.set)
                time.sleep(0.2)  # in which the other one looks, or waits
                instances.save(found._replace(ended=False))
                return []

            async def delete() -> int:
                await taken.wait()
                return await purged(desk, 1_000)

            _, deleted = await asyncio.gather(_operated(desk).intervene(take_up), delete())
            found = await desk.timer_store.instance(desk.process, "1")
            assert (deleted, found is not None and found[0].ended) == (0, False)


async def purged(desk: Desk, retention_ms: int) -> int:
    """How many ended instances such a retention lets go of, all calls together."""
    shelf, total = desk.shelf, 0
    while gone := await desk.timer_store.purge_ended(desk.process, shelf.group, [shelf.p.topic], retention_ms):
        total += gone
    return total


def _operated(desk: Desk) -> OperatedStore:
    return cast(OperatedStore, desk.shelf.store)
