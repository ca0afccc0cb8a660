"""docs/incident.md is done, line by line: its files, its commands, what they say, and what the page shows."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import screenshot

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "incident.md").read_text()
BLOCK = re.compile(r"^(?:<!-- ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PICTURE = ROOT / "docs" / "pictures" / "trace.png"
WAIT_S = 30.0


class Reader:
    """Somebody who does what the page says, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scripts = str(Path(sys.executable).parent)
        path = os.pathsep.join([scripts, os.environ["PATH"]])
        self.environment = {
            name: text for name, text in os.environ.items() if not name.startswith(("CHOREO_", "OTEL_"))
        }
        self.environment |= {"PATH": path, "PYTHONPATH": str(ROOT)}
        self.running: list[subprocess.Popen[str]] = []
        self.correlation_id = self.said = ""

    def save(self, where: str, code: str) -> None:
        """A file, or a change of it: in place of a function, `before` a class, or `instead of` the value of a name.

        `choreo dev`, where it runs, has taken it up when this returns.
        """
        file, _, change = where.partition(": ")
        path = self.folder / file
        if change:
            kind, _, name = change.rpartition(" ")
            pattern = {
                "": rf"^@\w+\.handler\(\w+\)\ndef {name}\(.*?(?=\n\n\n)",
                "before": rf"^(?=class {name}\()",
                "instead of": rf"^{name} = .*$",
            }[kind]
            new = f"{code}\n\n" if kind == "before" else code.rstrip()
            flags = re.MULTILINE | (re.DOTALL if kind == "" else re.NOFLAG)
            code, count = re.subn(pattern, lambda _: new, path.read_text(), flags=flags)
            assert count == 1
        path.write_text(code)
        if change and self.running:
            self._wait(self.running[0])

    def shell(self, script: str) -> None:
        """Commands; those that end with & go on, and have listed their handlers when this returns."""
        for line in script.splitlines():
            if exported := re.fullmatch(r"export (\w+)=(.*)", line):
                self.environment[exported[1]] = exported[2]
            elif line.endswith(" &"):
                process = subprocess.Popen(
                    line.removesuffix(" &").split(),
                    cwd=self.folder,
                    env=self.environment,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                self.running.append(process)
                self._wait(process)
            else:
                self._command(line.replace("CORRELATION_ID", self.correlation_id))

    def _command(self, line: str) -> None:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        self.said = done.stdout
        if found := re.search(r"correlation id (\S+)", self.said):
            self.correlation_id = found[1]

    def _wait(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        while "publish with" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"

    def end(self) -> None:
        """Leave nothing running."""
        for process in self.running:
            process.terminate()
            process.communicate(timeout=WAIT_S)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """In an empty folder."""
    reader = Reader(tmp_path)
    yield reader
    reader.end()


def plain(text: str) -> list[str]:
    """Lines without what differs each time, sorted: which of two handlers comes first does."""
    for pattern, word in (
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
        (r"\b[0-9a-f]{32}\b", "KEY"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "TIME"),
        (r"\d\d:\d\d:\d\d", "LENGTH"),
        (r"\d+\.\d+ (m?s)", r"N \1"),
        (r"/\d@", "/N@"),
        (r"[├└│─]", ""),
    ):
        text = re.sub(pattern, word, text)
    return sorted(" ".join(line.split()) for line in text.splitlines())


def test_order_is_found_stuck_and_is_not_any_more(reader: Reader) -> None:
    """Every block of the page in its order; whatever it says a command prints, the command prints."""
    script, until_s = "", time.monotonic() + WAIT_S
    for name, language, text in BLOCK.findall(PAGE):
        if language == "python":
            reader.save(name, text)
        elif language == "sh":
            reader.shell(script := text)
        else:
            while plain(reader.said) != plain(text) and script.startswith("choreo trace --key"):
                assert time.monotonic() < until_s, reader.said  # half an hour has passed, says the page
                reader.shell(script)
            assert plain(reader.said) == plain(text)
    html = (reader.folder / "incident.html").read_text()
    assert "ended with invoice.sent" in html
    assert html.count("<svg") == 2
    if os.environ.get("CHOREO_WRITE_PICTURES"):
        reader.shell("choreo trace --key A-7 shop:app warehouse:app --html both.html")
        screenshot(reader.folder / "both.html", reader.folder / "profile", PICTURE, height=1480)


def test_page_has_five_commands() -> None:
    """One under each heading with a number, beside those that make ready."""
    steps = re.split(r"^## \d\. ", PAGE, flags=re.MULTILINE)[1:]
    assert len(steps) == 5
    assert [len(re.findall(r"^choreo ", step, re.MULTILINE)) for step in steps] == [1] * 5
