"""What the runtime needs from the outside: Protocols, as few methods as will do.

Nothing here names a broker, a database or a tracer. An adapter states what it guarantees; the conformance
suite in `choreo.testing.conformance` holds it to that.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from choreo.access import Access
from choreo.envelope import Envelope, TraceContext
from choreo.parked import Leaves, Waits
from choreo.record import ProducerRecord, Record, TopicPartition

Start = Literal["earliest", "latest"] | int
"""Where a group without a committed offset begins: the ends of the log, or a time in ms since the epoch."""

Carries = Literal["offset", "emits", "outbox", "rows", "parked"]
"""What a store's commit makes durable in one transaction beside the keys: the committed offset and the emits on
the log themselves, an outbox of emits to be sent, the handler's own rows, queues of parked keys."""


class Clock(Protocol):
    """Time as the runtime sees it; the virtual one lives in `choreo.testing`."""

    def now_s(self) -> float:
        """Seconds since the epoch; set now and then, forward and back."""

    def monotonic_s(self) -> float:
        """Seconds since some moment, for what is to happen later; never set back."""

    async def sleep(self, delay_s: float) -> None:
        """Return `delay_s` seconds later."""


class Peer(NamedTuple):
    """Whom a transport's client talks to and as whom, for its spans; None where there is no one answer."""

    client_id: str | None = None
    address: str | None = None
    port: int | None = None
    cluster_id: str | None = None


class TopicSpec(NamedTuple):
    """A topic as it should be; `partitions` >= 1, `config` in the broker's own words."""

    name: str
    partitions: int
    replication: int = 1
    config: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class Guarded(Protocol):
    """A transport whose brokers may grant some rights and not others."""

    principal: str
    """Whom the brokers take us for."""

    async def lacking(self, wanted: Sequence[Access]) -> Sequence[Access]:
        """What of `wanted` is not granted, as far as the brokers tell."""


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

    @property
    def joined(self) -> bool:
        """Whether the group has taken it in, with partitions or without."""

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """Up to `records_max` records of resumed partitions, ascending within each, after at most `wait_s`."""

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """The committed offset, or where `start` points if nothing was ever committed.

        Raises:
            TransportError: It cannot be read. That is never taken for "nothing committed".
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch from `offset` on and let the partition flow."""

    def drained(self, partition: TopicPartition) -> bool:
        """Whether, when last looked, the log of it held nothing that `fetch` has not returned; False if unknown."""

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The next offset to be written of each, as it is now: for measuring how far behind the group is.

        Raises:
            TransportError: They cannot be read.
        """

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
    peer: Peer
    """Complete once it is open."""

    async def open(self) -> None:
        """Connect, or raise TransportError saying what to check."""

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> Consumer:
        """Join `group` for `topics`, which exist."""

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Append all, in order a key, and return when every one is acknowledged.

        Raises:
            TransportError: Some may be on the log, some not; sending the same again is safe.
        """

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicSpec]:
        """The topics that exist, by name; of `names` only, where given: a cluster may have thousands."""

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create those that are missing; an existing one is left as it is."""

    async def widen(self, partitions: Mapping[str, int]) -> None:
        """Give each topic so many partitions; a topic that has as many, or more, is left as it is."""

    async def scan(self, topics: Sequence[str], *, since_ms: int, key: bytes | None = None) -> Sequence[Record]:
        """Every record of `topics` from `since_ms` on, up to the end as it is now: for looking, not for consuming.

        With a `key` only the partition of each topic is read that the key chooses, as Java's client does.
        """

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

    `digest`: 16 bytes, the idempotency key. `fingerprint`: 8 bytes of the payload. `timestamp_ms`: log time of the
    record, by which the key is kept. `solo`: count this delivery. `queue`: asks whether that is empty; else the event
    is to wait in it.
    """

    partition: TopicPartition
    digest: bytes
    fingerprint: bytes
    handler: str
    offset: int
    correlation_id: str
    timestamp_ms: int
    solo: bool = False
    queue: bytes | None = None


class Claimed(NamedTuple):
    """A store's answer to a claim.

    fresh: ours to handle; `deliveries` >= 1 counts this one. The first redelivery after a death is counted whatever
    it is claimed with; later ones only when claimed `solo`, so that a batch does not pay for one of its units.
    done: handled before. conflict: handled before with another payload. busy: claimed by a live owner elsewhere.
    parked: something is in the queue that was asked for.
    """

    verdict: Literal["fresh", "done", "busy", "conflict"]
    deliveries: int = 1
    parked: bool = False


class Finished(NamedTuple):
    """One unit whose result is to be made durable; `emits` in order, with their ids already derived.

    `parking`: what it does to the queue of its key, in the same transaction.
    """

    partition: TopicPartition
    offset: int
    digest: bytes
    emits: tuple[ProducerRecord, ...]
    outcome: str
    attempts: int = 1
    duration_s: float = 0.0
    parking: Waits | Leaves | None = None


