"""Transactions of the store with handlers inside: each has a unit's rows, its key and its emits commit together."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from choreo.core import messages as m
from choreo.core.units import State, Unit
from choreo.errors import ChoreoError, LeaseLost
from choreo.event import Event
from choreo.ports import CommitRequest, Finished, Transacted
from choreo.runtime.invoking import Inside, describe
from choreo.runtime.outgoing import Outgoing
from choreo.runtime.results import Results
from choreo.runtime.runners import apart

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")


class Transactor:
    """Invokes handlers of one worker inside of transactions."""

    def __init__(self, worker: "Worker", results: Results, outgoing: Outgoing) -> None:
        self._worker, self._results, self._outgoing = worker, results, outgoing

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
            self._outgoing.unsure((unit.partition, unit.digest) for unit in units)
            outcomes = [self._outcome(unit, raised_.get(unit)) for unit in effect.units]
            worker.step(m.Transacted(outcomes, failed=True))
            return
        finally:
            for unit, inside in entered.items():
                if inside is not None:
                    await self._leave(unit, inside)
        ended = [each.digest for each in result.transacted if isinstance(each, Finished)]
        await self._outgoing.send_outbox(result.outbox, ended, leases)
        lost = {
            unit.partition for unit, each in zip(units, result.transacted, strict=True) if isinstance(each, LeaseLost)
        }
        result = replace(result, refused=result.refused | lost)
        came = {
            unit: None if unit.partition in result.refused and not isinstance(each, Finished) else each
            for unit, each in zip(units, result.transacted, strict=True)
        }
        outcomes = [self._outcome(unit, came.get(unit) or raised_.get(unit)) for unit in effect.units]
        refused = worker.holder.still(leases, result.refused)
        worker.step(m.Transacted(outcomes, refused))
        worker.holder.fenced(refused)

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
        worker, results, work = self._worker, self._results, unit.work

        def finished(events: list[Event], correlation_id: str | None = None) -> Finished:
            now_s = worker.ports.clock.now_s()
            sending = None if worker.ports.instrument.silent else worker.span(unit).sending
            emits = worker.emitter.emits(work, unit.handler, events, now_s, sending, correlation_id)
            return results.finished(unit, emits, "handled")

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
            return m.Outcome(unit, raised=self._results.failed(unit, came))
        if came is not None:
            self._results.durable(unit, came)
        return m.Outcome(unit, result=came)
