"""Queues of parked keys: what a unit of a handler with `order="key"` does to that of its key, in its commit.

A queue is of one handler and one record key. The key is parked as long as something is in its queue: the event that
failed, at its head, and whatever came after it. What a store has of an event is the record that gives it to its
handler again, so it can be sent without being understood.

A store that has queues offers "parked" among what it `carries`, and is a `ParkedStore`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from choreo.record import ProducerRecord


class Waits(NamedTuple):
    """The event waits in the queue: at its end, or in its place if it is there.

    If it is the only one and did not fail, what it waited for is gone meanwhile: `record` is emitted at once.

    Attributes:
        queue: 16 bytes, of the handler and the record key.
        row: 16 bytes, of the event within all queues.
        record: Gives it to its handler again.
        reason: Why the handler was given up; empty if the event only waits behind another.
        attempts: Invocations of it since it last waited.
        due_s: In how many seconds `record` is to be sent, if it is the head then; None: when somebody says so.
    """

    queue: bytes
    row: bytes
    handler: str
    record: ProducerRecord
    reason: str = ""
    detail: str = ""
    attempts: int = 0
    correlation_id: str = ""
    due_s: float | None = None


class Leaves(NamedTuple):
    """The event, which was the head, is done with: the next one's `record` is emitted.

    If there is none the key is parked no more, where the commit has put the unit's emits on the log. Where they are
    yet to be sent, what is handled next could overtake them: then `closing` takes the event's place and is emitted,
    behind them. It comes back as a unit that leaves the queue with no `closing`.
    """

    queue: bytes
    row: bytes
    closing: ProducerRecord | None = None


class Parked(NamedTuple):
    """The head of a queue, for looking and for sending.

    Attributes:
        behind: How many events wait behind it.
        parked_ms: Since when the event waits, on the store's clock.
        due_ms: When `record` is next to be sent; None: when somebody says so.
    """

    row: bytes
    handler: str
    record: ProducerRecord
    reason: str
    detail: str
    attempts: int
    correlation_id: str
    parked_ms: int
    due_ms: int | None
    behind: int = 0


class ParkedStore(Protocol):
    """Looks at queues from outside of any commit. Only commits change them.

    Attributes:
        on_timer: Called on the event loop after each commit of this process with a `due_s`, with the least of them.
    """

    on_timer: list[Callable[[float], None]]

    async def parked(self, group: str, *, handler: str = "", key: bytes | None = None) -> Sequence[Parked]:
        """The heads of a group's queues, the longest parked first; of one handler, of one record key."""

    async def parked_keys(self, group: str) -> int:
        """How many queues there are."""

    async def heads_due(self, group: str, *, limit: int, claim_s: float) -> tuple[Sequence[Parked], float]:
        """Heads whose record is to be sent now, at most `limit`; they are not found again for `claim_s` seconds.

        Returns them, and in how many seconds the next one is to be sent: infinite if there is none.
        """

    async def heads_sent(self, heads: Sequence[Parked], *, again_s: float) -> None:
        """Their records are on the log; one whose event is still the head `again_s` later is found again."""
