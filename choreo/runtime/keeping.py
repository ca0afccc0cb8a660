"""What a worker keeps up while it runs: its leases, and the store free of what is too old to matter."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

from choreo.core import messages as m
from choreo.errors import ChoreoError
from choreo.instances import TimerStore
from choreo.record import TopicPartition

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")

PURGE_S = 60.0
PURGE_SLICES_MAX = 20


class Keeper:
    """Renews and purges for one worker."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker

    async def loop(self) -> None:
        """Renew three times a lease, tell store and broker what they missed, purge now and then, until cancelled."""
        ports, since_purge_s = self._worker.ports, 0.0
        while True:
            self._worker.beats["keep"] = ports.clock.monotonic_s()
            await asyncio.sleep(ports.lease_s / 3)
            await self.renew()
            await self._worker.teller.tell()
            since_purge_s += ports.lease_s / 3
            if since_purge_s >= PURGE_S:
                since_purge_s = 0.0
                await self.purge()

    async def renew(self) -> None:
        """Keep the leases, and drop the partitions whose lease somebody else has."""
        worker, leases = self._worker, dict(self._worker.leases)
        try:
            lost = await worker.ports.store.renew(tuple(leases.values()), worker.ports.lease_s, self._progress_ms())
        except ChoreoError as error:
            log.warning("%s: leases could not be renewed: %s", worker.service.name, error)
            return
        lost = worker.holder.still(leases, lost)
        if lost:
            worker.step(m.Revoked(tuple(lost)))
            worker.holder.fenced(lost)

    async def purge(self) -> None:
        """Forget keys no duplicate can come for any more, and instances that have long ended."""
        worker, ports = self._worker, self._worker.ports
        group, topics = worker.service.group, worker.topics
        ttl_ms = int(ports.key_ttl_s * 1000)
        await self._in_slices("old keys", lambda: ports.store.purge(group, topics, ttl_ms))
        if ports.retention_s is not None:
            process, retention_ms = worker.service.name, int(ports.retention_s * 1000)
            store = cast(TimerStore, ports.store)  # or there would be no process
            await self._in_slices("ended instances", lambda: store.purge_ended(process, group, topics, retention_ms))

    async def _in_slices(self, what: str, delete: Callable[[], Awaitable[int]]) -> None:
        """Slice by slice, so that commits come between; what is left over is for the next time."""
        try:
            for _ in range(PURGE_SLICES_MAX):
                if not await delete():
                    return
        except ChoreoError as error:
            log.warning("%s: %s could not be deleted: %s", self._worker.service.name, what, error)

    def _progress_ms(self) -> dict[TopicPartition, int]:
        """The log time each partition has come to; one without anything left to do, to when that was seen."""
        worker = self._worker
        looked_ms, found = int(worker.fetcher.looked_s * 1000), {}
        for id_ in worker.leases:
            drained = worker.consumer.drained(id_)
            progress_ms = worker.engine.progress_ms(id_, drained_ms=looked_ms if drained else None)
            if progress_ms is not None:
                found[id_] = progress_ms
        return found
