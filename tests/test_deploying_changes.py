"""docs/deploying-changes.md is done, line by line, with an order in flight; its table names findings there are."""

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from choreo.flow.findings import LEVEL_OF
from tests.tea_app import choreo
from tests.test_incident import BLOCK, ROOT, WAIT_S, Reader, plain

PAGE = (ROOT / "docs" / "deploying-changes.md").read_text()


class QuickReader(Reader):
    """Its commands run in this process; what goes on in the background is one of its own."""

    def _command(self, line: str) -> None:
        sys.modules.pop("shop", None)
        wanted = re.search(r"# exit (\d)$", line)
        with patch.dict(os.environ, self.environment, clear=True):
            done = choreo(*shlex.split(line, comments=True)[1:], code=int(wanted[1]) if wanted else 0)
        self.said = done.output if wanted else done.stdout


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QuickReader]:
    """In an empty folder."""
    reader = QuickReader(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it is changed more than once a second
    yield reader
    reader.end()
    sys.modules.pop("shop", None)


def test_a_change_is_deployed_in_two_steps(reader: QuickReader) -> None:
    """Every block of the page in its order: what is to be refused is, and no order is lost or dead-lettered."""
    for name, language, text in BLOCK.findall(PAGE):
        if language == "python":
            reader.save(name, text)
        elif language == "sh":
            for line in text.splitlines():
                until_s = time.monotonic() + WAIT_S
                reader.shell(line)
                while line.endswith("# order.shipped") and "order.shipped from /shipping" not in reader.said:
                    assert time.monotonic() < until_s, reader.said
                    reader.shell(line)
                if "dlq list" in line:
                    assert "\n0 dead letters" in reader.said
        else:
            assert plain(reader.said) == plain(text)


def test_the_table_names_findings_that_there_are() -> None:
    """In its last column; other words there are commands."""
    rows = re.findall(r"^\| .* \| (.*) \|$", PAGE, re.MULTILINE)[1:]
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert len(rows) >= 10
    assert named <= set(LEVEL_OF)
    assert {"dropped_version", "early_emission", "dropped_emission", "narrowed_handler", "changed_topic"} <= named
