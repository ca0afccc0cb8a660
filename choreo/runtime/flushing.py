"""Performs flushes: results of handlers are made durable, then their emits are sent; the offset is told beside it."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from choreo.core import messages as m
from choreo.core.units import State, Unit
from choreo.errors import ChoreoError, RecordTooLarge
from choreo.ports import CommitRequest, CommitResult, Finished
from choreo.runtime.emitting import truncated
from choreo.runtime.outgoing import Outgoing
from choreo.runtime.results import Results
from choreo.runtime.telling import Teller

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")


class Flusher:
    """Flushes of one worker."""

    def __init__(self, worker: "Worker", results: Results, outgoing: Outgoing, teller: Teller) -> None:
        self._worker, self._results, self._outgoing, self._teller = worker, results, outgoing, teller
        self._acked: dict[bytes, Finished] = {}  # on the log of a flush that failed, by key

    async def commit(self, effect: m.Commit) -> None:
        """Make one flush durable, and tell the core what became of it."""
        worker = self._worker
        units = [unit for unit in effect.units if unit.state is State.COMMITTING]
        request = self._request(units, effect)
        try:
            result = await self._durable(request)
        except ChoreoError as error:
            log.warning("%s: a commit failed, trying again: %s", worker.service.name, error)
            if isinstance(error, RecordTooLarge):
                _cut([unit for unit in units if unit.partition in request.leases], error.index)
            self._outgoing.unsure((each.partition, each.digest) for each in request.finished)
            worker.step(m.CommitFailed(effect.flush))
            return
        await self._outgoing.send_outbox(result.outbox, [each.digest for each in request.finished], request.leases)
        if "offset" not in worker.ports.store.carries:
            self._teller.done(request, result)
        self._acked.clear()
        self._results.flushed(units, result)
        refused = worker.holder.still(request.leases, result.refused)
        worker.step(m.Committed(effect.flush, refused))
        worker.holder.fenced(refused)

    def _request(self, units: Iterable[Unit], effect: m.Commit) -> CommitRequest:
        """What of a flush is still ours."""
        wanted = {unit.partition for unit in units} | set(effect.offsets)
        leases = {id_: lease for id_, lease in self._worker.leases.items() if id_ in wanted}
        return CommitRequest(
            leases,
            [unit.result for unit in units if unit.partition in leases],
            {id_: offset for id_, offset in effect.offsets.items() if id_ in leases},
        )

    async def _durable(self, request: CommitRequest) -> CommitResult:
        """Commit; with a store that neither keeps nor sends emits they are on the log before their keys are done."""
        ports = self._worker.ports
        if ports.store.carries & {"emits", "outbox"}:
            return await ports.store.commit(request)
        lost = await ports.store.renew(tuple(request.leases.values()), ports.lease_s)
        kept = CommitRequest(
            {id_: lease for id_, lease in request.leases.items() if id_ not in lost},
            [each for each in request.finished if each.partition not in lost],
            {id_: offset for id_, offset in request.offsets.items() if id_ not in lost},
        )
        # What a failed flush sent is in this one again; whatever else was acknowledged will never be committed.
        acked = {each.digest: each for each in kept.finished if self._acked.get(each.digest) is each}
        unsent = [each for each in kept.finished if each.emits and each.digest not in acked]
        await self._outgoing.send([(0, record) for each in unsent for record in each.emits])
        self._acked = acked | {each.digest: each for each in unsent}  # not again, if now the store fails
        result = await ports.store.commit(kept)
        return replace(result, refused=result.refused | lost)


def _cut(units: Sequence[Unit], index: int) -> None:
    """Make the `index`-th emit of a flush smaller, if it is a dead letter, for when it is committed again."""
    for unit in units:
        finished: Finished = unit.result
        if index < len(finished.emits):
            smaller = truncated(finished.emits[index])
            if smaller is not None:
                emits = (*finished.emits[:index], smaller, *finished.emits[index + 1 :])
                unit.result = finished._replace(emits=emits)
            return
        index -= len(finished.emits)
