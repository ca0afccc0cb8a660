"""What the conformance suites of instances and timers play on: one process, whose events change instances."""

import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast
from uuid import uuid4

from choreo.instances import INSTANCES, Instance, Instances, Timer, TimerStore
from choreo.ports import CommitRequest, Finished, Lease, Transacted
from choreo.testing.conformance_shelf import OnShelf, Shelf

Change = Callable[[Instances], object]
HOSTILE = "a\"b'c\0d😀%s{key}\\"
LONG_S = 3_600.0


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


class OnDesk(OnShelf):
    """What an author of a store with instances writes: no more than of any store."""

    @asynccontextmanager
    async def desk(self) -> AsyncIterator[Desk]:
        """What one test plays on."""
        async with self.shelf() as shelf:
            assert INSTANCES in shelf.store.transaction_types
            yield Desk(shelf)


def with_both(barrier: threading.Barrier) -> None:
    """Wait for the other side for a moment, if it can get here."""
    with suppress(threading.BrokenBarrierError):
        barrier.wait(0.3)
