"""The approval in a simulated world, a day of which takes some seconds.

`choreo simulate handlers.approval.simulation:simulation`
"""

import random
from collections.abc import Iterator, Sequence

from choreo import Event
from choreo.testing.simulation import Simulation, World

from .app import app
from .events import (
    ApprovalDelegated,
    ApprovalEnded,
    ExpenseApproved,
    ExpenseRejected,
    ExpenseSubmitted,
    ExpenseWithdrawn,
    SendLetter,
)
from .process import LARGE_CENTS

HASTEN = 20_000.0
"""A day is 4.3 s: the longest approval takes eight of them."""
DAY_MS = 86_400_000 / HASTEN
REQUESTS = 20


def expenses(chance: random.Random) -> Sequence[Event]:
    """Expenses and what becomes of them; some decisions overtake what they are about, and some never come."""
    events: list[Event] = []
    for number in range(REQUESTS):
        id_ = f"r{number}"
        cents = chance.choice([5_000, LARGE_CENTS + 1])
        later: list[Event] = [
            ExpenseSubmitted(request_id=id_, employee=f"e{number}", manager=f"m{number % 3}", cents=cents)
        ]
        if chance.random() < 0.3:
            later.append(ApprovalDelegated(request_id=id_, to="deputy"))
        ending = chance.random()
        if ending < 0.4:
            later.append(ExpenseApproved(request_id=id_, by="m"))
        elif ending < 0.6:
            later.append(ExpenseRejected(request_id=id_, by="m", reason="too much"))
        elif ending < 0.7:
            later.append(ExpenseWithdrawn(request_id=id_))
        if chance.random() < 0.2:
            later.reverse()
        events += later
    return events


def ended_once(world: World) -> Iterator[str]:
    """Every expense came to one end, and what was decided stands."""
    ends: dict[str, set[str]] = {}
    for record, envelope in world.events():
        if envelope is not None and (envelope.source, envelope.type) == ("/approval", ApprovalEnded.event_type):
            ended = ApprovalEnded.from_payload(record.value or b"")
            ends.setdefault(ended.request_id, set()).add(ended.outcome)
    for number in range(REQUESTS):
        outcomes = ends.get(f"r{number}", set())
        if len(outcomes) != 1:
            yield f"r{number} ended as {sorted(outcomes) or 'nothing'}"


def timers_on_time(world: World) -> Iterator[str]:
    """No reminder came before its day, none came twice; an escalation is three days after whoever was asked last."""
    asked_ms: dict[str, int] = {}
    seen: set[tuple[str, str, str]] = set()
    sent: set[str] = set()
    for record, envelope in world.events():
        if envelope is None or envelope.source != "/approval" or envelope.type != SendLetter.event_type:
            continue
        if envelope.id in sent:  # it is on the log twice, and the mailbox drops it
            continue
        sent.add(envelope.id)
        letter = SendLetter.from_payload(record.value or b"")
        id_, since_ms = letter.request_id, record.timestamp_ms - asked_ms.get(letter.request_id, 0)
        if letter.text == "please decide":
            asked_ms[id_] = record.timestamp_ms
            continue
        days = {"reminder 1": 1, "reminder 2": 2, "nobody decided": 3}.get(letter.text, 0)
        if days and since_ms < (days - 1) * DAY_MS:
            yield f"{letter.text!r} for {id_} came {since_ms / DAY_MS:.2f} days after {letter.to} was asked"
        if days and (id_, letter.to, letter.text) in seen:
            yield f"{letter.text!r} for {id_} was sent to {letter.to} twice"
        seen.add((id_, letter.to, letter.text))


simulation = Simulation(app, expenses, checkers=[ended_once, timers_on_time], hasten=HASTEN)
