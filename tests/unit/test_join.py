"""A join driven event by event: complete in any order, partial when the time is up, and each lead once."""

from datetime import timedelta

import pytest

from choreo import App, Context, DeclarationError, Event, Flow, Service, join
from choreo.core.definition import problems
from choreo.flow.statechart import state_diagram
from choreo.process import Join
from choreo.testing import TestApp
from tests.unit.process_stage import Driven

WITHIN = timedelta(seconds=30)


class LeadReceived(Event, type="lead.received", version=1, topic="leads", key="lead_id"):
    """Somebody may buy something."""

    lead_id: str


class GeoFound(Event, type="lead.geo", version=1, topic="geo", key="lead_id"):
    """Where they are."""

    lead_id: str
    country: str


class CreditScored(Event, type="lead.credit", version=1, topic="credit", key="lead_id"):
    """What they are good for."""

    lead_id: str
    score: int


class LeadEnriched(Event, type="lead.enriched", version=1, topic="leads", key="lead_id"):
    """What is known of them."""

    lead_id: str
    country: str | None
    score: int | None


@join(by="lead_id", within=WITHIN)
def enrich_lead(
    lead: LeadReceived, geo: GeoFound | None, credit: CreditScored | None, ctx: Context
) -> LeadEnriched | None:
    """Put together."""
    ctx.log.debug("%s", lead.lead_id)
    return LeadEnriched(
        lead_id=lead.lead_id,
        country=geo.country if geo is not None else None,
        score=credit.score if credit is not None else None,
    )


@join(by="lead_id", within=WITHIN, name="either")
def whatever_came(geo: GeoFound | None, credit: CreditScored | None) -> list[LeadEnriched]:
    """Without the lead itself."""
    known = geo or credit
    assert known is not None
    return [LeadEnriched(lead_id=known.lead_id, country=geo and geo.country, score=credit and credit.score)]


LEAD, GEO = LeadReceived(lead_id="l"), GeoFound(lead_id="l", country="NZ")
CREDIT = CreditScored(lead_id="l", score=7)
COMPLETE = LeadEnriched(lead_id="l", country="NZ", score=7)


def test_it_is_complete_once_all_has_come() -> None:
    """In any order; what comes before the event that begins the wait is kept for it."""
    for order in ([LEAD, GEO, CREDIT], [LEAD, CREDIT, GEO], [GEO, LEAD, CREDIT], [CREDIT, GEO, LEAD]):
        driven = Driven(enrich_lead.manager)
        assert [driven.take(event) for event in order] == [[], [], [COMPLETE]]
        assert driven.at("l") == "complete"
        assert not driven.memory.set


def test_it_is_partial_when_the_time_is_up() -> None:
    """Not before; what comes late is ignored, and so is a second lead."""
    driven = Driven(enrich_lead.manager)
    driven.take(LEAD)
    assert driven.take(CREDIT) == []
    assert driven.wait(WITHIN - timedelta(seconds=1)) == []
    assert driven.wait(timedelta(seconds=1)) == [LeadEnriched(lead_id="l", country=None, score=7)]
    assert driven.at("l") == "partial"
    assert driven.take(GEO) == driven.take(LEAD) == driven.wait(timedelta(days=1)) == []


def test_of_two_of_one_class_the_first_counts() -> None:
    """The second is no substitute for what is missing."""
    driven = Driven(enrich_lead.manager)
    driven.take(LEAD)
    driven.take(GEO)
    assert driven.take(GeoFound(lead_id="l", country="AU")) == driven.take(LEAD) == []
    assert driven.take(CREDIT) == [COMPLETE]


def test_any_event_begins_the_wait_if_none_is_said_to() -> None:
    """The time counts from the first one."""
    driven = Driven(whatever_came.manager)
    assert driven.take(CREDIT) == []
    assert driven.take(GEO) == [COMPLETE]
    driven.take(GeoFound(lead_id="m", country="NZ"))
    assert driven.wait(WITHIN) == [LeadEnriched(lead_id="m", country="NZ", score=None)]


def test_it_is_a_definition_without_problems() -> None:
    """One state that waits, and two ends, each of which emits."""
    definition = enrich_lead.manager.definition()
    assert list(problems(definition)) == list(problems(whatever_came.manager.definition())) == []
    assert (definition.name, definition.emits()) == ("enrich-lead", {"lead.enriched"})
    assert [state.name for state in definition.states if state.final] == ["complete", "partial"]
    drawn = state_diagram(definition)
    assert "s0 --> s1: lead.geo [is_last]" in drawn
    assert "s0 --> s2: after 30 s" in drawn
    assert "s2: emits lead.enriched" in drawn


def test_it_can_be_called_as_the_function_it_is() -> None:
    """As a test of the application's does."""
    assert enrich_lead(LEAD, GEO, credit=None, ctx=Context.fake()) == LeadEnriched(
        lead_id="l", country="NZ", score=None
    )


def test_what_does_not_hold_together_is_refused() -> None:
    """Coroutines, two that must be there, one event alone, what is no event, a field that is not there."""

    async def waits(lead: LeadReceived, geo: GeoFound | None) -> None: ...

    def both(lead: LeadReceived, geo: GeoFound) -> None: ...

    def alone(lead: LeadReceived) -> None: ...

    def number(lead: LeadReceived, geo: int | None) -> None: ...

    def silent(lead: LeadReceived, geo: GeoFound | None): ...  # type: ignore[no-untyped-def]

    def fine(lead: LeadReceived, geo: GeoFound | None) -> None: ...

    make = join(by="lead_id", within=WITHIN)
    for function, message in (
        (waits, "must be a plain def"),
        (both, r"write `geo: GeoFound \| None`"),
        (alone, "at least two parameters"),
        (number, "is to be one event class"),
        (silent, "no return annotation"),
    ):
        with pytest.raises(DeclarationError, match=message):
            make(function)
    with pytest.raises(DeclarationError, match="longer than nothing"):
        join(by="lead_id", within=timedelta(0))(fine)
    with pytest.raises(DeclarationError, match="has no field 'order_id'"):
        App(join(by="order_id", within=WITHIN)(fine))


async def test_it_runs_in_an_app() -> None:
    """As a consumer group of its own, with an instance in the store; one of two leads is never scored."""
    geo, credit = Service("geo"), Service("credit")

    @geo.handler(LeadReceived)
    def locate(lead: LeadReceived) -> GeoFound:
        return GeoFound(lead_id=lead.lead_id, country="NZ")

    @credit.handler(LeadReceived)
    def score(lead: LeadReceived) -> CreditScored | None:
        return CreditScored(lead_id=lead.lead_id, score=7) if lead.lead_id == "l" else None

    flow = Flow("enrichment", starts=LeadReceived, ends=LeadEnriched)
    app = App(geo, credit, enrich_lead, flows=[flow])
    assert isinstance(enrich_lead, Join)
    assert "enrich-lead" in app.processes
    async with TestApp(app) as t:
        complete = await t.publish(LEAD)
        partial = await t.publish(LeadReceived(lead_id="m"))
        await t.settle()
        assert complete.types[-1] == "lead.enriched"
        assert "lead.enriched" not in partial.types
        await t.advance(seconds=31)
        await t.settle()
        assert partial.types[-1] == "lead.enriched"
        rows = t.rows("SELECT key, state, ended FROM choreo_instance ORDER BY key")
        assert rows == [("l", "complete", 1), ("m", "partial", 1)]
        assert not t.dead_letters
