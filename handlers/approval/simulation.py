"""The approval in a simulated world, a day of which takes some seconds, while version 2 replaces version 1.

`choreo simulate handlers.approval.simulation:simulation`
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from choreo import App, Event
from choreo.testing.simulation import Faults, Simulation, World
from choreo.testing.simulation.instances import unended
from choreo.testing.simulation.journal import last_stored

from .app import app, approval, chase, mailbox
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
from .process_v1 import ApprovalV1

HASTEN = 20_000.0
"""A day is 4.3 s: the longest approval takes eight of them."""
DAY_MS = 86_400_000 / HASTEN
REQUESTS = 20
ENDINGS: dict[type[Event], str] = {
    ExpenseApproved: "approved",
    ExpenseRejected: "rejected",
    ExpenseWithdrawn: "withdrawn",
}


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
    ends: dict[str, set[str]] = defaultdict(set)
    for ended in _ended(world):
        ends[ended.request_id].add(ended.outcome)
    for number in range(REQUESTS):
        outcomes = ends[f"r{number}"]
        if len(outcomes) != 1:
            yield f"r{number} ended as {sorted(outcomes) or 'nothing'}"


def as_its_version_says(world: World) -> Iterator[str]:
    """What came in time decides; a large expense is looked at twice, if and only if it began under version 2."""
    submitted = {each.request_id: each for each in world.published.values() if isinstance(each, ExpenseSubmitted)}
    ends = last_stored(world, "approval")
    decided = _decided(world)
    looked_again = {letter.request_id for letter in _letters(world).values() if letter.to == "finance"}
    for outcome in _ended(world):
        id_ = outcome.request_id
        said, in_time = decided.get(id_, ("expired", False))
        twice = ends[id_].version > 1 and submitted[id_].cents > LARGE_CENTS and said == "approved"
        wanted = "expired" if twice or not in_time else said
        if outcome.outcome not in (said, "expired") or (in_time and outcome.outcome != wanted):
            yield f"{id_} of version {ends[id_].version} is {outcome.outcome}, and was {said}"
        if id_ in looked_again and not twice:
            yield f"{id_} of version {ends[id_].version} was looked at twice"
        if twice and in_time and id_ not in looked_again:
            yield f"{id_} of version {ends[id_].version} was not looked at twice"


def _ended(world: World) -> Iterator[ApprovalEnded]:
    for record, envelope in world.events():
        if envelope is not None and (envelope.source, envelope.type) == ("/approval", ApprovalEnded.event_type):
            yield ApprovalEnded.from_payload(record.value or b"")


def _decided(world: World) -> dict[str, tuple[str, bool]]:
    """What was decided of each, and whether that was handled before it came to an end without it."""
    group = world.app.services["approval"].group
    query = 'SELECT topic, "partition", offset, done_ms FROM choreo_key WHERE "group" = ? AND done = 1'
    done_ms = {tuple(where): at_ms for *where, at_ms in world.rows(query, group, service="approval")}
    ends = last_stored(world, "approval")
    found: dict[str, tuple[str, bool]] = {}
    for record, envelope in world.events():
        event: Any = None if envelope is None else world.published.get(envelope.id)
        if type(event) in ENDINGS:
            at_ms = done_ms.get((record.topic, record.partition, record.offset))
            before = found.get(event.request_id, ("", False))[1]
            in_time = at_ms is not None and at_ms < ends[event.request_id].at_ms
            found[event.request_id] = ENDINGS[type(event)], before or in_time
    return found


def letters_in_time(world: World) -> Iterator[str]:
    """Version 1 writes one letter. Version 2 reminds after a day and two, and escalates after three, each once.

    Days are counted from the expense itself: what is sent may come late on the log, after a crash.
    """
    submitted_ms = {
        event.request_id: record.timestamp_ms
        for record, envelope in reversed(world.events())
        if envelope is not None and isinstance(event := world.published.get(envelope.id), ExpenseSubmitted)
    }
    sent: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for (_, sent_ms), letter in _letters(world).items():
        id_, days = letter.request_id, {"reminder 1": 1, "reminder 2": 2, "nobody decided": 3}.get(letter.text, 0)
        since_ms = sent_ms - submitted_ms[id_]
        if since_ms < days * DAY_MS - 1:
            yield f"{letter.text!r} for {id_} came after {since_ms / DAY_MS:.2f} days"
        if days and (letter.to, letter.text) in sent[id_]:
            yield f"{letter.text!r} for {id_} was sent to {letter.to} twice"
        sent[id_].append((letter.to, letter.text))
    for id_, each in last_stored(world, "approval").items():
        if each.version == 1 and len(sent[id_]) != 1:
            yield f"{id_} of version 1 had the letters {sent[id_]}"


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


def _letters(world: World) -> dict[tuple[str, int], SendLetter]:
    """Each once, by id and time: one that is on the log twice is dropped by the mailbox."""
    found: dict[tuple[str, int], SendLetter] = {}
    ids: set[str] = set()
    for record, envelope in world.events():
        if envelope is not None and (envelope.source, envelope.type) == ("/approval", SendLetter.event_type):
            if envelope.id not in ids:
                found[envelope.id, record.timestamp_ms] = SendLetter.from_payload(record.value or b"")
            ids.add(envelope.id)
    return found


simulation = Simulation(
    App(ApprovalV1, chase, mailbox, flows=[approval]),
    expenses,
    checkers=[ended_once, as_its_version_says, letters_in_time, chased_once, unended],
    upgrade=app,
    faults=replace(Faults(), deploy=0.02),
    hasten=HASTEN,
)
