"""What a worker keeps up while it runs: its leases, and the store free of keys that are too old to matter."""

import asyncio
import logging
from typing import TYPE_CHECKING

from choreo.core import messages as m
from choreo.errors import ChoreoError
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
        """Renew three times a lease, tell the broker what it missed, purge now and then, until cancelled."""
        ports, since_purge_s = self._worker.ports, 0.0
        while True:
            self._worker.beats["keep"] = ports.clock.monotonic_s()
            await asyncio.sleep(ports.lease_s / 3)
            await self.renew()
            await self._worker.flusher.commit_offsets()
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
        lost = worker.still(leases, lost)
        if lost:
            worker.step(m.Revoked(tuple(lost)))
            worker.fenced(lost)

    async def purge(self) -> None:
        """Forget keys no duplicate can come for any more; a slice at a time, so that commits come between."""
        worker = self._worker
        ttl_ms = int(worker.ports.key_ttl_s * 1000)
        try:
            for _ in range(PURGE_SLICES_MAX):
                if not await worker.ports.store.purge(worker.service.group, worker.topics, ttl_ms):
                    return
        except ChoreoError as error:
            log.warning("%s: old keys could not be deleted: %s", worker.service.name, error)

    def _progress_ms(self) -> dict[TopicPartition, int]:
        """The log time each partition has come to; one without anything left to do, to when that was seen."""
        worker = self._worker
        looked_ms, found = int(worker.looked_s * 1000), {}
        for id_ in worker.leases:
            drained = id_ not in worker.in_hand and worker.consumer.drained(id_)
            progress_ms = worker.engine.progress_ms(id_, drained_ms=looked_ms if drained else None)
            if progress_ms is not None:
                found[id_] = progress_ms
        return found
