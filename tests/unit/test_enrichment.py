"""handlers/enrichment on the embedded broker: the shipped file of leads, and an answer that comes late."""

from collections import Counter
from importlib.resources import files

from choreo import RetryLater
from choreo.errors import DecodeError
from choreo.testing import TestApp
from handlers.enrichment.app import app
from handlers.enrichment.events import LeadReceived
from handlers.enrichment.providers import CreditBureau, FakeBureau, is_down, is_slow

LEAD = LeadReceived(lead_id="L-1", company="Alder Bikes", email="ada@alder-bikes.example.de")


class Thinks:
    """A bureau that has an answer a minute later."""

    def __init__(self) -> None:
        self.asked = 0

    async def score(self, company: str) -> int:
        """See `CreditBureau.score`."""
        self.asked += 1
        if self.asked == 1:
            raise RetryLater(60)
        return 500


def shipped() -> tuple[list[LeadReceived], Counter[str]]:
    """The leads of the file, and why its other lines are none."""
    leads, refused = [], Counter[str]()
    data = files("handlers.enrichment").joinpath("leads.jsonl").read_bytes()
    for line in data.removesuffix(b"\n").split(b"\n"):
        try:
            leads.append(LeadReceived.from_payload(line))
        except DecodeError as error:
            refused[error.reason] += 1
    return leads, refused


async def test_every_lead_of_the_file_is_enriched_once() -> None:
    """Those that the archive is down for without news; those that come twice once."""
    leads, refused = shipped()
    assert (len(leads), refused) == (320, {"invalid_data": 4, "not_json": 3})
    companies = {lead.lead_id: lead.company for lead in leads}
    assert (len(companies), sum(map(is_slow, companies.values()))) == (300, 20)
    without_news = {id_ for id_, company in companies.items() if is_down(company)}
    assert len(without_news) == 9
    async with TestApp(app, resources={CreditBureau: FakeBureau(0, 0)}) as t:
        for lead in leads:
            await t.publish(lead)
        await t.settle()
        assert t.rows("SELECT count(*) FROM sales_lead WHERE missing = ''") == [(291,)]
        await t.advance(seconds=11)
        rows = t.rows("SELECT lead_id, missing FROM sales_lead ORDER BY lead_id")
        assert rows == [(id_, "news" if id_ in without_news else "") for id_ in sorted(companies)]
        assert {each.service for each in t.dead_letters} == {"news"}


async def test_an_answer_that_comes_late_is_ignored() -> None:
    """Sales has the lead after ten seconds, and once."""
    async with TestApp(app, resources={CreditBureau: Thinks()}) as t:
        flow = await t.publish(LEAD)
        await t.advance(seconds=9)
        assert t.rows("SELECT * FROM sales_lead") == []
        await t.advance(seconds=2)
        assert t.rows("SELECT lead_id, missing FROM sales_lead") == [("L-1", "credit")]
        await t.advance(seconds=60)
        assert flow.types[-1] == "lead.credit-scored"
        assert len(t.rows("SELECT * FROM sales_lead")) == 1
        assert not t.dead_letters
