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


def chased_once(world: World) -> Iterator[str]:
    """Finance heard, once and not before a week, of the expenses that the watch had to tell of, and of no other."""
    requests = {id_: event.request_id for id_, event in world.published.items()}
    submitted_ms: dict[str, int] = {}
    letters: dict[str, dict[str, int]] = {}
    for record, envelope in world.events():
        if envelope is None or record.key is None:
            continue
        if (envelope.source, envelope.type) == ("/chase", SendLetter.event_type):
            letters.setdefault(record.key.decode(), {}).setdefault(envelope.id, record.timestamp_ms)
        elif isinstance(world.published.get(envelope.id), ExpenseSubmitted):
            submitted_ms.setdefault(record.key.decode(), record.timestamp_ms)
    late = {
        requests[flow]
        for flow, state in world.rows("SELECT key, state FROM choreo_instance WHERE process = 'chase'")
        if state in ("overdue", "ended-late")
    }
    for request in late ^ letters.keys():
        yield f"finance was told {len(letters.get(request, ()))} times of {request}, late or not"
    for request, at_ms in letters.items():
        if len(at_ms) > 1 or min(at_ms.values()) < submitted_ms[request] + 7 * DAY_MS - 1:
            yield f"finance was told {len(at_ms)} times of {request}, or too early"


def timers_on_time(world: World) -> Iterator[str]:
    """No reminder came before its day, and none twice to the same person; nor did an escalation.

    Days are counted from the expense itself: what is sent may come late on the log, after a crash.
    """
    submitted_ms = {
        event.request_id: record.timestamp_ms
        for record, envelope in reversed(world.events())
        if envelope is not None and isinstance(event := world.published.get(envelope.id), ExpenseSubmitted)
    }
    seen: set[tuple[str, str, str]] = set()
    ids: set[str] = set()
    for record, envelope in world.events():
        if envelope is None or envelope.source != "/approval" or envelope.type != SendLetter.event_type:
            continue
        if envelope.id in ids:  # it is on the log twice, and the mailbox drops it
            continue
        ids.add(envelope.id)
        letter = SendLetter.from_payload(record.value or b"")
        days = {"reminder 1": 1, "reminder 2": 2, "nobody decided": 3}.get(letter.text, 0)
        since_ms = record.timestamp_ms - submitted_ms[letter.request_id]
        if since_ms < days * DAY_MS - 1:
            yield f"{letter.text!r} for {letter.request_id} came after {since_ms / DAY_MS:.2f} days"
        if days and (letter.request_id, letter.to, letter.text) in seen:
            yield f"{letter.text!r} for {letter.request_id} was sent to {letter.to} twice"
        seen.add((letter.request_id, letter.to, letter.text))


simulation = Simulation(app, expenses, checkers=[ended_once, timers_on_time, chased_once], hasten=HASTEN)
