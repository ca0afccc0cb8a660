"""The page of `choreo trace --html` in a real browser: what its DOM says, and that nothing of a stranger's runs."""

import os
import re
from pathlib import Path

from choreo.flow.page import render
from tests.browser import dom, screenshot
from tests.unit.test_trace_page import EVIL, evil_flow, flow

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "trace.png"


def test_page_shows_the_flow_in_a_browser(tmp_path: Path) -> None:
    """Both pictures and what is waited for are in the DOM; a picture of it is taken."""
    page = tmp_path / "flow.html"
    page.write_text(render([flow()], now_ms=751_000, read=["read log: orders"]), encoding="utf-8")
    found = dom(page, tmp_path / "profile")
    assert len(re.findall(r"<svg ", found)) == 2
    assert "waiting for captured | declined from payments, 00:12:30" in found
    assert "flow order open for 00:12:31, late by 00:02:31" in found
    screenshot(page, tmp_path / "profile", tmp_path / "flow.png")
    if os.environ.get("CHOREO_WRITE_PICTURES"):
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes((tmp_path / "flow.png").read_bytes())


def test_scripts_of_strangers_do_not_run(tmp_path: Path) -> None:
    """Planted where ids, types and error texts go, they are text; the same ones in a page of their own do run."""
    marked = EVIL.replace("alert(", "document.body.setAttribute('data-run',")
    page, bait = tmp_path / "flow.html", tmp_path / "bait.html"
    text = render([evil_flow()], now_ms=0, read=[EVIL])
    page.write_text(text.replace("alert(", "document.body.setAttribute('data-run',"), encoding="utf-8")
    bait.write_text(f"<body><p>{marked}</p></body>", encoding="utf-8")
    assert "data-run=" in dom(bait, tmp_path / "profile").partition(">")[0] + dom(bait, tmp_path / "profile")
    found = dom(page, tmp_path / "profile")
    assert "data-run=" not in re.sub(r">[^<]*<", "><", found)
    assert "<script" not in found
    assert "<img" not in found
