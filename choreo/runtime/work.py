"""What passes from routing to invoking: an event that was read, its handler, and how it came to it."""

from typing import Any

from choreo.binding import BoundHandler
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.event import Event
from choreo.ports import FlowMark
from choreo.record import Record
from choreo.runtime.replaying import DECODE, Replay
from choreo.runtime.retrying import Retried


class Work:
    """What the runtime needs to invoke a unit.

    `replay`: it was ordered by an operator. `retried`: it comes by a delay topic. `outside_key`: what the handler
    gives to whom it calls, if that is not the unit's own key. `flow`: what a watch has found by it.
    """

    __slots__ = (
        "bound",
        "envelope",
        "error",
        "event",
        "flow",
        "outside_key",
        "record",
        "replay",
        "retried",
        "span",
        "started_s",
    )

    def __init__(
        self,
        record: Record,
        envelope: Envelope | None,
        event: Event | None,
        bound: BoundHandler | None,
        error: DecodeError | None = None,
        *,
        replay: Replay | None = None,
    ) -> None:
        self.record = record
        self.envelope = envelope
        self.event = event
        self.bound = bound
        self.error = error
        self.replay = replay
        self.retried: Retried | None = None
        self.span: Any = None
        self.started_s = 0.0
        self.outside_key: bytes | None = None
        self.flow: FlowMark | None = None

    @property
    def handler(self) -> str:
        """The handler's name; a replay that no handler can be given any more is still its handler's."""
        if self.bound is not None:
            return self.bound.handler.name
        sent = self.retried or self.replay
        return DECODE if sent is None else sent.handler
