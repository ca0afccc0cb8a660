"""What is to be run, and how."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from choreo.access import Access
from choreo.binding import Around, BoundHandler
from choreo.core.messages import Limits
from choreo.errors import ConfigurationError
from choreo.ports import Clock
from choreo.process.interpreting import Process
from choreo.runtime.clock import SystemClock
from choreo.service import Service
from choreo.telemetry.setup import SPLIT_AFTER_S, TRACE_MODES, TraceMode


@dataclass(frozen=True, slots=True)
class Plan:
    """One service to run: its handlers, the topics it reads (`inputs`) and writes (`outputs`), and if it is one the
    process it runs."""

    service: Service
    handlers: Sequence[BoundHandler]
    inputs: Sequence[str]
    around: Sequence[Around]
    propagate: Sequence[str]
    outputs: Sequence[str]
    process: Process | None = None

    def needs(self, topic: Callable[[str], str], *, changelog: bool) -> list[Access]:
        """The rights it needs on Kafka."""
        from choreo.granting import needs  # not needed, and its clients not imported, without Kafka

        written = [*self.outputs, *delay_topics(self.service, topic)]
        if self.process is not None:
            written.append(topic(self.process.due.event_topic))
        return needs(self.service, self.inputs, written, topic, changelog=changelog)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how to run; see `App.running`."""

    broker: str
    store: str | None = field(default=None, repr=False)  # its URL may hold a password
    drain_s: float = 20.0
    lease_s: float = 30.0
    key_ttl_s: float = 7 * 86_400.0
    limits: Limits = field(default_factory=Limits)
    clock: Clock = field(default_factory=SystemClock)
    inline: bool = False
    create_topics: bool = False
    create_replay_topics: bool = False
    create_schema: bool = False
    partitions: int = 4
    trace_mode: TraceMode = "parent"
    trace_split_after_s: float = SPLIT_AFTER_S
    share_tracer: bool = False
    health_host: str = "127.0.0.1"
    health_port: int | None = None

    def __post_init__(self) -> None:
        if self.trace_mode not in TRACE_MODES:
            raise ConfigurationError(f"the trace mode {self.trace_mode!r} is none of {', '.join(TRACE_MODES)}")


def delay_topics(service: Service, topic: Callable[[str], str]) -> dict[str, int]:
    """Actual names of a service's delay topics, with their delays in seconds."""
    return {topic(service.delay_topic(delay_s)): delay_s for delay_s in service.delays_s}
