"""What the runtime needs from the outside: Protocols, as few methods as will do.

Nothing here names a broker, a database or a tracer. An adapter states what it guarantees; the conformance
suite in `choreo.testing.conformance` holds it to that.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from choreo.envelope import Envelope
from choreo.record import ProducerRecord, Record, TopicPartition

Start = Literal["earliest", "latest"] | int
"""Where a group without a committed offset begins: the ends of the log, or a time in ms since the epoch."""

Carries = Literal["offset", "emits", "outbox", "rows"]
"""What a store's commit makes durable in one transaction beside the keys: the committed offset and the emits on
the log themselves, an outbox of emits to be sent, the handler's own rows."""


class Clock(Protocol):
    """Time as the runtime sees it; the virtual one lives in `choreo.testing`."""

    def now_s(self) -> float:
        """Seconds since the epoch."""

    async def sleep(self, delay_s: float) -> None:
        """Return `delay_s` seconds later."""


class TopicSpec(NamedTuple):
    """A topic as it should be; `partitions` >= 1, `config` in the broker's own words."""

    name: str
    partitions: int
    replication: int = 1
    config: tuple[tuple[str, str], ...] = ()


class Assignment(Protocol):
    """Told by a consumer when partitions come and go. Both are awaited before the consumer goes on."""

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """These are ours now. They are paused and have no position until `seek` and `resume`."""

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """These are being taken; `lost`: somebody else may own them already."""


class Consumer(Protocol):
    """One member of one consumer group."""

    member: str
    """Unique to this member; the owner of the leases it takes."""

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """Up to `records_max` records of resumed partitions, ascending within each, after at most `wait_s`."""

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """The committed offset, or where `start` points if nothing was ever committed.

        Raises:
            TransportError: It cannot be read. That is never taken for "nothing committed".
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch from `offset` on and let the partition flow."""

    def pause(self, partition: TopicPartition) -> None:
        """Fetch nothing of it until `resume`."""

    def resume(self, partition: TopicPartition) -> None:
        """Fetch of it again from where it stood."""

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit next-to-read offsets of partitions that are ours."""

    async def close(self) -> None:
        """Give up what is still assigned and leave the group."""


class Transport(Protocol):
    """A log: topics of partitions, consumer groups, ordered within a partition."""

    name: str
    system: str
    """`messaging.system` of its spans."""

    async def open(self) -> None:
        """Connect, or raise TransportError saying what to check."""

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> Consumer:
        """Join `group` for `topics`, which exist."""

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Append all, in order a key, and return when every one is acknowledged.

        Raises:
            TransportError: Some may be on the log, some not; sending the same again is safe.
        """

    async def topics(self) -> Mapping[str, TopicSpec]:
        """The topics that exist, by name."""

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create those that are missing; an existing one is left as it is."""

    async def scan(self, topics: Sequence[str], *, since_ms: int) -> Sequence[Record]:
        """Every record of `topics` from `since_ms` on, up to the end as it is now: for looking, not for consuming."""

    async def close(self) -> None:
        """Flush and disconnect."""


class Lease(NamedTuple):
    """The right to commit for one input partition; a newer `epoch` of it fences this one."""

    group: str
    partition: TopicPartition
    epoch: int
    owner: str


class ClaimRequest(NamedTuple):
    """One unit to claim.

    `digest`: 16 bytes, the idempotency key. `fingerprint`: 8 bytes of the payload. `solo`: count this delivery.
    """

    partition: TopicPartition
    digest: bytes
    fingerprint: bytes
    handler: str
    offset: int
    correlation_id: str
    timestamp_ms: int
    solo: bool = False


class Claimed(NamedTuple):
    """A store's answer to a claim.

    fresh: ours to handle; `deliveries` >= 1 counts this one. The first redelivery after a death is counted whatever
    it is claimed with; later ones only when claimed `solo`, so that a batch does not pay for one of its units.
    done: handled before. conflict: handled before with another payload. busy: claimed by a live owner elsewhere.
    """

    verdict: Literal["fresh", "done", "busy", "conflict"]
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class Finished:
    """One unit whose result is to be made durable; `emits` in order, with their ids already derived."""

    partition: TopicPartition
    offset: int
    digest: bytes
    emits: tuple[ProducerRecord, ...]
    outcome: str
    attempts: int = 1
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Transacted:
    """One unit to be invoked inside the commit's own transaction, with the handler's rows.

    `invoke(connection)` returns the finished unit, or raises: then its rows are rolled back and nothing else is.
    """

    partition: TopicPartition
    digest: bytes
    lane: object
    invoke: Callable[[Any], Finished]


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """What one flush makes durable. `offsets`: committed offset a partition, next to read."""

    leases: Mapping[TopicPartition, Lease]
    finished: Sequence[Finished]
    offsets: Mapping[TopicPartition, int]
    transacted: Sequence[Transacted] = ()


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What became of a flush.

    Attributes:
        refused: Partitions whose lease, or a claim of them, a newer owner has taken; nothing of them was written.
        transacted: For each `Transacted`, in order: the finished unit, the exception it raised, or None when it
            was not invoked (refused, or behind one of its lane that raised).
        outbox: Emits that are durable but not sent yet, in order, with the row id to confirm them by.
    """

    refused: frozenset[TopicPartition] = frozenset()
    transacted: Sequence[Finished | BaseException | None] = ()
    outbox: Sequence[tuple[int, ProducerRecord]] = ()


