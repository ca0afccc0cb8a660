"""What goes into the engine and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from choreo.core.retry import RetryPolicy
from choreo.core.units import Delivery, Unit
from choreo.errors import Disposition
from choreo.ports import Claimed as Verdict
from choreo.record import TopicPartition


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one service in one process; every queue has one.

    Attributes:
        concurrency: Handlers running at once.
        flush_units: A flush is due when so many results wait.
        flush_s: A flush is due so long after the first waiting result, in seconds.
        transact_units: Units invoked inside one transaction at most, so that a database lock is held briefly.
        transactions_max: Transactions with handlers inside that run at once; the store says how many it takes.
        unfinished_max: Unfinished records of a partition at which it is paused; it flows again at half of it.
        unfinished_bytes_max: The same, by payload bytes.
        unfinished_span_max: Records a partition may be ahead of its watermark; what one slow event can cost
            in redeliveries after a crash.
        together_max: Deliveries of a unit beside others; one that outlived none of them is run alone. Not 1: after a
            crash all that was claimed would be run one by one, and nearly all of it is innocent.
        deliveries_max: A unit whose process died with it more often is dead-lettered as `crashed`.
        busy_s: Seconds until a key claimed elsewhere is asked for again.
        failure_s: Seconds until a store that failed is asked again.
    """

    concurrency: int = 64
    flush_units: int = 256
    flush_s: float = 0.005
    transact_units: int = 128
    transactions_max: int = 1
    unfinished_max: int = 1_000
    unfinished_bytes_max: int = 32 * 1024 * 1024
    unfinished_span_max: int = 10_000
    together_max: int = 2
    deliveries_max: int = 5
    busy_s: float = 0.2
    failure_s: float = 0.5


# ---- inputs


class Assigned(NamedTuple):
    """The partition is ours and will be fetched from `offset` on."""

    partition: TopicPartition
    offset: int


class Fetched(NamedTuple):
    """Records of one partition, n >= 1, ascending offset; `now_ms`: the wall clock, which log time may not pass."""

    partition: TopicPartition
    deliveries: Sequence[Delivery]
    now_ms: int


class Claimed(NamedTuple):
    """The store's verdicts, one for each unit of a `Claim`, in its order."""

    units: Sequence[Unit]
    verdicts: Sequence[Verdict]


class ClaimFailed(NamedTuple):
    """The store did not answer a `Claim`."""

    units: Sequence[Unit]


class Returned(NamedTuple):
    """A handler returned, or what puts the unit aside was made: `result` is what the flush needs."""

    unit: Unit
    result: Any


class Raised(NamedTuple):
    """A handler raised; `delay_s` where it named one.

    `retry`: the policy for what it raised, if not the unit's. `trips`: it counts for the handler's breaker.
    """

    unit: Unit
    disposition: Disposition
    reason: str
    delay_s: float | None = None
    retry: RetryPolicy | None = None
    trips: bool = False


class Outcome(NamedTuple):
    """What became of a unit invoked inside a transaction: `result`, or `raised`, or neither: not invoked."""

    unit: Unit
    result: Any = None
    raised: Raised | None = None


class Transacted(NamedTuple):
    """A transaction has ended, its emits are sent; `outcomes` tells of each unit of a `Transact`.

    `refused` partitions wrote nothing. `failed`: nothing is known to be durable, and the store needs a pause.
    """

    outcomes: Sequence[Outcome]
    refused: frozenset[TopicPartition] = frozenset()
    failed: bool = False


class Committed(NamedTuple):
    """The flush is durable, its emits sent. `refused` partitions wrote nothing: a newer owner has them."""

    flush: int
    refused: frozenset[TopicPartition] = frozenset()


class CommitFailed(NamedTuple):
    """It is not known to be durable; the same values are to be committed again."""

    flush: int


class Tick(NamedTuple):
    """Time has passed."""


class Draining(NamedTuple):
    """Invoke nothing more of these partitions; give back what has not begun."""

    partitions: Sequence[TopicPartition]


class Revoked(NamedTuple):
    """These partitions are not ours any more: drop every result."""

    partitions: Sequence[TopicPartition]


Input = (
    Assigned
    | Fetched
    | Claimed
    | ClaimFailed
    | Returned
    | Raised
    | Transacted
    | Committed
    | CommitFailed
    | Tick
    | Draining
    | Revoked
)


# ---- effects


class Claim(NamedTuple):
    """Ask the store for these keys in one call; `solo`: one suspect, about to run alone."""

    units: Sequence[Unit]
    solo: bool = False


class Invoke(NamedTuple):
    """Call the unit's handler."""

    unit: Unit


class DeadLetter(NamedTuple):
    """Make the unit's dead letter and return it as its result."""

    unit: Unit
    reason: str


class Delay(NamedTuple):
    """Make the unit's record for its next delay topic and return it as its result; else it is a dead letter."""

    unit: Unit
    reason: str


class Park(NamedTuple):
    """Make what the unit does to the queue of its key, and return it as its result; else it is a dead letter.

    `reason`: why it is given up; empty if it only waits behind another.
    """

    unit: Unit
    reason: str


class Transact(NamedTuple):
    """Invoke these inside one transaction of the store; units of a lane are in order, and nowhere else."""

    units: Sequence[Unit]


class Commit(NamedTuple):
    """Make a flush durable: `units` with their results, `offsets` next to read."""

    flush: int
    units: Sequence[Unit]
    offsets: Mapping[TopicPartition, int]


class Pause(NamedTuple):
    """Fetch no more of it for now."""

    partition: TopicPartition


class Resume(NamedTuple):
    """Fetch of it again."""

    partition: TopicPartition


class Duplicate(NamedTuple):
    """The unit was handled before; nothing is invoked."""

    unit: Unit


class Broken(NamedTuple):
    """The breaker of a handler has opened for `pause_s` seconds, or closed (None)."""

    handler: str
    pause_s: float | None


class Wait(NamedTuple):
    """Send a `Tick` at `until_s` unless something else comes first."""

    until_s: float


Effect = Claim | Invoke | Transact | DeadLetter | Delay | Park | Commit | Pause | Resume | Duplicate | Broken | Wait
