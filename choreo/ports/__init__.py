"""What the runtime needs from the outside: Protocols, as few methods as will do. One module a port; import from here.

Nothing here names a broker, a database or a tracer. An adapter states what it guarantees; the conformance
suite in `choreo.testing.conformance` holds it to that.
"""

from choreo.ports.clock import Clock
from choreo.ports.instrument import Backlog, FlowMark, Instrument, Level, Levels, Span, UnitInfo
from choreo.ports.store import (
    Carries,
    Claimed,
    ClaimRequest,
    CommitRequest,
    CommitResult,
    Finished,
    IdempotencyStore,
    Lease,
    StoreStats,
    Transacted,
)
from choreo.ports.transactions import LogCommit, Transactions
from choreo.ports.transport import Assignment, Consumer, Guarded, Peer, Start, TopicSpec, Transport

__all__ = [
    "Assignment",
    "Backlog",
    "Carries",
    "ClaimRequest",
    "Claimed",
    "Clock",
    "CommitRequest",
    "CommitResult",
    "Consumer",
    "Finished",
    "FlowMark",
    "Guarded",
    "IdempotencyStore",
    "Instrument",
    "Lease",
    "Level",
    "Levels",
    "LogCommit",
    "Peer",
    "Span",
    "Start",
    "StoreStats",
    "TopicSpec",
    "Transacted",
    "Transactions",
    "Transport",
    "UnitInfo",
]
