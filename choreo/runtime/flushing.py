"""Performs a commit: the store first, then the sends it left to us, then the offset."""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from choreo.core import messages as m
from choreo.core.units import State, Unit
from choreo.errors import ChoreoError, RecordTooLarge
from choreo.ports import CommitRequest, CommitResult, Finished, Lease, Transacted
from choreo.record import ProducerRecord
from choreo.runtime.emitting import truncated
from choreo.runtime.invoking import Inside, raised
from choreo.runtime.routing import Work

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")
SEND_AGAIN_S = 1.0


class Flusher:
    """Commits of one worker."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._resend: set[Lease] = set()

    def finished(self, unit: Unit, emits: Sequence[ProducerRecord], outcome: str) -> Finished:
        """A unit's result as the store takes it."""
        work: Work = unit.work
        now_s = self._worker.ports.clock.now_s()
        duration_s = max(0.0, now_s - work.started_s) if work.started_s else 0.0
        return Finished(unit.partition, unit.offset, unit.digest, tuple(emits), outcome, unit.attempts, duration_s)

    async def commit(self, effect: m.Commit) -> None:
        """Make one flush durable, and tell the core what became of it."""
        worker = self._worker
        units = [unit for unit in effect.units if unit.state is State.COMMITTING]
        inside = [(unit, await worker.invoker.inside(unit)) for unit in effect.transact]
        wanted = {unit.partition for unit in (*units, *effect.transact)} | set(effect.offsets)
        leases = {id_: worker.leases[id_] for id_ in wanted if id_ in worker.leases}
        inside = [(unit, each) for unit, each in inside if unit.partition in leases]
        request = CommitRequest(
            leases,
            [unit.result for unit in units if unit.partition in leases],
            {id_: offset for id_, offset in effect.offsets.items() if id_ in leases},
            [Transacted(unit.partition, unit.digest, unit.lane, self._call(unit, each)) for unit, each in inside],
        )
        try:
            result = await worker.ports.store.commit(request)
        except ChoreoError as error:
            log.warning("%s: a commit failed, trying again: %s", worker.service.name, error)
            self._resend.update(leases.values())
            worker.step(m.CommitFailed(effect.flush))
            return
        finally:
            for _, each in inside:
                await each.leave()
        await self._send(result.outbox)
        await self._resend_unconfirmed()
        if "offset" not in worker.ports.store.carries:
            await self._commit_offsets(request, result)
        self._report(units, result)
        worker.step(m.Committed(effect.flush, result.refused, self._outcomes(effect, inside, result)))
        if result.refused:
            worker.fenced(result.refused)

    def _call(self, unit: Unit, inside: Inside) -> Any:
        worker = self._worker

        def invoke(transaction: Any) -> Finished:
            work: Work = unit.work
            work.started_s = work.started_s or worker.ports.clock.now_s()
            events = inside.call(transaction)
            now_s = worker.ports.clock.now_s()
            emits = worker.emitter.emits(work, unit.handler, events, now_s, worker.span(unit).sending)
            return self.finished(unit, emits, "handled")

        return invoke

    def _outcomes(
        self, effect: m.Commit, inside: Sequence[tuple[Unit, Inside]], result: CommitResult
    ) -> list[m.Transacted]:
        """What became of the units invoked inside, and of those whose partition had gone."""
        outcomes = []
        told = set()
        for (unit, _), each in zip(inside, result.transacted, strict=True):
            told.add(unit)
            if isinstance(each, BaseException):
                self._worker.note_failure(unit, each)
                outcomes.append(m.Transacted(unit, raised=raised(unit, each)))
            else:
                if each is not None:
                    self._end(unit, each)
                outcomes.append(m.Transacted(unit, result=each))
        outcomes += [m.Transacted(unit) for unit in effect.transact if unit not in told]
        return outcomes

    def _report(self, units: Sequence[Unit], result: CommitResult) -> None:
        for unit in units:
            if unit.partition in result.refused:
                self._worker.span(unit).finish("dropped", attempts=unit.attempts)
            else:
                self._end(unit, unit.result)

    def _end(self, unit: Unit, finished: Finished) -> None:
        worker = self._worker
        outcome, _, reason = finished.outcome.partition(":")
        worker.counts["dead_letters" if outcome == "dead_letter" else "handled"] += 1
        worker.counts["emitted"] += len(finished.emits)
        worker.span(unit).finish(outcome, attempts=unit.attempts, error_type=reason or None)

    # ---- sending what the store left to us

    async def resend(self, lease: Lease) -> None:
        """Send what a former owner of the partition, or a commit with an unknown end, left in the outbox."""
        rows = await self._worker.ports.store.pending(lease)
        if rows:
            log.info("%s: %s: resending %d emits", self._worker.service.name, lease.partition, len(rows))
            await self._send(rows)

    async def _resend_unconfirmed(self) -> None:
        for lease in tuple(self._resend):
            try:
                await self.resend(lease)
            except ChoreoError as error:
                log.warning("%s: the outbox could not be read: %s", self._worker.service.name, error)
                return
            self._resend.discard(lease)

    async def _send(self, rows: Sequence[tuple[int, ProducerRecord]]) -> None:
        """Send until it is acknowledged; nothing else is committed meanwhile, so the order of a key holds.

        A dead letter that is too large for its topic is cut, since nobody could make its sender send less.
        """
        ports, left = self._worker.ports, list(rows)
        while left:
            try:
                await ports.transport.send([record for _, record in left])
                await ports.store.sent([row for row, _ in left])
                return
            except ChoreoError as error:
                log.warning("%s: sending %d emits failed: %s", self._worker.service.name, len(left), error)
                if isinstance(error, RecordTooLarge):
                    row, record = left[error.index]
                    smaller = truncated(record)
                    if smaller is not None:
                        left[error.index] = row, smaller
                        continue
                await asyncio.sleep(SEND_AGAIN_S)

    async def _commit_offsets(self, request: CommitRequest, result: CommitResult) -> None:
        offsets = {id_: offset for id_, offset in request.offsets.items() if id_ not in result.refused}
        if not offsets:
            return
        try:
            await self._worker.consumer.commit(offsets)
        except ChoreoError as error:
            # No harm: what comes again is found done.
            log.info("%s: offsets were not committed: %s", self._worker.service.name, error)
