"""The page of a flow: what is on it, and that nothing of a stranger's is markup."""

from dataclasses import fields
from html.parser import HTMLParser

from choreo.envelope import Envelope
from choreo.flow.joining import build
from choreo.flow.observed import Intake, Sighting, observed
from choreo.flow.observed_page import observed_page
from choreo.flow.page import render
from choreo.flow.sequence import EVENTS_MAX, Arrow, arrows_of
from choreo.flow.timeline import (
    DeadLetter,
    Expected,
    Handling,
    Node,
    Place,
    Progress,
    Replayed,
    Timeline,
    TimerWaiting,
)
from choreo.flow.waiting import expect
from tests.unit.test_timeline import record
from tests.unit.test_waiting import ALL, capability, placed, reserved, row

EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&<svg onload=alert(3)>\x1b[2J\u202e"


class Page(HTMLParser):
    """What a browser would make of it: elements, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        """Note it."""
        self.text += data + "\n"


def flow() -> Timeline:
    """One that waits for a payment, with a failure and a service that takes what it sent itself."""
    found = build([placed(), reserved()], "f", (row("inventory.reserve"), row("bell.ring", outcome="failed")))
    expect(found, capability, now_ms=751_000, told=ALL)
    return found


def test_page_tells_the_flow() -> None:
    """Both pictures and the table, with what is waited for."""
    page = Page(render([flow()], now_ms=751_000, read=["read log: orders"]))
    assert page.elements.count("svg") == 2
    for said in ("placed", "inventory.reserve handled", "waiting for captured | declined from payments", "read log"):
        assert said in page.text
    assert "as of 1970-01-01 00:12:31 UTC" in page.text


def test_arrows_go_from_who_sent_to_who_handled() -> None:
    """One line for each handler, handled or waited for, and one for an event that nobody takes."""
    assert list(arrows_of(flow())) == [
        Arrow("shop", "inventory", "placed", "reserve handled, 0.0 ms", "handled"),
        Arrow("shop", "bell", "placed", "ring failed, 0.0 ms", "bad"),
        Arrow("inventory", "payments", "reserved", "charge waiting, 00:12:30", "open"),
    ]
    assert list(arrows_of(build([record("1")], "f"))) == [Arrow("shop", "", "a.b", "", "alone")]


def evil_flow(evil: str = EVIL) -> Timeline:
    """A flow every text of which is an attack: ids, types, sources, topics, handlers, outcomes, reasons."""
    names = ("service", "handler", "reason", "detail", "attempts")
    told = tuple((f"choreo-dlq-{name}", evil.encode()) for name in names)
    rows = [{**row(evil, outcome=f"dead_letter:{evil}")}, {**row(evil, topic=evil)}]
    event = record(evil, source=evil, type_=evil, flow=evil)._replace(value=f'{{"a": "{evil[2:]}"}}'.encode())
    letter = record(evil, source=evil, type_=evil, flow=evil, topic="x.dlq", extra=told)
    again = record("2", cause=evil, source=evil, type_=evil, flow=evil, offset=1)
    return build([event, letter, again, event._replace(offset=9)], evil, rows)


def test_no_text_of_a_stranger_is_markup() -> None:
    """Scripts in ids, types, sources, handlers and error texts are text, and control characters are not there."""
    text = render([evil_flow()], now_ms=0, read=[EVIL])
    page = Page(text)
    assert "alert(1)" in page.text
    assert not {"script", "img", "link", "iframe", "object"} & set(page.elements)
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert set(page.elements) <= {*Page(render([flow()], now_ms=0)).elements, "circle"}


def everything(evil: str) -> Timeline:
    """Each kind of thing that a flow may hold, once, with an attack in every text that a stranger may choose."""
    place = Place(evil, 0, 1)
    node = Node(
        Envelope(evil, evil, evil, version=1, time=evil, correlationid=evil, causationid=evil),
        place,
        0,
        repeats=[place],
        retries=[place],
        handlings=[Handling(evil, evil, within=((evil, 1.0),)), Handling(evil, "", told_by="trace")],
        dead_letters=[DeadLetter(place, evil, evil, evil, evil, evil), DeadLetter(place, evil, evil, evil, "", evil)],
        replays=[Replayed(place, evil, evil, evil)],
        expected=[
            Expected(evil, evil, "waiting", (evil,), 1.0, evil),
            Expected(evil, evil, "unknown", (), 1.0, evil),
        ],
    )
    return Timeline(
        evil,
        [node],
        [(place, Handling(evil, evil))],
        Progress(evil, evil, 1.0, 2.0, 0.0),
        [TimerWaiting(evil, evil, evil, 1.0)],
    )


def test_no_field_of_a_flow_is_markup() -> None:
    """None of those that are there today; a page of a class that gets another field is made of it here too."""
    flow_of_all = everything(EVIL)
    filled = {each.name for each in fields(Timeline) if getattr(flow_of_all, each.name)}
    (node,) = flow_of_all.roots
    filled_too = {each.name for each in fields(Node) if getattr(node, each.name)}
    assert {each.name for each in fields(Timeline)} == filled
    assert {each.name for each in fields(Node)} - filled_too <= {"timestamp_ms", "data", "children"}
    page = Page(render([flow_of_all], now_ms=5_000, read=[EVIL]))
    assert page.text.count("alert(1)") > 20
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(page.elements)
    assert [name for name, _ in page.attributes if name.startswith("on")] == []


def test_page_loads_nothing() -> None:
    """No address outside itself, and a policy that forbids what the browser is told to load or to run."""
    text = render([evil_flow(), flow()], now_ms=0)
    assert not [value for name, value in Page(text).attributes if name in ("src", "href", "xlink:href", "action")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in Page(text).attributes
    assert "url(" not in text
    assert "@import" not in text


def test_data_of_events_is_not_on_the_page() -> None:
    """It is attached to incidents and sent around; only envelopes are told."""
    secret = record("1")._replace(value=b'{"iban": "DE02120300000000202051"}')
    assert "DE0212" not in render([build([secret], "f")], now_ms=0)


def test_large_flow_is_cut() -> None:
    """And says so."""
    found = build([record(str(n), offset=n, at_ms=n) for n in range(EVENTS_MAX + 5)], "f")
    page = Page(render([found], now_ms=0))
    assert f"show {EVENTS_MAX} of {EVENTS_MAX + 5}" in page.text
    assert page.elements.count("tr") == EVENTS_MAX + 1


def test_no_name_that_was_observed_is_markup() -> None:
    """Of services that are not ours: what they call themselves, their events and handlers."""
    first = Sighting("1", EVIL, f"{EVIL}a", 0.0)
    second = Sighting("2", f"{EVIL}b", f"{EVIL}c", 5.0, cause="1", handler=EVIL)
    taken = (Intake("1", f"{EVIL}c", 1.0, EVIL), Intake("2", f"{EVIL}d", 9.0))
    flow = observed([first, second], taken, window_s=60.0)
    page = Page(observed_page(flow, EVIL, [EVIL]))
    assert page.text.count("alert(1)") > 5
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(page.elements)
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
