"""Three services that are asked about every lead, each with its own load and its own bad days, and the sales desk.

A lead that comes twice has two events with two ids. The lookups take `lead_id` as their key: questions may cost.
"""

import sqlite3

from choreo import Context, RetryPolicy, Service

from .events import CreditScored, GeoFound, LeadEnriched, LeadReceived, NewsFound
from .providers import CreditBureau, NewsArchive

COUNTRIES = {
    "at": "Austria", "be": "Belgium", "br": "Brazil", "ch": "Switzerland", "cz": "Czechia", "de": "Germany",
    "dk": "Denmark", "es": "Spain", "fi": "Finland", "fr": "France", "in": "India", "it": "Italy", "jp": "Japan",
    "nl": "Netherlands", "no": "Norway", "nz": "New Zealand", "pl": "Poland", "pt": "Portugal", "se": "Sweden",
    "uk": "United Kingdom", "za": "South Africa",
}  # fmt: skip
"""By the top-level domain of the mail address: what needs nobody outside."""

geo, credit, news, sales = Service("geo"), Service("credit"), Service("news"), Service("sales")


@geo.handler(LeadReceived, idempotency_key="lead_id")
def locate(lead: LeadReceived) -> GeoFound:
    """Look the country up."""
    return GeoFound(lead_id=lead.lead_id, country=COUNTRIES.get(lead.email.rpartition(".")[2].lower()))


@credit.handler(LeadReceived, idempotency_key="lead_id")
async def score(lead: LeadReceived, bureau: CreditBureau) -> CreditScored:
    """Ask the bureau, however long it takes: the join does not wait for it."""
    return CreditScored(lead_id=lead.lead_id, score=await bureau.score(lead.company))


@news.handler(LeadReceived, idempotency_key="lead_id", retry=RetryPolicy(attempts_max=3, cap_s=1.0))
async def search(lead: LeadReceived, archive: NewsArchive) -> NewsFound:
    """Ask the archive three times; then it is a dead letter of this service, and no other one's concern."""
    return NewsFound(lead_id=lead.lead_id, headlines=tuple(await archive.search(lead.company)))


@sales.on_start
def tables(db: sqlite3.Connection) -> None:
    """No unique key: a lead that is enriched twice must be there twice, to be counted."""
    db.execute("CREATE TABLE IF NOT EXISTS sales_lead (lead_id TEXT, missing TEXT, event_id TEXT, at TEXT)")


@sales.handler(LeadEnriched)
def enter(lead: LeadEnriched, ctx: Context, db: sqlite3.Connection) -> None:
    """Somebody will call them."""
    row = (lead.lead_id, ",".join(lead.missing), ctx.envelope.id, ctx.now().isoformat())
    db.execute("INSERT INTO sales_lead VALUES (?, ?, ?, ?)", row)
