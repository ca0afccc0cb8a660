"""Sends what is due: found in the store, put on the log, noted as sent. Timers, and events that wait in a queue.

A crash in between sends it again; its id is the same, so that it is handled once. Every process of a service polls.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from choreo.errors import ChoreoError
from choreo.parked import Parked, ParkedStore
from choreo.ports import Clock, Transport
from choreo.record import ProducerRecord

log = logging.getLogger("choreo.timers")

DUE_MAX = 500
"""Timers of one round: found, sent and noted together."""
CLAIM_S = 5.0
"""What a process has found is found by no other for so long: a crash before it is sent makes it so late."""
SENT_AGAIN_S = 60.0
"""A timer that was sent and is still there is sent again so much later, and then ever more seldom."""
POLL_S = 1.0
"""Timers of this process wake it when they are due; those of one that died are found so late."""
PAUSE_S = 0.01
"""Between two rounds, also where a timer that is due is in somebody else's hands."""
_FAILED_S, _FAILED_S_MAX = 0.5, 10.0


_Due = TypeVar("_Due")


class Waiting(Protocol[_Due]):
    """As `TimerStore`, of timers or of something else that is due at some time."""

    on_timer: list[Callable[[float], None]]

    async def due(self, processes: Collection[str], *, limit: int, claim_s: float) -> tuple[Sequence[_Due], float]:
        """What is to be sent now, and in how many seconds the next is."""

    async def due_sent(self, timers: Sequence[_Due], *, again_s: float) -> None:
        """It is on the log."""

    async def overdue(self, processes: Collection[str]) -> int:
        """How many are to be sent now."""


class Heads:
    """Heads of a group's queues, as what is due."""

    def __init__(self, group: str, store: ParkedStore) -> None:
        self.on_timer = store.on_timer
        self._group = group
        self._store = store

    async def due(self, _: Collection[str], *, limit: int, claim_s: float) -> tuple[Sequence[Parked], float]:
        """Of the group."""
        return await self._store.heads_due(self._group, limit=limit, claim_s=claim_s)

    async def due_sent(self, timers: Sequence[Parked], *, again_s: float) -> None:
        """They are on the log."""
        await self._store.heads_sent(timers, again_s=again_s)

    async def overdue(self, _: Collection[str]) -> int:
        """Not counted: how many keys are parked is."""
        return 0


class TimerPoller(Generic[_Due]):
    """Sends what is due, until it is cancelled: wakes the instances of some processes, for one.

    Args:
        name: The service's, for the log.
        processes: Names of the processes whose timers it looks for.
        record: Makes what is sent of one; the same has the same id.
        poll_s: How long it sleeps at most. Infinite where no other process sets timers.
        again_s: How soon a timer that was sent is sent again if it is still there.
    """

    def __init__(
        self,
        name: str,
        processes: Collection[str],
        store: Waiting[_Due],
        transport: Transport,
        clock: Clock,
        record: Callable[[_Due], ProducerRecord],
        *,
        poll_s: float = POLL_S,
        again_s: float = SENT_AGAIN_S,
    ) -> None:
        self._name = name
        self._processes = tuple(processes)
        self._store = store
        self._transport = transport
        self._clock = clock
        self._record = record
        self._poll_s = poll_s
        self._again_s = again_s
        self._until_s = math.inf  # when to look next, by the monotonic clock
        self._sleep: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Look, send, sleep until the next one is due; failures are logged and tried again, ever more seldom."""
        self._store.on_timer.append(self._set)
        failed_s = _FAILED_S
        try:
            while True:
                self._until_s = math.inf  # what is set from here on may be missed by the look
                try:
                    next_s = await self.send_due()
                except ChoreoError as error:
                    log.warning("%s: timers are late, trying again in %g s: %s", self._name, failed_s, error)
                    await self._clock.sleep(failed_s)
                    failed_s = min(2 * failed_s, _FAILED_S_MAX)
                    continue
                failed_s = _FAILED_S
                self._set(max(PAUSE_S, min(next_s, self._poll_s)))
                await self._sleep_until_due()
        finally:
            self._store.on_timer.remove(self._set)

    async def overdue(self) -> int:
        """How many timers are to be sent now; more than a handful for long says that they are late."""
        return await self._store.overdue(self._processes)

    async def send_due(self) -> float:
        """One round; returns in how many seconds the next timer is due, 0 if there were more than DUE_MAX.

        Raises:
            ChoreoError: Store or broker failed; what was not sent, or not noted, is found again.
        """
        timers, next_s = await self._store.due(self._processes, limit=DUE_MAX, claim_s=CLAIM_S)
        if timers:
            await self._transport.send([self._record(timer) for timer in timers])
            await self._store.due_sent(timers, again_s=self._again_s)
        return next_s

    def _set(self, due_s: float) -> None:
        """A timer is due in so many seconds: look then, if not before."""
        until_s = self._clock.monotonic_s() + due_s
        if until_s < self._until_s:
            self._until_s = until_s
            if self._sleep is not None:
                self._sleep.cancel()

    async def _sleep_until_due(self) -> None:
        while (left_s := self._until_s - self._clock.monotonic_s()) > 0:
            if left_s == math.inf:
                self._sleep = asyncio.get_running_loop().create_future()
            else:
                self._sleep = asyncio.ensure_future(self._clock.sleep(left_s))
            try:
                await asyncio.wait({self._sleep})
            finally:
                self._sleep.cancel()
                self._sleep = None
