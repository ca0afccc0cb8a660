"""Emits on their way to the log: those of a commit, and before them what an earlier one left in the outbox."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from choreo.errors import ChoreoError, RecordTooLarge
from choreo.ports import Lease
from choreo.record import ProducerRecord, TopicPartition
from choreo.runtime.emitting import truncated
from choreo.runtime.telling import Teller

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")
SEND_AGAIN_S = 1.0


class Outgoing:
    """Sends for one worker; `teller` hears of rows that are on the log."""

    def __init__(self, worker: "Worker", teller: Teller) -> None:
        self._worker, self._teller = worker, teller
        self._unconfirmed: dict[bytes, Lease] = {}  # of commits whose end is not known, by key

    async def resend(self, lease: Lease) -> set[int]:
        """Send what a former owner of the partition, or a commit with an unknown end, left; returns their rows."""
        if "outbox" not in self._worker.ports.store.carries:
            return set()
        on_log = self._teller.on_log
        rows = [each for each in await self._worker.ports.store.pending(lease) if each[0] not in on_log]
        if rows:
            log.info("%s: %s: resending %d emits", self._worker.service.name, lease.partition, len(rows))
            await self.send(rows)
        return {row for row, _ in rows}

    def unsure(self, units: Iterable[tuple[TopicPartition, bytes]]) -> None:
        """Nobody knows whether these were committed: once they are, the outbox may hold emits of theirs."""
        leases = self._worker.leases
        self._unconfirmed = {key: lease for key, lease in self._unconfirmed.items() if lease in leases.values()}
        self._unconfirmed.update((key, leases[id_]) for id_, key in units if id_ in leases)

    async def send_outbox(
        self,
        outbox: Sequence[tuple[int, ProducerRecord]],
        done: Iterable[bytes],
        leases: Mapping[TopicPartition, Lease],
    ) -> None:
        """Send what a commit under `leases` left; first what an earlier commit of the keys `done` may have left.

        A partition's that was lost meanwhile is sent by its next owner, behind what came before it.
        """
        sent: set[int] = set()
        for lease in dict.fromkeys(self._unconfirmed.pop(key) for key in done if key in self._unconfirmed):
            sent |= await self._resend_while_ours(lease)
        held = self._worker.leases
        if not outbox or all(held.get(id_) == lease for id_, lease in leases.items()):
            await self.send([each for each in outbox if each[0] not in sent])
            return
        for lease in leases.values():
            await self._resend_while_ours(lease)

    async def _resend_while_ours(self, lease: Lease) -> set[int]:
        while self._worker.leases.get(lease.partition) == lease:
            try:
                return await self.resend(lease)
            except ChoreoError as error:
                log.warning("%s: the outbox could not be read, trying again: %s", self._worker.service.name, error)
                await asyncio.sleep(SEND_AGAIN_S)
        return set()

    async def send(self, rows: Sequence[tuple[int, ProducerRecord]]) -> None:
        """Send until it is acknowledged; nothing else is committed meanwhile, so the order of a key holds.

        A dead letter that is too large for its topic is cut, since nobody could make its sender send less.
        """
        ports, left = self._worker.ports, list(rows)
        while left:
            try:
                await ports.transport.send([record for _, record in left])
            except ChoreoError as error:
                log.warning("%s: sending %d emits failed: %s", self._worker.service.name, len(left), error)
                if isinstance(error, RecordTooLarge):
                    row, record = left[error.index]
                    smaller = truncated(record)
                    if smaller is not None:
                        left[error.index] = row, smaller
                        continue
                await asyncio.sleep(SEND_AGAIN_S)
                continue
            if "outbox" in ports.store.carries:
                self._teller.sent(row for row, _ in left)
            return
