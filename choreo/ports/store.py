"""The port of a store: leases that fence, claims of units, and the commit that makes a flush durable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from choreo.parked import Leaves, Waits
from choreo.record import ProducerRecord, TopicPartition

Carries = Literal["offset", "emits", "outbox", "rows", "parked"]
"""What a store's commit makes durable in one transaction beside the keys: the committed offset and the emits on
the log themselves, an outbox of emits to be sent, the handler's own rows, queues of parked keys."""


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
