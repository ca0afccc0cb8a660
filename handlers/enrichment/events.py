"""What is known of a lead: what the form said, and what each lookup adds to it."""

from typing import Annotated, Literal

from pydantic import Field

from choreo import Event

Text = Annotated[str, Field(min_length=1, max_length=200)]
Lookup = Literal["geo", "credit", "news"]


class LeadReceived(Event, type="lead.received", version=1, topic="leads", key="lead_id"):
    """Somebody has filled in the form."""

    lead_id: Text
    company: Text
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", max_length=200)]


class GeoFound(Event, type="lead.geo-found", version=1, topic="lead-geo", key="lead_id"):
    """Where they are; None: it was looked up, and nobody knows."""

    lead_id: Text
    country: str | None


class CreditScored(Event, type="lead.credit-scored", version=1, topic="lead-credit", key="lead_id"):
    """What the bureau says they are good for."""

    lead_id: Text
    score: Annotated[int, Field(ge=0, le=1000)]


class NewsFound(Event, type="lead.news-found", version=1, topic="lead-news", key="lead_id"):
    """What the papers write of them, if anything."""

    lead_id: Text
    headlines: tuple[str, ...]


class LeadEnriched(Event, type="lead.enriched", version=1, topic="leads-enriched", key="lead_id"):
    """All that was found in time; `missing` names the lookups that did not answer."""

    lead_id: Text
    company: Text
    email: str
    country: str | None
    score: int | None
    headlines: tuple[str, ...]
    missing: tuple[Lookup, ...]
