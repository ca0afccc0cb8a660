"""A small app in a folder of its own, and the commands run there."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from choreo.cli import main

MODULE = """
import time

from choreo import App, Event, Flow, Reject, Service

class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    who: str
    cups: int = 1

class Poured(Event, type="tea.poured", version=1, topic="pours", key="who"):
    who: str

kitchen, bell = Service("kitchen"), Service("bell")

@kitchen.handler(Asked)
def pour(asked: Asked) -> Poured:
    if asked.cups > 9:
        raise Reject("too much tea")
    if asked.cups == 7:
        time.sleep(60)
    return Poured(who=asked.who)

@bell.handler(Poured)
def ring(poured: Poured) -> None:
    print("ring for", poured.who, flush=True)

app = App(kitchen, bell, flows=[Flow("tea", starts=Asked, ends=Poured)], name="guests")
other = 1
"""
TARGET = "tea_for_tests:app"


def tea_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a small app in it, in which the commands run; for `pytest.fixture`."""
    (tmp_path / "tea_for_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHOREO_BROKER", "embedded:tea.db")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("tea_for_tests", None)


def choreo(*arguments: str, stdin: str | bytes | None = None, code: int = 0) -> Result:
    """Run a command that is expected to end with `code`, and with no traceback."""
    result = CliRunner().invoke(main, list(arguments), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result


def events(correlation_id: str) -> list[dict[str, Any]]:
    """What `choreo trace` says of a flow."""
    found: list[dict[str, Any]] = json.loads(choreo("trace", correlation_id, "--json").stdout)["flows"][0]["events"]
    return found
