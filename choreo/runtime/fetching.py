"""Fetches records for a worker, no further ahead of its handlers than it must, and has them routed."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from choreo.core import messages as m
from choreo.errors import ChoreoError
from choreo.record import Record, TopicPartition

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")

FETCH_RECORDS_MAX = 500
FETCH_WAIT_S = 1.0
FETCH_AGAIN_S = 0.002
"""Between fetches while the store is at work: a fetch of two records costs what one of fifty does."""
FAILED_S = 1.0
_BY_PARTITION = itemgetter(0, 1)


class Fetcher:
    """The fetches of one worker.

    Args:
        tell: Told what was fetched, n >= 1.
        progress: Set at each step of the core.

    Attributes:
        looked_s: When the last fetch that came back was begun: what `drained` is true of.
    """

    def __init__(self, worker: "Worker", tell: Callable[[Sequence[m.Input]], None], progress: asyncio.Event) -> None:
        self.looked_s = 0.0
        self._worker, self._engine, self._tell, self._progress = worker, worker.engine, tell, progress

    async def loop(self) -> None:
        """Fetch until cancelled."""
        worker, clock = self._worker, self._worker.ports.clock
        while True:
            worker.beats["fetch"] = clock.monotonic_s()
            await self._while(self._enough_ready, FETCH_WAIT_S)  # who fetches no more counts as dead
            try:
                asked_s = clock.now_s()
                records = await worker.consumer.fetch(records_max=FETCH_RECORDS_MAX, wait_s=FETCH_WAIT_S)
                self.looked_s = asked_s
            except ChoreoError as error:
                log.warning("%s: fetching failed, trying again: %s", worker.service.name, error)
                await asyncio.sleep(FAILED_S)
                continue
            self._take_in(records)
            del records  # nobody is to hold them but their units, while the next ones are waited for
            await asyncio.sleep(0)
            await self._while(self._at_store, FETCH_AGAIN_S)

    def _take_in(self, records: Sequence[Record]) -> None:
        """Tell the core of all at once, so that the store is asked once."""
        counts, deliveries_of = self._worker.counts, self._worker.router.deliveries
        now_ms = int(self._worker.ports.clock.now_s() * 1000)
        fetched: list[m.Input] = []
        for id_, group in groupby(records, key=_BY_PARTITION):
            partition = TopicPartition(*id_)
            deliveries, skips = deliveries_of(partition, list(group))
            for skipped in skips:
                counts["skipped"] += 1
                counts[f"skipped_{skipped}"] += 1
            fetched.append(m.Fetched(partition, deliveries, now_ms))
        if fetched:
            self._tell(fetched)

    def _enough_ready(self) -> bool:
        """What is fetched only to wait is out of the processor's cache when its turn comes."""
        return self._engine.ready >= self._engine.limits.concurrency

    def _at_store(self) -> bool:
        """What comes waits until the store has answered anyway."""
        return self._engine.at_store

    async def _while(self, holds: Callable[[], bool], within_s: float) -> None:
        """Return as soon as it does not hold any more, or after a while."""
        if not holds():
            return
        try:
            async with asyncio.timeout(within_s):
                while holds():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            pass
