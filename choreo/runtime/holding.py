"""Partitions come and go: taken when they are assigned, drained when they are revoked, taken anew after a fence."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from choreo.core import messages as m
from choreo.errors import ChoreoError
from choreo.ports import Lease
from choreo.record import TopicPartition

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")
AGAIN_S = 1.0
AGAIN_S_MAX = 60.0


class Holder:
    """Holds the partitions of one worker: it is the `Assignment` of its consumer.

    Args:
        spawn: Makes a task.
        progress: Set at each step of the core.
        dropped: Told once units of a partition have been given up.

    Attributes:
        leases: Of the partitions that are taken.
    """

    def __init__(
        self,
        worker: "Worker",
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        progress: asyncio.Event,
        dropped: Callable[[], None],
    ) -> None:
        self.leases: dict[TopicPartition, Lease] = {}
        self._worker, self._spawn, self._progress, self._dropped = worker, spawn, progress, dropped
        self._assigned: dict[TopicPartition, int] = {}  # which assignment of it this is, counted from 1
        self._assignments = 0

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Take the epoch; only then read offsets, resend what was left unsent; then let it flow."""
        self._assignments += 1
        assignment = self._assignments  # another may begin while this one is under way
        self._assigned.update(dict.fromkeys(partitions, assignment))
        try:
            await self._take(
                [id_ for id_ in partitions if id_ not in self.leases]
            )  # together: the store is asked once
        except ChoreoError:
            for id_ in partitions:  # one that cannot be taken, e.g. whose offset is out of range, holds up no other
                self._spawn(self._take_in_time(id_, assignment))

    async def _take_in_time(self, partition: TopicPartition, assignment: int) -> None:
        again_s = AGAIN_S
        while self._assigned.get(partition) == assignment and partition not in self.leases:
            try:
                await self._take([partition])
            except ChoreoError as error:
                name = self._worker.service.name
                log.warning("%s: %s cannot be taken, trying again: %s", name, partition, error)
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, AGAIN_S_MAX)

    async def _take(self, partitions: Sequence[TopicPartition]) -> None:
        worker, assigned = self._worker, {id_: self._assigned.get(id_) for id_ in partitions}
        service, store, consumer = worker.service, worker.ports.store, worker.consumer

        def still(id_: TopicPartition) -> bool:
            """Else it was revoked meanwhile: more of it may be committed, and if assigned again it is taken anew."""
            return assigned[id_] is not None and self._assigned.get(id_) == assigned[id_]

        leases = await store.acquire(service.group, partitions, consumer.member)
        offsets: dict[TopicPartition, int] = {}
        for lease in leases:
            if "outbox" in store.carries:
                await worker.outgoing.resend(lease)
            # A replay is read from the first on: it was ordered, before this process or after it began.
            start = "earliest" if worker.router.own(lease.partition.topic) else service.start
            offsets[lease.partition] = await consumer.position(lease.partition, start)
        # Said at once: a group that starts at "latest" must not lose what comes before its first commit.
        if current := {id_: offset for id_, offset in offsets.items() if still(id_)}:
            await consumer.commit(current)
        for lease in leases:
            if still(lease.partition):
                self.leases[lease.partition] = lease
                worker.step(m.Assigned(lease.partition, offsets[lease.partition]))
                consumer.seek(lease.partition, offsets[lease.partition])

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Finish what is running, give up the rest, then the epoch."""
        worker = self._worker
        for id_ in partitions:
            self._assigned.pop(id_, None)
        if not lost:
            worker.step(m.Draining(tuple(partitions)))
            try:
                async with asyncio.timeout(worker.ports.drain_s):
                    while worker.engine.unflushed(partitions):
                        self._progress.clear()
                        await self._progress.wait()
                    await worker.teller.tell()
            except TimeoutError:
                log.warning("%s: %s did not drain in time", worker.service.name, ", ".join(map(str, partitions)))
        worker.step(m.Revoked(tuple(partitions)))
        self._dropped()
        leases = [self.leases.pop(id_) for id_ in partitions if id_ in self.leases]
        try:
            await worker.ports.store.release(leases)
        except ChoreoError as error:
            log.warning("%s: leases could not be released, they will run out: %s", worker.service.name, error)

    def still(
        self, leases: Mapping[TopicPartition, Lease], partitions: Iterable[TopicPartition]
    ) -> frozenset[TopicPartition]:
        """Those of `partitions` that were not assigned anew since an answer that speaks of `leases` was asked for."""
        return frozenset(id_ for id_ in partitions if self.leases.get(id_) in (None, leases[id_]))

    def fenced(self, partitions: Iterable[TopicPartition]) -> None:
        """A newer owner was met. If the partitions are still assigned a while later, they are taken anew."""
        for id_ in sorted(partitions):
            self.leases.pop(id_, None)
            if id_ in self._assigned:
                self._worker.consumer.pause(id_)
                self._spawn(self._take_again(id_))
        self._dropped()

    async def _take_again(self, partition: TopicPartition) -> None:
        # Longer than a heartbeat: a member that was cut off has learnt by then that the partition is gone.
        await asyncio.sleep(4 * AGAIN_S)
        if partition in self._assigned:
            await self.assigned([partition])
