"""The enrichment in a simulated world: `choreo simulate handlers.enrichment.simulation:simulation`."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from choreo import Event
from choreo.testing.simulation import Simulation, World

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


simulation = Simulation(
    app,
    leads,
    resources={CreditBureau: FakeBureau(), NewsArchive: FakeArchive()},
    checkers=[enriched_once, partial_only_when_late],
)
