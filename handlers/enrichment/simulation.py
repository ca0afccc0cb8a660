"""The enrichment in a simulated world: `choreo simulate handlers.enrichment.simulation:simulation`."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from choreo import Event
from choreo.testing.simulation import Simulation, World
from choreo.testing.simulation.instances import unended
from choreo.testing.simulation.journal import last_stored

from .app import WITHIN, app, enrich
from .events import CreditScored, GeoFound, LeadEnriched, LeadReceived, NewsFound
from .providers import CreditBureau, FakeArchive, FakeBureau, NewsArchive

LEADS = 25
ANSWERS: Mapping[str, type[Event]] = {"/geo": GeoFound, "/credit": CreditScored, "/news": NewsFound}
"""By the source of whoever gives them, in the order in which the join takes them."""


def leads(chance: random.Random) -> Sequence[LeadReceived]:
    """About some companies the bureau thinks too long, for some the archive is down."""
    return [
        LeadReceived(
            lead_id=f"l{number}",
            company=f"Company {chance.randrange(1_000)}",
            email=f"{number}@example.{chance.choice(['de', 'com'])}",
        )
        for number in range(LEADS)
    ]


def enriched_once(world: World) -> Iterator[str]:
    """Every lead, whatever did not answer."""
    rows = Counter(row[0] for row in world.rows("SELECT lead_id FROM sales_lead", service="sales"))
    for lead_id in (event.lead_id for event in world.published.values()):
        if rows[lead_id] != 1:
            yield f"{lead_id} was enriched {rows[lead_id]} times"


def partial_only_when_late(world: World) -> Iterator[str]:
    """What is missing was given its time, and what is there is what was answered."""
    leads: dict[str, tuple[LeadReceived, int]] = {}
    answers: dict[tuple[str, str], Any] = {}
    for record, envelope in world.events():
        if envelope is None:
            continue
        if envelope.source == "/simulation":
            lead = world.published[envelope.id]
            leads.setdefault(lead.lead_id, (lead, record.timestamp_ms))
        elif envelope.source in ANSWERS:
            answer = ANSWERS[envelope.source].from_payload(record.value or b"")
            answers[envelope.source, (record.key or b"").decode()] = answer
        elif envelope.source == "/enrich" and envelope.type == LeadEnriched.event_type:
            enriched = LeadEnriched.from_payload(record.value or b"")
            lead, began_ms = leads[enriched.lead_id]
            waited_ms = record.timestamp_ms - began_ms
            if enriched.missing and waited_ms < WITHIN.total_seconds() * 1000 - 1:
                yield f"{lead.lead_id} went without {', '.join(enriched.missing)} after {waited_ms} ms"
            there = [
                answers.get((source, lead.lead_id)) if source[1:] not in enriched.missing else None
                for source in ANSWERS
            ]
            if enrich(lead, *there) != enriched:
                yield f"{lead.lead_id} has what was not answered"


def partial_exactly_on_time_out(world: World) -> Iterator[str]:
    """What the join took before it ended is there; what is missing came later or never, and then its timer fired."""
    query = 'SELECT topic, "partition", offset, done_ms FROM choreo_key WHERE "group" = ? AND done = 1'
    group = world.app.services["enrich"].group
    taken_ms = {tuple(where): at_ms for *where, at_ms in world.rows(query, group, service="enrich")}
    ended = last_stored(world, "enrich")
    missing = {
        each.lead_id: each.missing
        for record, envelope in world.events()
        if envelope is not None and envelope.source == "/enrich" and envelope.type == LeadEnriched.event_type
        for each in [LeadEnriched.from_payload(record.value or b"")]
    }
    for record, envelope in world.events():
        lead_id = (record.key or b"").decode()
        if envelope is None or envelope.source not in ANSWERS or lead_id not in missing:
            continue
        at_ms = taken_ms.get((record.topic, record.partition, record.offset))
        if at_ms is not None and at_ms < ended[lead_id].at_ms and envelope.source[1:] in missing[lead_id]:
            before_ms = ended[lead_id].at_ms - at_ms
            yield f"{lead_id} went without {envelope.source[1:]}, which had come {before_ms} ms before"
    for lead_id, names in missing.items():
        if ended[lead_id].state != ("partial" if names else "complete"):
            yield f"{lead_id} is {ended[lead_id].state}, without {', '.join(names) or 'nothing'}"


simulation = Simulation(
    app,
    leads,
    resources={CreditBureau: FakeBureau(), NewsArchive: FakeArchive()},
    checkers=[enriched_once, partial_only_when_late, partial_exactly_on_time_out, unended],
)
