"""AsyncAPI's own parser reads every document that is generated, and refuses those that were spoilt."""

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from choreo.flow.asyncapi import asyncapi
from tests.handlers_apps import handlers_app
from tests.kafka_server import unavailable
from tests.unit.test_asyncapi import documents

PARSER = "@asyncapi/parser"
VERSION = "3.6.3"
INSTALL_S, PARSE_S = 300, 60

pytestmark = pytest.mark.slow  # the first time; 13 seconds of npm


@pytest.fixture(scope="module")
def modules(request: pytest.FixtureRequest) -> Path:
    """A folder with the parser in it: pytest's cache, filled from npm the first time."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            unavailable(f"{command} is missing; install Node.js 18 or newer with npm (Debian: nodejs npm)")
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir(f"asyncapi-parser-{VERSION}"))
    if not (folder / "node_modules" / PARSER / "package.json").exists():
        install = [
            "npm",
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-save",
            "--prefix",
            str(folder),
        ]
        done = subprocess.run([*install, f"{PARSER}@{VERSION}"], capture_output=True, text=True, timeout=INSTALL_S)
        if done.returncode:
            unavailable(f"npm cannot install {PARSER}@{VERSION}: {done.stderr[-400:]}")
    return folder


def errors(modules: Path, found: dict[str, Any]) -> dict[str, list[str]]:
    """What the parser says of each document."""
    script = Path(__file__).with_name("asyncapi_parser.mjs")
    command = ["node", str(script), str(modules)]
    done = subprocess.run(command, input=json.dumps(found), capture_output=True, text=True, timeout=PARSE_S)
    assert done.returncode == 0, done.stderr
    said: dict[str, list[str]] = json.loads(done.stdout)
    return said


def test_every_document_is_accepted(modules: Path) -> None:
    """Without an error and without a warning."""
    found = dict(documents())
    assert errors(modules, found) == {name: [] for name in found}


def test_spoilt_documents_are_refused(modules: Path) -> None:
    """So the parser was asked, and looked."""
    good = asyncapi(handlers_app("order_fulfilment").capability(), "payments")
    dangling, stray, unknown = (copy.deepcopy(good) for _ in range(3))
    del dangling["components"]["schemas"]["Money"]
    operation = stray["operations"]["receive:charge:stock"]
    operation["messages"] = [{"$ref": "#/channels/payments/messages/payment.captured.v1.receive"}]
    unknown["operations"]["receive:charge:stock"]["action"] = "consume"
    said = errors(modules, {"dangling": dangling, "stray": stray, "unknown": unknown})
    assert all(said.values()), said
