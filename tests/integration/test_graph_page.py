"""The page of `choreo graph --format html` in a real browser."""

import re
import struct
from html import unescape
from pathlib import Path

from tests.browser import dom, screenshot
from tests.handlers_apps import ROOT
from tests.tea_app import choreo
from tests.unit.test_pictures import EVIL, evil_capability

APP = "handlers.order_fulfilment.app:app"


def text_of(html: str) -> str:
    """What a reader sees, without style."""
    return unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)))


def test_page_shows_the_flow_and_its_events(tmp_path: Path) -> None:
    """Every handler and event type in the picture; fields, an example, who emits and who reads in the catalogue."""
    file = tmp_path / "flow.html"
    choreo("graph", APP, "--format", "html", "-o", str(file))
    shown = dom(file, tmp_path / "profile")
    drawn = re.findall(r"<text[^>]*>([^<]+)</text>", shown)
    assert {"order.placed", "inventory.reserve", "shipping.ship_again", "payment.refunded"} <= set(drawn)
    assert len(drawn) == 20
    text = " ".join(text_of(shown).split())
    assert "4 services, 10 handlers, 10 event types." in text
    assert "Emitted by shipping.ship , shipping.ship_again . Read by inventory.issue , notifications.tell ." in text
    assert "payment_token string (minLength 1, maxLength 200) required" in text
    assert '"payment_token": "text"' in text
    assert "shipment.delayed -> shipment.delayed can go round" in text


def test_page_is_a_picture_that_is_kept(tmp_path: Path) -> None:
    """It is laid out as wide as docs/pictures/graph.png, which was taken like this, and is not blank."""
    file = tmp_path / "flow.html"
    choreo("graph", APP, "--format", "html", "-o", str(file))
    kept = (ROOT / "docs" / "pictures" / "graph.png").read_bytes()
    width, height = struct.unpack(">II", kept[16:24])
    screenshot(file, tmp_path / "profile", tmp_path / "page.png", width=width, height=height)
    taken = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", taken[16:24]) == (width, height)
    assert len(taken) > len(kept) / 2


def test_planted_scripts_do_not_run(tmp_path: Path) -> None:
    """A capability file of somebody else's: what it says is shown, and nothing of it becomes an element."""
    (tmp_path / "evil.json").write_text(evil_capability().model_dump_json())
    file = tmp_path / "evil.html"
    choreo("graph", str(tmp_path / "evil.json"), "--format", "html", "-o", str(file))
    shown = dom(file, tmp_path / "profile")
    assert EVIL.splitlines()[0] in text_of(shown)
    assert not re.search(r"<(script|img|iframe|a)\b", shown)
