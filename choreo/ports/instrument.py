"""The port of telemetry: what is told of units, of flows, and of how things stand with a service."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from choreo.envelope import Envelope, TraceContext
from choreo.record import Record, TopicPartition


class UnitInfo(NamedTuple):
    """What an instrument is told of one (event, handler).

    `new_trace`: it begins a trace of its own, linked to what caused it, as timers and replays do.
    """

    service: str
    group: str
    handler: str
    record: Record
    envelope: Envelope | None
    new_trace: bool = False


class FlowMark(NamedTuple):
    """What a watch has found of a flow: that it came to an `end`, or that it is past its deadline.

    `end`: type of an event, empty while it is open. `took_s`: from the flow's first event until then, by the clocks
    of who sent them. `overdue`: it is found to be past its deadline only now.
    """

    flow: str
    end: str
    took_s: float
    overdue: bool


class Span(Protocol):
    """One `process` span, open while its unit is worked on.

    `silent`: of a unit handled at once only `attach` need be told, and its emits take the headers it came with.
    """

    silent: bool

    def attempt_failed(self, attempt: int, error: BaseException) -> None:
        """Attempt number `attempt` (from 1) failed and will be repeated."""

    def sending(self, topic: str, envelope: Envelope, key: bytes | None = None) -> TraceContext:
        """Begin a `send` span below this one; returns its context, which the event is to have."""

    def attach(self) -> None:
        """An attempt begins: spans of the handler's own, in the current context, which is its alone, nest below."""

    def finish(self, outcome: str, *, attempts: int, error_type: str | None = None) -> None:
        """End it and the sends below it. `outcome`: handled, duplicate, dead_letter, parked, dropped."""


class Instrument(Protocol):
    """Observes a service; one that is `silent` need be told of nothing. Its failures are its own: it never raises."""

    silent: bool

    def process(self, unit: UnitInfo, *, now_s: float) -> Span:
        """A unit begins."""

    def publish(
        self, topic: str, envelope: Envelope, key: bytes | None = None, *, new_trace: bool = False
    ) -> tuple[Envelope, Callable[[BaseException | None], None]]:
        """An event is published from outside a handler: its envelope with a context, and how to end the span.

        `new_trace`: it begins a trace of its own, linked to the context its envelope has, as a replay does.
        """

    def flow(self, mark: FlowMark) -> None:
        """A watched flow has ended, or is past its deadline, and that is durable."""

    def breaker(self, handler: str, *, is_open: bool) -> None:
        """The circuit breaker of a handler has opened, again after a probe that failed too, or closed."""

    def close(self) -> None:
        """Flush what was recorded."""


class Level(NamedTuple):
    """How far behind one partition is: in records (None if unknown), and in seconds, both 0 when all is done."""

    lag_records: int | None
    lag_s: float


class Levels(NamedTuple):
    """How things stand with one service in one process.

    `oldest_s`: age of the oldest event in hand; `running` handlers of at most `running_max`; `lanes` with work;
    `timers_due`, to be sent now, and `parked_keys` are of all processes; None of a service without, or if unknown.
    """

    group: str
    partitions: Mapping[TopicPartition, Level]
    oldest_s: float
    running: int
    running_max: int
    lanes: int
    timers_due: int | None = None
    parked_keys: int | None = None


class Backlog(NamedTuple):
    """What waits in an application's outbox: how many rows, and the age of the oldest; both 0 when all is sent."""

    rows: int
    oldest_s: float
