"""The app whose stored records are kept of every release: one of each kind of thing that choreo stores.

What it does depends on the `kind` of what is asked, and on whether there is `TROUBLE`. It stays as it is: what it
left in a store under an old release has to be gone on with under today's.
"""

from datetime import timedelta

from choreo import App, Command, Delayed, Event, Flow, ProcessManager, Reject, RetryPolicy, Saga, Service, Step, join
from choreo.process import FlowOverdue, overdue

TROUBLE = set[str]()
"""Kinds of what cannot be done now."""


class Asked(Event, type="stored.asked", topic="asked", key="id"):
    """What begins most of it."""

    id: str
    kind: str
    note: str = ""


class Answered(Event, type="stored.answered", topic="answered", key="id"):
    """By whichever handler."""

    id: str
    by: str
    note: str = ""


class Approved(Event, type="stored.approved", topic="approved", key="id"):
    """What the approval waits for."""

    id: str


class Archived(Event, type="stored.archived", topic="approved", key="id"):
    """What it takes only later, and keeps until then."""

    id: str


class Book(Command, type="stored.book", topic="commands", key="id"):
    """First step of the trip."""

    id: str


class Booked(Event, type="stored.booked", topic="replies", key="id"):
    """It is done."""

    id: str
    room: str


class Unbook(Command, type="stored.unbook", topic="commands", key="id"):
    """Undo it."""

    id: str
    room: str = ""


class Unbooked(Event, type="stored.unbooked", topic="replies", key="id"):
    """It is undone."""

    id: str


class Pay(Command, type="stored.pay", topic="commands", key="id"):
    """Second step."""

    id: str
    room: str


class Paid(Event, type="stored.paid", topic="replies", key="id"):
    """It is done."""

    id: str


class Declined(Event, type="stored.declined", topic="replies", key="id"):
    """It is not."""

    id: str


desk = Service("desk", retry=RetryPolicy(1))


def _asked(asked: Asked, kind: str, by: str) -> Answered | None:
    if asked.kind != kind:
        return None
    if kind in TROUBLE:
        raise ConnectionError(kind)
    return Answered(id=asked.id, by=by, note=asked.note)


@desk.handler(Asked)
def greet(asked: Asked) -> Answered | None:
    """At once."""
    return _asked(asked, "plain", "greet")


@desk.handler(Asked)
def refuse(asked: Asked) -> Answered | None:
    """In trouble a dead letter."""
    if asked.kind == "refused" and asked.kind in TROUBLE:
        raise Reject("not today")
    return _asked(asked, "refused", "refuse")


@desk.handler(Asked, retry=Delayed(60, 3600))
def later(asked: Asked) -> Answered | None:
    """In trouble later."""
    return _asked(asked, "later", "later")


@desk.handler(Asked, order="key")
def strict(asked: Asked) -> Answered | None:
    """In trouble its key is parked."""
    return _asked(asked, "strict", "strict")


class Approval(ProcessManager, version=1, by="id", name="approval"):
    """Waits for a word, and is escalated without one."""

    note: str = ""


waiting, escalated, approved = Approval.state("waiting"), Approval.state("escalated"), Approval.state("approved")
archived = Approval.final("archived")


@Approval.starts(Asked, to=waiting)
def opened(asked: Asked) -> Approval:
    """Keep what was said."""
    return Approval(note=asked.note)


@waiting.after(timedelta(days=3), to=escalated)
def escalate(self: Approval) -> Answered:
    """Nobody said a word."""
    return Answered(id="(timer)", by="escalate", note=self.note)


@waiting.on(Approved, to=approved)
@escalated.on(Approved, to=approved)
def decide(self: Approval, decision: Approved) -> Answered:
    """The word came."""
    return Answered(id=decision.id, by="decide", note=self.note)


@approved.on(Archived, to=archived)
def put_away(self: Approval, archive: Archived) -> Answered:
    """It may have come before."""
    return Answered(id=archive.id, by="put_away", note=self.note)


trip = Saga(
    "trip",
    starts=Asked,
    by="id",
    steps=[
        Step(Book, ok=Booked, undo=Unbook, undone=Unbooked, timeout=timedelta(days=30)),
        Step(Pay, ok=Paid, failed=Declined),
    ],
)


@join(by="id", within=timedelta(days=30), name="both")
def both(asked: Asked, approval: Approved | None, booked: Booked | None) -> Answered:
    """As soon as all three are there."""
    return Answered(id=asked.id, by="both", note=asked.note + (booked.room if booked is not None else ""))


answer = Flow("answer", starts=Asked, ends=Answered, deadline=timedelta(days=2))


@overdue(answer)
def answer_late(late: FlowOverdue) -> Answered:
    """Say so."""
    return Answered(id=late.key, by="answer_late")


def make_app() -> App:
    """All of it."""
    return App(desk, Approval, trip, both, answer_late, flows=[answer], name="stored")
