"""Parked events as records: what gives one to its handler again, or takes it out of the queue of its key.

It is a replay (see `choreo.runtime.replaying`) that says which event of a queue it is for, and how often that came
back before: the same order, whoever gives it, has the same id and is carried out once. An event that is dropped has
the id that it would have been handled under, so it is either. All of a queue are in one lane of the topic of replays:
who takes an event out of it has it to himself.
"""

from dataclasses import replace

from choreo.core.emission import replay_identity
from choreo.core.retry import Delayed
from choreo.core.units import Unit
from choreo.envelope import Envelope, TraceContext
from choreo.parked import Leaves, Waits
from choreo.record import ProducerRecord
from choreo.runtime.emitting import COPY_BYTES_MAX, Emitter, again, size_of, where
from choreo.runtime.replaying import Replay, event_identity, replay_headers
from choreo.runtime.work import Work

TOO_LARGE = "too_large_to_park"
"""Reason of a dead letter that did not fail, and could not wait."""


class Parker:
    """Says what units of one service do to the queues of their keys."""

    def __init__(self, emitter: Emitter) -> None:
        self._service = emitter.service
        self._topic = emitter.topic(self._service.replay_topic)

    def waits(self, unit: Unit, reason: str, detail: str) -> Waits | None:
        """The event goes to its queue, or stays there; None if it is too large for the topic it comes back by."""
        assert unit.queue is not None
        work: Work = unit.work
        before = work.replay if unit.redriven else None
        if before is None:
            base = work.replay.base if work.replay is not None else ""
            failed = work.replay.id if work.replay is not None else ""
            row = event_identity(self._service.name, unit.handler, where(work), failed)
            tries = 0
            next_ = Replay(
                replay_identity("parked", row),
                unit.handler,
                "if-not-done",
                "replay",
                base=base,
                original=where(work),
                parked="head",
                row=row,
            )
        else:
            tries = before.tries + 1
            next_ = replace(before, id=replay_identity(before.id, "again"), tries=tries, by="", time="", note="")
        record = self._record(work, next_)
        if size_of(record) > COPY_BYTES_MAX:
            return None
        return Waits(
            unit.queue,
            bytes.fromhex(next_.row),
            unit.handler,
            record,
            reason,
            detail[:1000],
            unit.attempts,
            unit.correlation_id,
            self._due_s(work, reason, tries),
        )

    def leaves(self, unit: Unit) -> Leaves:
        """The event, which came from its queue, is done with; or all are that were there."""
        assert unit.queue is not None
        work: Work = unit.work
        assert work.replay is not None
        row = bytes.fromhex(work.replay.row)
        if work.replay.parked == "closing":
            return Leaves(unit.queue, row)
        id_ = replay_identity(work.replay.row, "closing")
        closing = replace(work.replay, id=id_, parked="closing", by="", time="", note="")
        return Leaves(unit.queue, row, self._record(work, closing))

    def _record(self, work: Work, replay: Replay) -> ProducerRecord:
        about = work.envelope or Envelope("", "", "")
        context = TraceContext(about.traceparent, about.tracestate)
        return again(work.record, self._topic, replay_headers(replay), context)

    def _due_s(self, work: Work, reason: str, tries: int) -> float | None:
        retry = work.bound.handler.retry if work.bound is not None else None
        return retry.next_s(tries) if isinstance(retry, Delayed) and reason == "handler_failed" else None
