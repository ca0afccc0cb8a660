"""Where a unit goes that is given up: to the dead letters, to a delay topic, or to the queue of its key."""

import logging
from typing import TYPE_CHECKING

from choreo.core import messages as m
from choreo.core.units import Unit
from choreo.runtime.invoking import describe
from choreo.runtime.parking import TOO_LARGE
from choreo.runtime.results import Results
from choreo.runtime.unsaid import unsaid
from choreo.runtime.work import Work

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")


class GivingUp:
    """Gives up units of one worker; what becomes of each is its result, and commits as any other."""

    def __init__(self, worker: "Worker", results: Results) -> None:
        self._worker, self._results = worker, results

    async def dead_letter(self, unit: Unit, reason: str) -> None:
        """To the dead letters."""
        worker, work = self._worker, unit.work
        error, detail = _why(unit, reason)
        span, now_s = worker.span(unit), worker.ports.clock.now_s()
        letter = worker.emitter.dead_letter(work, unit.handler, reason, detail, unit.attempts, now_s, span.sending)
        bug = error if work.error is None and reason == "handler_failed" else None
        log.warning(
            "dead letter: %s@%d for %s.%s: %s",
            unit.partition,
            unit.offset,
            worker.service.name,
            unit.handler,
            detail,
            exc_info=None if bug is None else unsaid(bug),
            extra=self._results.about(unit),
        )
        worker.step(m.Returned(unit, self._results.finished(unit, (letter,), f"dead_letter:{reason}")))

    async def delay(self, unit: Unit, reason: str) -> None:
        """To the next delay topic; to the dead letters if there is none for it."""
        worker = self._worker
        record = worker.emitter.delayed(unit.work, unit.handler, unit.attempts, worker.span(unit).sending)
        if record is None:
            await self.dead_letter(unit, reason)
            return
        log.info(
            "%s.%s: %s@%d goes to %s",
            worker.service.name,
            unit.handler,
            unit.partition,
            unit.offset,
            record.topic,
            extra=self._results.about(unit),
        )
        worker.step(m.Returned(unit, self._results.finished(unit, (record,), "delayed")))

    async def park(self, unit: Unit, reason: str) -> None:
        """To the queue of its key, or out of it; to the dead letters if it is too large to come back from there."""
        worker, results = self._worker, self._results
        if unit.redriven and unit.work.replay.parked != "head":  # there is nothing to be done but to leave the queue
            outcome = "unparked:drop" if unit.work.replay.parked == "drop" else "unparked"
            worker.step(m.Returned(unit, results.finished(unit, (), outcome)))
            return
        error, detail = _why(unit, reason)
        waits = worker.parker.waits(unit, reason, detail)
        if waits is None:
            await self.dead_letter(unit, reason or TOO_LARGE)
            return
        if reason:
            bug = error if unit.work.error is None else None
            name, where = f"{worker.service.name}.{unit.handler}", f"{unit.partition}@{unit.offset}"
            log.warning(
                "parked: %s for %s, and what comes of its key waits behind it: %s",
                where,
                name,
                detail,
                exc_info=None if bug is None else unsaid(bug),
                extra=results.about(unit),
            )
        worker.step(m.Returned(unit, results.finished(unit, (), f"parked:{reason}", waits)))


def _why(unit: Unit, reason: str) -> tuple[BaseException | None, str]:
    """What a unit was given up for, and how that is told."""
    work: Work = unit.work
    error = work.error or (unit.result if isinstance(unit.result, BaseException) else None)
    return error, describe(error) if error is not None else reason
