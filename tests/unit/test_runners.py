"""Handlers share a task as long as none of them waits, and none of them can tell."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from choreo.core import messages as m
from choreo.core.retry import RetryPolicy
from choreo.core.units import Signal, Unit
from choreo.record import TopicPartition
from choreo.runtime.runners import Runners, apart

PLACE = TopicPartition("orders", 0)
seen: ContextVar[str] = ContextVar("seen", default="nothing")

Handler = Callable[[Unit], Coroutine[Any, Any, Any]]


def unit(number: int) -> Unit:
    made = Unit(
        PLACE,
        number,
        number,
        "take",
        number.to_bytes(16, "big"),
        b"12345678",
        correlation_id="",
        derived=False,
        transacts=False,
        retry=RetryPolicy(),
    )
    for signal in (Signal.CLAIM, Signal.FRESH, Signal.TURN):
        made.advance(signal)
    return made


class Stage:
    """Runners whose handler is the test's."""

    def __init__(self, handler: Handler) -> None:
        self.told: list[list[tuple[int, Any]]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._handler = handler
        self.runners = Runners(self._invoke, self._tell, self._spawn)

    async def _invoke(self, of: Unit) -> m.Input:
        try:
            result = await self._handler(of)
        except Exception as error:
            result = type(error).__name__
        return m.Returned(of, result)

    def _tell(self, messages: Sequence[m.Input]) -> None:
        self.told.append([(each.unit.offset, each.result) for each in messages if isinstance(each, m.Returned)])

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(coroutine))
        return self.tasks[-1]

    async def run(self, *units: Unit) -> None:
        for each in units:
            self.runners.add(each)
        while not all(task.done() for task in self.tasks):
            await asyncio.wait(self.tasks)

    @property
    def results(self) -> dict[int, Any]:
        return dict(sorted(each for told in self.told for each in told))


async def test_handlers_that_wait_for_nothing_share_a_task_and_a_step() -> None:
    """One task, and the core is told of all at once."""

    async def handler(of: Unit) -> int:
        return of.offset

    stage = Stage(handler)
    await stage.run(*map(unit, range(5)))
    assert len(stage.tasks) == 1
    assert stage.told == [[(number, number) for number in range(5)]]


async def test_one_that_waits_holds_nobody_up() -> None:
    """What ended before it is told before it waits, and those behind it run meanwhile."""
    gate = asyncio.Event()

    async def handler(of: Unit) -> str:
        if of.offset == 1:
            await gate.wait()
        elif of.offset == 3:
            gate.set()
        return "done"

    stage = Stage(handler)
    async with asyncio.timeout(5):
        await stage.run(*map(unit, range(4)))
    assert stage.told == [[(0, "done")], [(2, "done"), (3, "done")], [(1, "done")]]


async def test_what_one_sets_no_other_sees() -> None:
    """A handler's context variables are its own, before it waits and after."""

    async def handler(of: Unit) -> str:
        before = seen.get()
        seen.set(f"set by {of.offset}")
        if of.offset % 2:
            await asyncio.sleep(0)
        return before if seen.get() == f"set by {of.offset}" else seen.get()

    stage = Stage(handler)
    await stage.run(*map(unit, range(6)))
    assert set(stage.results.values()) == {"nothing"}
    assert len(stage.results) == 6


async def test_one_that_cancels_its_task_harms_no_other() -> None:
    """It ends before the cancellation comes to it; the next one, which waits, is not interrupted for it."""

    async def handler(of: Unit) -> str:
        task = asyncio.current_task()
        assert task is not None
        if of.offset == 0:
            task.cancel()
            return "cancelled itself"
        await asyncio.sleep(0)
        return "done"

    stage = Stage(handler)
    await stage.run(unit(0), unit(1))
    assert stage.results == {0: "cancelled itself", 1: "done"}


async def test_a_timeout_ends_its_own_handler_only() -> None:
    """`asyncio.timeout` needs the task it runs in, and finds it."""

    async def handler(of: Unit) -> str:
        if of.offset == 1:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        return "done"

    stage = Stage(handler)
    await stage.run(*map(unit, range(3)))
    assert stage.results == {0: "done", 1: "TimeoutError", 2: "done"}


async def test_of_a_lost_partition_nothing_begins_and_what_waits_is_interrupted() -> None:
    """The second one is dropped while it waits, the third one before its turn."""
    begun: list[int] = []
    units = [unit(number) for number in range(3)]

    async def handler(of: Unit) -> str:
        begun.append(of.offset)
        if of.offset == 1:
            units[1].advance(Signal.REVOKED)
            units[2].advance(Signal.REVOKED)
            asyncio.get_running_loop().call_soon(stage.runners.cancel_dropped)
            await asyncio.sleep(60)
        return "done"

    stage = Stage(handler)
    async with asyncio.timeout(5):
        await stage.run(*units)
    assert begun == [0, 1]
    assert stage.results == {0: "done"}


async def test_what_is_set_apart_is_not_seen_afterwards() -> None:
    """Neither where it waits nor where it fails; and it sees what was set before."""

    async def sets(name: str, *, waits: bool) -> str:
        before = seen.get()
        seen.set(name)
        if waits:
            async with asyncio.timeout(5):
                await asyncio.sleep(0.001)
        if name == "bad":
            raise KeyError(name)
        return f"{before}, then {seen.get()}"

    seen.set("mine")
    for waits in (False, True):
        assert await apart(sets("theirs", waits=waits)) == "mine, then theirs"
        with pytest.raises(KeyError):
            await apart(sets("bad", waits=waits))
        assert seen.get() == "mine"
