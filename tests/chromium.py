"""A headless Chromium as a test needs it: what a page says once it is laid out, and how it looks."""

import shutil
import subprocess
from pathlib import Path

from tests.kafka_server import unavailable

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
TIMEOUT_S = 60


class Chromium:
    """Runs once for each question, with a profile of its own."""

    def __init__(self, executable: str, profile: Path) -> None:
        self._command = [executable, *FLAGS, f"--user-data-dir={profile}"]

    def dom(self, file: Path) -> str:
        """The document as the browser understood it."""
        return self._run("--dump-dom", file)

    def picture(self, file: Path, to: Path, *, width: int, height: int) -> bytes:
        """A PNG of the page's beginning."""
        self._run(f"--window-size={width},{height}", f"--screenshot={to}", file)
        return to.read_bytes()

    def _run(self, *arguments: str | Path) -> str:
        command = [*self._command, *map(str, arguments[:-1]), f"file://{arguments[-1]}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout


def find_chromium(profile: Path) -> Chromium:
    """The first there is; else the test is skipped, and in CI failed."""
    for name in NAMES:
        if (executable := shutil.which(name)) is not None:
            return Chromium(executable, profile)
    unavailable("no Chromium to open a page with; install one (Debian: apt-get install chromium)")
