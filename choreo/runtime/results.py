"""What came of a unit: how the store takes it, and what is counted, traced and logged of it."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from choreo.core.messages import Raised
from choreo.core.units import Unit
from choreo.parked import Waits
from choreo.ports import CommitResult, Finished
from choreo.record import ProducerRecord, new
from choreo.runtime.invoking import describe, raised
from choreo.runtime.work import Work

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")
COUNTED = {"dead_letter": "dead_letters", "delayed": "delayed", "parked": "parked", "unparked": "unparked"}
"""Outcomes of a unit that are counted apart; every other is `handled`."""


class Results:
    """Results of one worker's units."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker

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

    def failed(self, unit: Unit, error: BaseException) -> Raised:
        """Its handler raised: remembered for the dead letter, and said; the core decides what is next."""
        worker, attempt = self._worker, unit.attempts
        unit.result = error
        worker.counts["failed_attempts"] += 1
        worker.span(unit).attempt_failed(attempt, error)
        name = worker.service.name
        log.info("%s.%s failed, attempt %d: %s", name, unit.handler, attempt, describe(error), extra=self.about(unit))
        return raised(unit, error)

    def flushed(self, units: Sequence[Unit], result: CommitResult) -> None:
        """A flush of theirs is durable, but for what of it was refused."""
        worker, refused, instrument = self._worker, result.refused, self._worker.ports.instrument
        handled = emitted = 0
        for unit in units:
            if refused and unit.partition in refused:
                worker.span(unit).finish("dropped", attempts=unit.attempts)
                continue
            finished: Finished = unit.result
            _, _, _, emits, outcome, _, _, _ = finished
            if outcome != "handled":
                self.durable(unit, finished)
                continue
            handled += 1
            emitted += len(emits)
            if not instrument.silent:
                work: Work = unit.work
                span = work.span or worker.span(unit)
                if not span.silent:
                    span.finish(outcome, attempts=unit.attempts)
                if work.flow is not None:
                    instrument.flow(work.flow)
        worker.counts += Counter(handled=handled, emitted=emitted)

    def durable(self, unit: Unit, finished: Finished) -> None:
        """One is, whatever its outcome."""
        worker, outcome, error_type = self._worker, finished.outcome, None
        if finished.emits:
            worker.counts["emitted"] += len(finished.emits)
        if outcome != "handled":
            outcome, _, reason = outcome.partition(":")
            error_type = None if outcome == "unparked" else reason or None
        worker.counts[COUNTED.get(outcome, "handled")] += 1
        worker.span(unit).finish(outcome, attempts=unit.attempts, error_type=error_type)
        if unit.work.flow is not None and outcome == "handled":
            worker.ports.instrument.flow(unit.work.flow)

    def about(self, unit: Unit) -> dict[str, str]:
        """What the unit's log records say beside their message, as those of its handler do."""
        return {
            "service": self._worker.service.name,
            "handler": unit.handler,
            "correlation_id": unit.correlation_id,
        }