@dataclass(frozen=True, slots=True)
class Transacted:
    """One unit to be invoked inside the commit's own transaction, with the handler's rows.

    `invoke(transaction, connection)` returns the finished unit, or raises: then its rows are rolled back and nothing
    else is. `wants`: which of the store's `transaction_types` the handler asks for. `is_async`: `invoke` returns an
    awaitable, to be awaited on the event loop; otherwise it may block, and is called on a thread.
    """

    partition: TopicPartition
    digest: bytes
    lane: object
    wants: str
    is_async: bool
    invoke: Callable[[Any, Any], Any]


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


class StoreStats(NamedTuple):
    """What a store holds for one group.

    `keys`: of handled units; `claims`: of units in flight; `oldest_ms`, `progress_ms`: log times, None if unknown.
    """

    keys: int
    claims: int
    outbox: int
    oldest_ms: int | None
    progress_ms: int | None


class IdempotencyStore(Protocol):
    """Keys of what was handled, leases that fence, and what else commits with them.

    Attributes:
        carries: What a commit of its makes durable.
        dedupe_scope: Whether a key is known from whichever partition its event comes, or only within the first one's.
        transaction_types: Qualified names of the types a handler may ask for as the unit's transaction, such as
            `sqlite3.Connection`; none unless it carries rows.
        transactions_max: Commits with handlers inside that it runs at once; 0 without rows.
    """

    name: str
    carries: frozenset[Carries]
    dedupe_scope: Literal["anywhere", "partition"]
    transaction_types: frozenset[str]
    transactions_max: int

    async def open(self) -> None:
        """Connect, or raise StoreError saying what to check."""

    async def plan(self) -> Sequence[str]:
        """What `apply` would do to the schema, a statement each; nothing if it is as this version needs it.

        Raises:
            ConfigurationError: The schema is of a newer version of choreo, or is none of its own.
        """

    async def apply(self) -> None:
        """Do what `plan` says; several processes may at once."""

    async def acquire(self, group: str, partitions: Sequence[TopicPartition], owner: str) -> Sequence[Lease]:
        """Take the partitions at once, each with a newer epoch than anyone had."""

    async def renew(
        self, leases: Sequence[Lease], lease_s: float, progress_ms: Mapping[TopicPartition, int] | None = None
    ) -> frozenset[TopicPartition]:
        """Keep the leases for another `lease_s` seconds; returns the partitions that are not ours any more.

        `progress_ms`: the log time each partition's committed offset has come to, where that is known; for `purge`.
        """

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

    async def purge(self, group: str, topics: Sequence[str], ttl_ms: int) -> int:
        """Forget keys whose log time is more than `ttl_ms` before the group's progress; returns how many.

        The progress is the lowest that `renew` was told of any partition of `topics`; until each was told, nothing
        is forgotten. One call takes a bounded number of keys: call again while it returns any.
        """

    async def stats(self) -> Mapping[str, StoreStats]:
        """What it holds, by group."""

    async def run(self, function: Callable[[Any], object]) -> None:
        """Run `function(connection)` in a transaction of its own; for a service's `on_start`."""

    async def close(self) -> None:
        """Disconnect."""


class LogCommit(NamedTuple):
    """One input partition's part of a transaction on the log: records in order, then its committed offset."""

    records: Sequence[ProducerRecord]
    offset: int | None = None


class Transactions(Protocol):
    """Commits of one consumer group that exist on the log only whole, and only while their partition is ours.

    What is appended here is seen by readers under read_committed. A transport that has it offers
    `transactions(group) -> Transactions`.
    """

    async def fence(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Take each input partition with a newer epoch than anyone had; returns the epochs.

        When it returns no former owner can commit for them any more, and every transaction of theirs has ended.
        Taking again what is ours already ends a transaction of our own whose end is not known.

        Raises:
            TransportError: It could not be taken; try again.
        """

    async def commit(self, parts: Mapping[TopicPartition, LogCommit]) -> Mapping[TopicPartition, Exception | None]:
        """Commit each partition's part, whole or not at all; of several partitions some may fail.

        Returns, for each: None, committed; LeaseLost, a newer owner has it and nothing was written; another
        exception, it is not known whether it was committed: `fence` the partition, then look on the log.
        """

    async def give_up(self, partitions: Sequence[TopicPartition]) -> None:
        """Let go of them; a transaction that is open is never committed."""

    def read(self, partition: TopicPartition, offset: int) -> AsyncIterator[Sequence[Record]]:
        """Committed records of any partition from `offset` (or the first there is) to its end as it is now.

        The end is that of all that was appended: an open transaction is waited for. Ascending, in batches.
        """

    async def close(self) -> None:
        """Disconnect."""


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
