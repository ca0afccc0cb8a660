"""The lookups and the join of their answers, for `choreo dev handlers.enrichment.app:app`."""

from datetime import timedelta

from choreo import App, Flow, join

from .events import CreditScored, GeoFound, LeadEnriched, LeadReceived, Lookup, NewsFound
from .lookups import credit, geo, news, sales
from .providers import CreditBureau, FakeArchive, FakeBureau, NewsArchive

WITHIN = timedelta(seconds=10)


@join(by="lead_id", within=WITHIN)
def enrich(
    lead: LeadReceived, found: GeoFound | None, scored: CreditScored | None, read: NewsFound | None
) -> LeadEnriched:
    """With what is there: sales would rather call today than know everything."""
    answers: dict[Lookup, object] = {"geo": found, "credit": scored, "news": read}
    return LeadEnriched(
        lead_id=lead.lead_id,
        company=lead.company,
        email=lead.email,
        country=found.country if found is not None else None,
        score=scored.score if scored is not None else None,
        headlines=read.headlines if read is not None else (),
        missing=tuple(name for name, answer in answers.items() if answer is None),
    )


enrichment = Flow("enrichment", starts=LeadReceived, ends=LeadEnriched, deadline=timedelta(minutes=1))
app = App(
    geo,
    credit,
    news,
    enrich,
    sales,
    flows=[enrichment],
    resources={CreditBureau: FakeBureau(), NewsArchive: FakeArchive()},
)
