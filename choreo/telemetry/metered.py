"""The Instrument that counts: around one that traces, or around none."""

from collections.abc import Callable
from time import perf_counter

from opentelemetry.metrics import Histogram

from choreo.envelope import Envelope, TraceContext
from choreo.ports import FlowMark, Instrument, Span, UnitInfo
from choreo.telemetry.attributes import type_name
from choreo.telemetry.durations import Durations
from choreo.telemetry.tally import Tally, count, of_error, of_operation


class MeteredInstrument:
    """Counts into `tally`, records the durations, and has `inner` trace."""

    silent = False

    def __init__(self, inner: Instrument, tally: Tally, durations: Durations, flows: Histogram) -> None:
        self.tally = tally
        self._inner = inner
        self._durations = durations
        self._flows = flows
        self._recorders: dict[tuple[str, str, str], Callable[[float], None]] = {}

    def process(self, unit: UnitInfo, *, now_s: float) -> Span:
        """A unit begins."""
        return _MeteredSpan(self, self._inner.process(unit, now_s=now_s), unit)

    def publish(
        self, topic: str, envelope: Envelope, key: bytes | None = None, *, new_trace: bool = False
    ) -> tuple[Envelope, Callable[[BaseException | None], None]]:
        """Counted when it ends."""
        traced, end = self._inner.publish(topic, envelope, key, new_trace=new_trace)

        def counted(error: BaseException | None) -> None:
            count(self.tally.sent, (topic, "" if error is None else type_name(error)))
            end(error)

        return traced, counted

    def processed(self, unit: UnitInfo, took_s: float, error_type: str) -> None:
        """A unit was handled, or given up."""
        key = unit.handler, unit.record.topic, error_type
        record = self._recorders.get(key)
        if record is None:
            more = {"messaging.consumer.group.name": unit.group, "choreo.handler": unit.handler}
            operation = of_operation("process", "process", unit.record.topic)
            attributes = of_error({**self.tally.always, **operation, **more}, error_type)
            record = self._recorders[key] = self._durations.recorder(attributes)
        record(took_s)

    def flow(self, mark: FlowMark) -> None:
        """How long a flow took that has ended; one more that is overdue."""
        if mark.overdue:
            count(self.tally.overdue, mark.flow)
        if mark.end:
            self._flows.record(mark.took_s, {**self.tally.own, "choreo.flow": mark.flow, "choreo.flow.end": mark.end})

    def breaker(self, handler: str, *, is_open: bool) -> None:
        """One more opening, and how it stands."""
        if is_open:
            count(self.tally.openings, handler)
        self.tally.breakers[handler] = is_open

    def close(self) -> None:
        """The one that traces is closed; who collects is not ours. Breakers are of one run, counts of the process."""
        self.tally.breakers = {}
        self._inner.close()


class _MeteredSpan:
    """A unit that is counted; its sends are, once they are committed."""

    __slots__ = ("_began_s", "_finished", "_inner", "_instrument", "_sends", "_unit")
    silent = False

    def __init__(self, instrument: MeteredInstrument, inner: Span, unit: UnitInfo) -> None:
        self._instrument = instrument
        self._inner = inner
        self._unit = unit
        self._sends: dict[tuple[str, str], None] = {}
        self._finished = False
        self._began_s = perf_counter()

    def attempt_failed(self, attempt: int, error: BaseException) -> None:
        self._sends.clear()
        count(self._instrument.tally.attempts, (self._unit.handler, type_name(error)))
        self._inner.attempt_failed(attempt, error)

    def sending(self, topic: str, envelope: Envelope, key: bytes | None = None) -> TraceContext:
        self._sends[topic, envelope.id] = None
        return self._inner.sending(topic, envelope, key)

    def attach(self) -> None:
        self._sends.clear()
        self._inner.attach()

    def finish(self, outcome: str, *, attempts: int, error_type: str | None = None) -> None:
        if self._finished:
            return
        self._finished = True
        instrument, unit = self._instrument, self._unit
        tally, error = instrument.tally, error_type or ""
        count(tally.events, (unit.handler, unit.record.topic, outcome, error))
        if outcome in ("handled", "delayed", "dead_letter"):
            for topic, _ in self._sends:
                count(tally.sent, (topic, ""))
            instrument.processed(unit, perf_counter() - self._began_s, error)
        if outcome == "handled":
            count(tally.attempts, (unit.handler, ""))
        self._inner.finish(outcome, attempts=attempts, error_type=error_type)
