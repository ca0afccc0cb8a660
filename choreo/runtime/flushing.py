"""Performs commits: flushes of results, and transactions with handlers inside; then the sends and the offset."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from choreo.core import messages as m
from choreo.core.units import State, Unit
from choreo.errors import ChoreoError, LeaseLost, RecordTooLarge
from choreo.event import Event
from choreo.parked import Waits
from choreo.ports import CommitRequest, CommitResult, Finished, Lease, Transacted
from choreo.record import ProducerRecord, TopicPartition, new
from choreo.runtime.emitting import truncated
from choreo.runtime.invoking import Inside, describe, raised
from choreo.runtime.runners import apart
from choreo.runtime.work import Work

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")
SEND_AGAIN_S = 1.0
OFFSETS_S = 0.05
"""Between two times that the broker is told the offset, where the store knows what is done: after a crash that much
more comes again and is found done, and under load it is one request for several flushes."""
COUNTED = {"dead_letter": "dead_letters", "delayed": "delayed", "parked": "parked", "unparked": "unparked"}
"""Outcomes of a unit that are counted apart; every other is `handled`."""


class _Beside:
    """Done in a task of its own, and once more, `pause_s` later, if it is asked for meanwhile."""

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        pause_s: float = 0.0,
    ) -> None:
        self._work, self._spawn, self._pause_s = work, spawn, pause_s
        self._asked = self._at_work = False

    def ask(self) -> None:
        """It is to be done from now on."""
        self._asked = True
        if not self._at_work:
            self._at_work = True
            self._spawn(self._run())

    async def _run(self) -> None:
        try:
            while self._asked:
                self._asked = False
                await self._work()
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)
        finally:
            self._at_work = False


class Flusher:
    """Commits of one worker; `spawn` makes a task."""

    def __init__(self, worker: "Worker", spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._worker = worker
        self._unconfirmed: dict[bytes, Lease] = {}  # of commits whose end is not known, by key
        self._acked: dict[bytes, Finished] = {}
        self._offsets: dict[TopicPartition, tuple[Lease, int]] = {}  # that the broker is still to be told
        self._sent: set[int] = set()  # rows on the log that the store is still to be told of
        self._telling = asyncio.Lock()
        self._telling_store = _Beside(self._confirm, spawn)
        self._telling_broker = _Beside(self.commit_offsets, spawn, OFFSETS_S)

    def finished(
        self,
        unit: Unit,
        emits: tuple[ProducerRecord, ...],
        outcome: str,
        waits: Waits | None = None,
        ended_s: float | None = None,
    ) -> Finished:
        """A unit's result as the store takes it; one that came from a queue leaves it, unless it `waits`."""
        work: Work = unit.work
        began_s = work.started_s
        duration_s = 0.0
        if began_s:
            duration_s = max(0.0, (self._worker.ports.clock.now_s() if ended_s is None else ended_s) - began_s)
        parking = self._worker.parker.leaves(unit) if waits is None and unit.redriven and unit.queue else waits
        return new(
            Finished, (unit.partition, unit.offset, unit.digest, emits, outcome, unit.attempts, duration_s, parking)
        )

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
            self._unsure((each.partition, each.digest) for each in request.finished)
            worker.step(m.CommitFailed(effect.flush))
            return
        await self._send_outbox(result.outbox, [each.digest for each in request.finished], request.leases)
        if "offset" not in worker.ports.store.carries:
            self._note_offsets(request, result)
        self._acked.clear()
        self._report(units, result)
        refused = worker.still(request.leases, result.refused)
        worker.step(m.Committed(effect.flush, refused))
        worker.fenced(refused)

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
        await self._send([(0, record) for each in unsent for record in each.emits])
        self._acked = acked | {each.digest: each for each in unsent}  # not again, if now the store fails
        result = await ports.store.commit(kept)
        return replace(result, refused=result.refused | lost)

    # ---- transactions with handlers inside

    async def transact(self, effect: m.Transact) -> None:
        """Invoke handlers inside one transaction of the store, send what they emit, tell the core."""
        worker = self._worker
        entered, raised_ = await self._enter(effect.units)
        # Looked at after the hooks, which may have taken their time.
        units = [unit for unit in entered if unit.partition in worker.leases and unit.state is State.RUNNING]
        calls = [self._transacted(unit, entered[unit]) for unit in units]
        leases = {unit.partition: worker.leases[unit.partition] for unit in units}
        try:
            result = await worker.ports.store.commit(CommitRequest(leases, (), {}, calls))
        except ChoreoError as error:
            log.warning("%s: a transaction failed, trying again: %s", worker.service.name, error)
            self._unsure((unit.partition, unit.digest) for unit in units)
            outcomes = [self._outcome(unit, raised_.get(unit)) for unit in effect.units]
            worker.step(m.Transacted(outcomes, failed=True))
            return
        finally:
            for unit, inside in entered.items():
                if inside is not None:
                    await self._leave(unit, inside)
        ended = [each.digest for each in result.transacted if isinstance(each, Finished)]
        await self._send_outbox(result.outbox, ended, leases)
        lost = {
            unit.partition for unit, each in zip(units, result.transacted, strict=True) if isinstance(each, LeaseLost)
        }
        result = replace(result, refused=result.refused | lost)
        came = {
            unit: None if unit.partition in result.refused and not isinstance(each, Finished) else each
            for unit, each in zip(units, result.transacted, strict=True)
        }
        outcomes = [self._outcome(unit, came.get(unit) or raised_.get(unit)) for unit in effect.units]
        refused = worker.still(leases, result.refused)
        worker.step(m.Transacted(outcomes, refused))
        worker.fenced(refused)

    async def _enter(self, units: Iterable[Unit]) -> tuple[dict[Unit, Inside | None], dict[Unit, Exception]]:
        """Enter the hooks around plain handlers; units to invoke, and those whose hooks raised, as handlers may."""
        entered: dict[Unit, Inside | None] = {}
        failed: dict[Unit, Exception] = {}
        lanes = set()
        for unit in units:
            if unit.lane in lanes:
                continue  # behind one that is not invoked
            try:
                entered[unit] = None if unit.work.bound.is_async else await self._inside(unit)
            except Exception as error:
                failed[unit] = error
                lanes.add(unit.lane)
        return entered, failed

    async def _inside(self, unit: Unit) -> Inside:
        worker = self._worker
        return await worker.invoker.inside(unit, lambda: worker.span(unit).attach())

    async def _leave(self, unit: Unit, inside: Inside) -> None:
        try:
            await inside.leave()
        except Exception as error:  # too late to undo anything: what the handler did is committed or rolled back
            log.error("%s.%s: a hook failed: %s", self._worker.service.name, unit.handler, describe(error))

    def _transacted(self, unit: Unit, inside: Inside | None) -> Transacted:
        worker, work = self._worker, unit.work

        def finished(events: list[Event], correlation_id: str | None = None) -> Finished:
            now_s = worker.ports.clock.now_s()
            sending = None if worker.ports.instrument.silent else worker.span(unit).sending
            emits = worker.emitter.emits(work, unit.handler, events, now_s, sending, correlation_id)
            return self.finished(unit, emits, "handled")

        def invoke(transaction: Any, connection: Any) -> Finished:
            assert inside is not None
            work.started_s = work.started_s or worker.ports.clock.now_s()
            events, context = inside.call(transaction, connection), inside.context
            work.flow = context.flow
            return finished(events, context.correlation_id)

        async def invoke_async(transaction: Any, connection: Any) -> Finished:
            work.started_s = work.started_s or worker.ports.clock.now_s()
            # What is current while it runs is not to be so for the next one, and for the commit.
            return finished(bound.emitted(await apart(called(transaction, connection))))

        async def called(transaction: Any, connection: Any) -> Any:
            worker.span(unit).attach()
            return await worker.invoker.invoke(unit, transaction, connection)

        bound = work.bound
        call = invoke if inside is not None else invoke_async
        return Transacted(unit.partition, unit.digest, unit.lane, bound.transaction, inside is None, call)

    def _outcome(self, unit: Unit, came: Finished | BaseException | None) -> m.Outcome:
        if isinstance(came, BaseException):
            self._worker.note_failure(unit, came)
            return m.Outcome(unit, raised=raised(unit, came))
        if came is not None:
            if came.emits:
                self._worker.counts["emitted"] += len(came.emits)
            self._end(unit, came.outcome)
        return m.Outcome(unit, result=came)

    def _report(self, units: Sequence[Unit], result: CommitResult) -> None:
        worker, refused, instrument = self._worker, result.refused, self._worker.ports.instrument
        handled = emitted = 0
        for unit in units:
            if refused and unit.partition in refused:
                worker.span(unit).finish("dropped", attempts=unit.attempts)
                continue
            finished: Finished = unit.result
            _, _, _, emits, outcome, _, _, _ = finished
            emitted += len(emits)
            if outcome != "handled":
                self._end(unit, outcome)
                continue
            handled += 1
            if not instrument.silent:
                work: Work = unit.work
                span = work.span or worker.span(unit)
                if not span.silent:
                    span.finish(outcome, attempts=unit.attempts)
                if work.flow is not None:
                    instrument.flow(work.flow)
        worker.counts += Counter(handled=handled, emitted=emitted)

    def _end(self, unit: Unit, outcome: str) -> None:
        worker, error_type = self._worker, None
        if outcome != "handled":
            outcome, _, reason = outcome.partition(":")
            error_type = None if outcome == "unparked" else reason or None
        worker.counts[COUNTED.get(outcome, "handled")] += 1
        worker.span(unit).finish(outcome, attempts=unit.attempts, error_type=error_type)
        if unit.work.flow is not None and outcome == "handled":
            worker.ports.instrument.flow(unit.work.flow)

    # ---- sending what the store left to us

    async def resend(self, lease: Lease) -> set[int]:
        """Send what a former owner of the partition, or a commit with an unknown end, left; returns their rows."""
        if "outbox" not in self._worker.ports.store.carries:
            return set()
        rows = [each for each in await self._worker.ports.store.pending(lease) if each[0] not in self._sent]
        if rows:
            log.info("%s: %s: resending %d emits", self._worker.service.name, lease.partition, len(rows))
            await self._send(rows)
        return {row for row, _ in rows}

    def _unsure(self, units: Iterable[tuple[TopicPartition, bytes]]) -> None:
        """Nobody knows whether these were committed: once they are, the outbox may hold emits of theirs."""
        leases = self._worker.leases
        self._unconfirmed = {key: lease for key, lease in self._unconfirmed.items() if lease in leases.values()}
        self._unconfirmed.update((key, leases[id_]) for id_, key in units if id_ in leases)

    async def _send_outbox(
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
            await self._send([each for each in outbox if each[0] not in sent])
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

    async def _send(self, rows: Sequence[tuple[int, ProducerRecord]]) -> None:
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
                self._sent.update(row for row, _ in left)
                self._telling_store.ask()
            return

    # ---- telling store and broker beside the next flush, which does not wait for it

    def _note_offsets(self, request: CommitRequest, result: CommitResult) -> None:
        kept = {id_: offset for id_, offset in request.offsets.items() if id_ not in result.refused}
        self._offsets.update({id_: (request.leases[id_], offset) for id_, offset in kept.items()})
        if kept:
            self._telling_broker.ask()

    async def tell(self) -> None:
        """Tell the store what was sent and the broker what is done, now; what fails is tried again later."""
        await self._confirm()
        await self.commit_offsets()

    async def _confirm(self) -> None:
        rows = sorted(self._sent)
        if not rows:
            return
        try:
            await self._worker.ports.store.sent(rows)
        except ChoreoError as error:
            log.info("%s: %d emits stay in the outbox for now: %s", self._worker.service.name, len(rows), error)
        else:
            self._sent.difference_update(rows)

    async def commit_offsets(self) -> None:
        """Commit those that a flush was to commit and the broker has not taken yet; what fails is tried again later.

        Until then no harm is done: what comes again is found done.
        """
        async with self._telling:  # one after the other, or an older one could come last
            # Of a partition that was lost meanwhile, and perhaps assigned again, another owner has committed more.
            leases = self._worker.leases
            ours = {id_: each for id_, each in self._offsets.items() if leases.get(id_) == each[0]}
            self._offsets = ours.copy()
            if not ours:
                return
            try:
                await self._worker.consumer.commit({id_: offset for id_, (_, offset) in ours.items()})
            except ChoreoError as error:
                log.info("%s: offsets were not committed: %s", self._worker.service.name, error)
                return
            for id_, each in ours.items():
                if self._offsets.get(id_) == each:
                    del self._offsets[id_]


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
