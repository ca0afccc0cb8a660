"""Claims while the store is slow, or a lease is lost: how many calls there are, and who waits for whom."""

import asyncio
from collections.abc import Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from choreo.core import messages as m
from choreo.core.retry import RetryPolicy
from choreo.core.units import CLAIM, Delivery, Signal, Unit
from choreo.errors import LeaseLost, StoreError
from choreo.ports import Claimed, ClaimRequest, Lease
from choreo.record import TopicPartition
from choreo.runtime import claiming
from choreo.runtime.claiming import Claimer

ZERO, ONE = TopicPartition("asked", 0), TopicPartition("asked", 1)


class Desk:
    """A claimer, the worker it is of, and a store that answers when it is told to."""

    def __init__(self) -> None:
        self.leases = {id_: Lease("desk", id_, 1, "me") for id_ in (ZERO, ONE)}
        self.service, self.ports = SimpleNamespace(name="desk"), SimpleNamespace(store=self)
        self.calls: list[Sequence[ClaimRequest]] = []
        self.lost: set[TopicPartition] = set()
        self.hangs: set[TopicPartition] = set()
        self.fails = False
        self.answers = asyncio.Event()
        self.told: list[m.Input] = []
        self.renewals = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.claimer = Claimer(self, self.told.extend, self.spawn, self.renew)  # type: ignore[arg-type]

    async def claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """As the port says."""
        self.calls.append(requests)
        assert {each.partition for each in requests} == {lease.partition for lease in leases}
        if any(each.partition in self.hangs for each in requests):
            await asyncio.Event().wait()
        await self.answers.wait()
        if self.fails:
            raise StoreError("away")
        if any(each.partition in self.lost for each in requests):
            raise LeaseLost("gone")
        return [Claimed("fresh", each.offset) for each in requests]

    async def renew(self) -> None:
        """Asked for when a lease is lost."""
        self.renewals += 1

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task, as the worker makes it."""
        self.tasks.append(asyncio.create_task(coroutine))
        return self.tasks[-1]

    async def until_told(self, count: int) -> list[m.Input]:
        """What the core was told, once it was so much."""
        async with asyncio.timeout(5):
            while len(self.told) < count:  # noqa: ASYNC110  # nobody tells us
                await asyncio.sleep(0.001)
        return self.told


def unit(partition: TopicPartition, offset: int) -> Unit:
    """One that is to be claimed."""
    made = Unit(
        partition,
        offset,
        object(),
        "answer",
        bytes([partition.partition, offset] * 8),
        b"12345678",
        correlation_id="flow",
        derived=False,
        transacts=False,
        retry=RetryPolicy(),
    )
    made.entry = Delivery(offset, 0, 0, [made])
    made.advance(CLAIM)
    return made


async def test_what_comes_while_the_store_is_asked_goes_with_the_next_call() -> None:
    """Two calls for six claims, each answered by itself, in order."""
    desk, units = Desk(), [unit(ZERO if number % 2 else ONE, number) for number in range(6)]
    desk.claimer.add(m.Claim(units[:1]))
    await asyncio.sleep(0.01)
    for each in units[1:]:
        desk.claimer.add(m.Claim([each], solo=each is units[3]))
    desk.answers.set()
    told = await desk.until_told(6)
    assert [[each.offset for each in call] for call in desk.calls] == [[0], [1, 2, 3, 4, 5]]
    assert [each.solo for each in desk.calls[1]] == [False, False, True, False, False]
    assert told == [m.Claimed([each], [Claimed("fresh", each.offset)]) for each in units]


async def test_a_lost_lease_holds_up_no_claim_of_another_partition() -> None:
    """It is asked again without it; the core is told that the others are ours."""
    desk = Desk()
    desk.lost.add(ZERO)
    lost, ours = unit(ZERO, 1), unit(ONE, 2)
    desk.claimer.add(m.Claim([lost]))
    desk.claimer.add(m.Claim([ours]))
    desk.answers.set()
    assert await desk.until_told(2) == [m.ClaimFailed([lost]), m.Claimed([ours], [Claimed("fresh", 2)])]
    assert desk.renewals == 1


async def test_a_claim_that_hangs_holds_up_others_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused process may hold a lock on one key; the keys of other events are asked beside it."""
    monkeypatch.setattr(claiming, "PATIENCE_S", 0.05)
    desk = Desk()
    desk.hangs.add(ZERO)
    desk.answers.set()
    desk.claimer.add(m.Claim([unit(ZERO, 1)]))
    await asyncio.sleep(0.01)
    desk.claimer.add(m.Claim([unit(ONE, 2)]))
    (told,) = await desk.until_told(1)
    assert isinstance(told, m.Claimed)
    assert told.units[0].partition == ONE
    for task in desk.tasks:
        task.cancel()


async def test_a_store_that_is_away_is_said_of_every_claim() -> None:
    """Each is tried again by the core."""
    desk, units = Desk(), [unit(ZERO, 1), unit(ONE, 2)]
    desk.fails = True
    for each in units:
        desk.claimer.add(m.Claim([each]))
    desk.answers.set()
    assert await desk.until_told(2) == [m.ClaimFailed([each]) for each in units]


async def test_what_was_revoked_while_it_waited_is_not_claimed() -> None:
    """Nobody would ever finish it, under the lease of a later assignment."""
    desk, kept, gone = Desk(), unit(ZERO, 1), unit(ZERO, 2)
    desk.claimer.add(m.Claim([kept, gone]))
    gone.advance(Signal.REVOKED)
    desk.answers.set()
    assert await desk.until_told(1) == [m.Claimed([kept], [Claimed("fresh", 1)])]
    assert [[each.offset for each in call] for call in desk.calls] == [[1]]
