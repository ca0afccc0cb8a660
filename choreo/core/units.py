"""One (event, handler): the atomic unit, its states, and the only table that moves it between them.

The table runs the code, and `mermaid()` draws it: no transition exists anywhere else.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from choreo.core.retry import RetryPolicy
from choreo.record import TopicPartition

if TYPE_CHECKING:
    from choreo.core.breaker import Breaker


class State(StrEnum):
    """Where a unit stands."""

    WAITING = "waiting"  # its record is of a delay topic, and not due yet
    FOLLOWING = "following"  # another unit in flight here has the same key
    CLAIMING = "claiming"  # the store was asked
    BUSY = "busy"  # a live owner elsewhere has the key, or the store did not answer
    SUSPECT = "suspect"  # a former owner died with it: to be run alone
    READY = "ready"  # waits for its turn in the lane
    RUNNING = "running"  # its handler was invoked
    BACKOFF = "backoff"  # failed, waits at the head of its lane
    RETURNED = "returned"  # its result waits for a flush
    COMMITTING = "committing"  # its result is in a flush
    FINISHED = "finished"
    DROPPED = "dropped"  # the partition is no longer ours; somebody else will do it

    __hash__ = str.__hash__  # that of an Enum is a call of Python, at every transition


class Signal(StrEnum):
    """What happens to a unit."""

    EARLY = "early"
    CLAIM = "claim"
    FRESH = "fresh"
    DIED = "died"
    DONE = "done"
    BUSY = "busy"
    TURN = "turn"
    RAISED = "raised"
    SKIPPED = "skipped"
    DUE = "due"
    RETURNED = "returned"
    FLUSH = "flush"
    COMMITTED = "committed"
    FAILED = "failed"
    REVOKED = "revoked"

    __hash__ = str.__hash__


# By names of their own, for what happens to every unit: to look one up in its Enum is a call.
CLAIMING, READY, RUNNING = State.CLAIMING, State.READY, State.RUNNING
COMMITTING, FINISHED, DROPPED = State.COMMITTING, State.FINISHED, State.DROPPED
CLAIM, FRESH, TURN, RETURNED = Signal.CLAIM, Signal.FRESH, Signal.TURN, Signal.RETURNED


TRANSITIONS: dict[tuple[State, Signal], State] = {
    (State.FOLLOWING, Signal.EARLY): State.WAITING,
    (State.WAITING, Signal.DUE): State.FOLLOWING,
    (State.FOLLOWING, Signal.CLAIM): State.CLAIMING,
    (State.FOLLOWING, Signal.DONE): State.FINISHED,
    (State.CLAIMING, Signal.FRESH): State.READY,
    (State.CLAIMING, Signal.DIED): State.SUSPECT,
    (State.CLAIMING, Signal.DONE): State.FINISHED,
    (State.CLAIMING, Signal.BUSY): State.BUSY,
    (State.BUSY, Signal.CLAIM): State.CLAIMING,
    (State.SUSPECT, Signal.CLAIM): State.CLAIMING,
    (State.READY, Signal.TURN): State.RUNNING,
    (State.RUNNING, Signal.RAISED): State.BACKOFF,
    (State.RUNNING, Signal.SKIPPED): State.READY,
    (State.RUNNING, Signal.RETURNED): State.RETURNED,
    (State.RUNNING, Signal.COMMITTED): State.FINISHED,
    (State.BACKOFF, Signal.DUE): State.READY,
    (State.RETURNED, Signal.FLUSH): State.COMMITTING,
    (State.COMMITTING, Signal.COMMITTED): State.FINISHED,
    (State.COMMITTING, Signal.FAILED): State.RETURNED,
    **{(state, Signal.REVOKED): State.DROPPED for state in State if state not in (State.FINISHED, State.DROPPED)},
}

_FIRST = State.FOLLOWING
UNFLUSHED = frozenset({State.RUNNING, State.RETURNED, State.COMMITTING})
"""A drain waits for these; every other unfinished unit is given back at once."""


class Delivery:
    """One fetched record; `units` is empty for a record nobody here handles, and once they are taken in.

    `delay_s`: they are due so long after `timestamp_ms`, and are not claimed before. `remaining`: units unfinished.
    """

    __slots__ = ("delay_s", "offset", "payload_bytes", "remaining", "timestamp_ms", "units")

    def __init__(
        self, offset: int, payload_bytes: int, timestamp_ms: int, units: Sequence["Unit"], delay_s: float = 0.0
    ) -> None:
        self.offset = offset
        self.payload_bytes = payload_bytes
        self.timestamp_ms = timestamp_ms  # once taken in, log time: see Partition.take_in
        self.units = units
        self.delay_s = delay_s
        self.remaining = len(units)


class Unit:
    """One event to be handled by one handler.

    Attributes:
        lane: Events of one lane run in order; the record's key, or something unique when it has none.
        digest: The idempotency key, 16 bytes.
        derived: The event's id was computed by choreo, so another payload under it is no conflict.
        transacts: The handler is invoked inside the transaction its key commits in.
        retry: Its attempts in place.
        breaker: That of its handler, or None.
        attempts_before: Attempts in former places, before it came by a delay topic; `attempts` goes on from there.
        delayable: Once its attempts here are used up it goes to a delay topic, not to the dead letters.
        poison: Reason to put it aside without invoking anything, or None.
        queue: Of its key, where it goes when it is given up; None: to the dead letters. See `choreo.core.parking`.
        redriven: It comes from its queue.
        work: What the runtime needs to invoke it; the core never looks inside.
    """

    __slots__ = (
        "attempts",
        "attempts_before",
        "breaker",
        "correlation_id",
        "delayable",
        "deliveries",
        "derived",
        "digest",
        "entry",
        "fingerprint",
        "followers",
        "handler",
        "lane",
        "offset",
        "partition",
        "poison",
        "queue",
        "redriven",
        "result",
        "retry",
        "solo",
        "state",
        "transacts",
        "work",
    )

    def __init__(
        self,
        partition: TopicPartition,
        offset: int,
        lane: object,
        handler: str,
        digest: bytes,
        fingerprint: bytes,
        correlation_id: str,
        derived: bool,
        transacts: bool,
        retry: RetryPolicy,
        attempts_before: int = 0,
        delayable: bool = False,
        breaker: "Breaker | None" = None,
        poison: str | None = None,
        queue: bytes | None = None,
        redriven: bool = False,
        work: Any = None,
    ) -> None:
        self.partition = partition
        self.offset = offset
        self.lane: Any = lane
        self.handler = handler
        self.digest = digest
        self.fingerprint = fingerprint
        self.correlation_id = correlation_id
        self.derived = derived
        self.transacts = transacts
        self.retry = retry
        self.poison = poison
        self.queue = queue
        self.redriven = redriven
        self.work = work
        self.state = _FIRST
        self.attempts = self.attempts_before = attempts_before
        self.delayable = delayable
        self.breaker = breaker
        self.deliveries = 1
        self.solo = False
        self.entry: Delivery = None  # type: ignore[assignment]  # set when its record is taken in
        self.followers: list[Unit] | tuple[()] = ()
        self.result: Any = None

    def advance(self, signal: Signal) -> None:
        """Move along the table; a transition it does not have is a bug in choreo."""
        self.state = TRANSITIONS[self.state, signal]

    def follow(self, leader: "Unit") -> None:
        """Wait for what becomes of another unit with the same key."""
        if leader.followers:
            leader.followers.append(self)
        else:
            leader.followers = [self]

    def __repr__(self) -> str:
        return f"<Unit {self.handler} {self.partition}@{self.offset} {self.state}>"


def advance(units: Iterable[Unit], signal: Signal) -> None:
    """Move many along the table."""
    table = TRANSITIONS
    for unit in units:
        unit.state = table[unit.state, signal]


def mermaid() -> str:
    """The table as a Mermaid state diagram, for docs/engine.md."""
    lines = ["stateDiagram-v2", "    [*] --> following", "    [*] --> claiming"]
    for (state, signal), target in TRANSITIONS.items():
        if signal is not Signal.REVOKED:
            lines.append(f"    {state} --> {target}: {signal}")
    lines += ["    note right of dropped: revoked, from every unfinished state", "    finished --> [*]"]
    return "\n".join(lines) + "\n"
