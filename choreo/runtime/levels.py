"""How things stand with a service: lag, what is in hand, how busy it is. Looked at where somebody wants metrics."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from choreo.core.partition import Partition
from choreo.errors import ChoreoError
from choreo.parked import ParkedStore
from choreo.ports import Level, Levels
from choreo.record import TopicPartition
from choreo.runtime.unsaid import unsaid
from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")

LOOK_S = 5.0
ENDS_S_MAX = 2.0
"""How long the broker has to say where its logs end: the rest of what there is to see is not to wait for it."""


class Gauge:
    """Looks at one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._unread_s: dict[TopicPartition, float] = {}  # since when records were seen that nobody has fetched

    async def loop(self, tell: Callable[[Levels | None], None]) -> None:
        """Look every `LOOK_S` seconds, until cancelled; what cannot be seen is not told as it was before."""
        while True:
            try:
                tell(await self.look())
            except Exception as error:
                log.warning("%s: how things stand cannot be told", self._worker.service.name, exc_info=unsaid(error))
                tell(None)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> Levels:
        """How things stand now; lags in records are unknown while the broker does not answer."""
        worker = self._worker
        ends = await self._ends()
        now_s = worker.ports.clock.now_s()
        engine, partitions = worker.engine, dict(worker.engine.partitions)
        oldest_ms = [ms for each in partitions.values() if (ms := each.oldest_ms()) is not None]
        return Levels(
            worker.service.group,
            {id_: self._level(partition, ends.get(id_), now_s) for id_, partition in partitions.items()},
            max(0.0, now_s - min(oldest_ms) / 1000) if oldest_ms else 0.0,
            engine.running,
            engine.limits.concurrency,
            sum(len(each.lanes) for each in partitions.values()),
            await self._timers_due(),
            await self._parked_keys(),
        )

    async def _parked_keys(self) -> int | None:
        worker = self._worker
        if not worker.service.parks:
            return None
        store: ParkedStore = worker.ports.store  # type: ignore[assignment]  # `check_pair` has seen to it
        return await self._asked("how many keys are parked", store.parked_keys(worker.service.group))

    async def _timers_due(self) -> int | None:
        timers = self._worker.timers
        return None if timers is None else await self._asked("how many timers are due", timers.overdue())

    async def _asked(self, what: str, answer: Awaitable[int]) -> int | None:
        try:
            return await answer
        except ChoreoError as error:
            log.info("%s: %s cannot be told: %s", self._worker.service.name, what, error)
            return None

    async def _ends(self) -> Mapping[TopicPartition, int]:
        worker = self._worker
        try:
            async with asyncio.timeout(ENDS_S_MAX):
                return await worker.consumer.ends(tuple(worker.engine.partitions))
        except (ChoreoError, TimeoutError) as error:
            log.info("%s: how far behind it is cannot be told: %s", worker.service.name, error or "no answer")
            return {}

    def _level(self, partition: Partition, end: int | None, now_s: float) -> Level:
        worker, id_ = self._worker, partition.id
        oldest_ms = partition.oldest_ms()
        if worker.consumer.drained(id_):
            # Not by offsets: behind the last record there may be markers of transactions, which nobody is given.
            lag: int | None = partition.unfinished
        else:
            lag = None if end is None else max(0, end - partition.watermark())
        if oldest_ms is not None:
            self._unread_s.pop(id_, None)
            return Level(lag, max(0.0, now_s - oldest_ms / 1000))
        if not lag:
            self._unread_s.pop(id_, None)
            return Level(lag, 0.0)
        return Level(lag, max(0.0, now_s - self._unread_s.setdefault(id_, now_s)))
