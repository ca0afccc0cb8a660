"""A real headless browser for pages that choreo writes: what is in their DOM, and what they look like.

With CI set the skip is a failure: a green run there must have opened the pages.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_S = 60.0
# The page is a file and asks for nothing; the browser itself would, of its makers.
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def chromium() -> str:
    """The path of a Chromium; the test is skipped where there is none, and fails in CI."""
    given = os.environ.get("CHROMIUM_BINARY")
    for name in (given,) if given else NAMES:
        if found := shutil.which(name):
            return found
    reason = "no browser to open pages in: apt-get install chromium, or set CHROMIUM_BINARY"
    if os.environ.get("CI", "").lower() not in ("", "0", "false", "no"):
        pytest.fail(f"{reason} (CI is set, so this is not skipped)", pytrace=False)
    pytest.skip(reason)


def dom(page: Path, profile: Path) -> str:
    """The document as the browser has it after loading `page`, serialised; `profile` is a folder of this test's."""
    return _run(page, profile, "--dump-dom").stdout


def screenshot(page: Path, profile: Path, picture: Path, *, width: int = 1120, height: int = 1000) -> None:
    """Write a PNG of what the page looks like in a window of so many pixels."""
    _run(page, profile, f"--screenshot={picture}", f"--window-size={width},{height}")
    assert picture.read_bytes().startswith(b"\x89PNG"), "the browser wrote no picture"


def _run(page: Path, profile: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [chromium(), *QUIET, f"--user-data-dir={profile}", *options, page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done