class IdempotencyStore(Protocol):
    """Keys of what was handled, leases that fence, and what else commits with them."""

    name: str
    carries: frozenset[Carries]
    transaction_type: type | None
    """What a plain handler may ask for as the unit's transaction, e.g. `sqlite3.Connection`."""

    async def open(self) -> None:
        """Connect and check the schema, or raise StoreError or ConfigurationError saying what to do."""

    async def acquire(self, group: str, partitions: Sequence[TopicPartition], owner: str) -> Sequence[Lease]:
        """Take the partitions at once, each with a newer epoch than anyone had."""

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> frozenset[TopicPartition]:
        """Keep the leases for another `lease_s` seconds; returns the partitions that are not ours any more."""

    async def claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """Claim units in one round trip; answers in the order of the requests.

        Raises:
            LeaseLost: One of the leases is not the newest.
        """

    async def commit(self, request: CommitRequest) -> CommitResult:
        """Make a flush durable. The same request again, after an error, writes nothing twice."""

    async def pending(self, lease: Lease) -> Sequence[tuple[int, ProducerRecord]]:
        """Emits a former owner of the partition left unsent, in order."""

    async def sent(self, rows: Sequence[int]) -> None:
        """These outbox rows are on the log."""

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give the leases up, and with them every claim that was not finished."""

    async def run(self, function: Callable[[Any], object]) -> None:
        """Run `function(connection)` in a transaction of its own; for a service's `on_start`."""

    async def close(self) -> None:
        """Disconnect."""


@dataclass(slots=True)
class UnitInfo:
    """What an instrument is told of one (event, handler)."""

    service: str
    group: str
    handler: str
    record: Record
    envelope: Envelope | None
    attributes: dict[str, Any] = field(default_factory=dict)


class Span(Protocol):
    """One `process` span, open while its unit is worked on."""

    def attempt_failed(self, attempt: int, error: BaseException) -> None:
        """Attempt number `attempt` (from 1) failed and will be repeated."""

    def sending(self, topic: str, envelope: Envelope) -> Envelope:
        """Begin a `send` span below this one; returns the envelope with that span's context."""

    def call(self, function: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """Run a handler so that spans of its own nest below this one."""

    def finish(self, outcome: str, *, attempts: int, error_type: str | None = None) -> None:
        """End it and the sends below it. `outcome`: handled, duplicate, dead_letter, dropped."""


class Instrument(Protocol):
    """Observes a service. Its failures are its own: it never raises."""

    def process(self, unit: UnitInfo, *, now_s: float) -> Span:
        """A unit begins."""

    def publish(self, topic: str, envelope: Envelope) -> tuple[Envelope, Callable[[str | None], None]]:
        """An event is published from outside a handler: its envelope with a context, and how to end the span."""

    def close(self) -> None:
        """Flush what was recorded."""
