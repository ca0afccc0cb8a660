"""What every store that keeps timers must do, as tests that its author inherits with those of instances."""

import asyncio
import math

from choreo.instances import Instances, Timer
from choreo.testing.conformance_desk import HOSTILE, LONG_S, OnDesk

CLAIM_S, AGAIN_S = 3.0, 0.05


class TimersConformance(OnDesk):
    """Inherited with `InstancesConformance`."""

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
