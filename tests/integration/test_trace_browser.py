"""The page of `choreo trace --html` in a real browser: what its DOM says, and that nothing of a stranger's runs."""

import re
from pathlib import Path

from choreo.flow.page import render
from tests.browser import dom, screenshot
from tests.unit.test_trace_page import EVIL, evil_flow, flow

RUN = "document.body.dataset.run=1"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def test_page_shows_the_flow_in_a_browser(tmp_path: Path) -> None:
    """Both pictures and what is waited for are in the DOM, and there is something to see."""
    page = tmp_path / "flow.html"
    page.write_text(render([flow()], now_ms=751_000, read=["read log: orders"]), encoding="utf-8")
    found = dom(page, tmp_path / "profile")
    assert len(re.findall(r"<svg ", found)) == 2
    assert "waiting for captured | declined from payments, 00:12:30" in found
    assert "flow order open for 00:12:31, late by 00:02:31" in found
    screenshot(page, tmp_path / "profile", tmp_path / "flow.png")


def ran(text: str, folder: Path) -> bool:
    """Whether a script of the page has run."""
    page = folder / "page.html"
    page.write_text(text, encoding="utf-8")
    (body,) = re.findall(r"<body[^>]*>", dom(page, folder / "profile"))
    return "data-run" in body


def test_scripts_of_strangers_do_not_run(tmp_path: Path) -> None:
    """Planted where ids, types and error texts go, they are text, and the policy would stop them.

    The same ones in a page of their own do run, so it would be seen.
    """
    evil = EVIL.replace("alert(1)", RUN).replace("alert(2)", RUN).replace("alert(3)", RUN)
    text = render([evil_flow(evil)], now_ms=0, read=[evil])
    policy = POLICY.search(text)
    assert policy
    assert ran(f"<html><body>{evil}</body></html>", tmp_path)
    assert not ran(f"<html><head>{policy[0]}</head><body>{evil}</body></html>", tmp_path)
    assert RUN in text
    assert not ran(POLICY.sub("", text), tmp_path)
