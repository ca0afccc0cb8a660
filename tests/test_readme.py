"""What README.md and docs/ say is run: the flow, its test, the commands, the diagram."""

import asyncio
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from choreo.core.units import mermaid
from tests.tea_app import choreo, events
from tests.test_incident import plain

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FLOW_LINES_MAX, TEST_LINES_MAX = 40, 8


def block(name: str) -> str:
    """The Python block of the README that is to be saved as `name`."""
    found = re.search(rf"^<!-- {re.escape(name)} -->\n```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no block for {name}"
    return found[1]


@pytest.fixture(autouse=True)
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with both blocks saved as the README says."""
    for name in ("orders.py", "test_orders.py"):
        (tmp_path / name).write_text(block(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for variable in ("CHOREO_BROKER", "CHOREO_STORE", "CHOREO_TOPIC_PREFIX"):
        monkeypatch.delenv(variable, raising=False)
    yield tmp_path
    for name in ("orders", "test_orders"):
        sys.modules.pop(name, None)


def test_no_python_block_is_left_out() -> None:
    """Every Python block of the README is run here."""
    assert README.count("```python\n") == 2


def test_blocks_are_short() -> None:
    """A flow in about thirty lines of code and a test of five, imports aside."""
    for name, lines_max in (("orders.py", FLOW_LINES_MAX), ("test_orders.py", TEST_LINES_MAX)):
        assert len([line for line in block(name).splitlines() if line.strip()]) <= lines_max


async def test_first_test_passes() -> None:
    """The README's test of the README's flow."""
    await importlib.import_module("test_orders").test_declined_order_leaves_no_hold()


async def test_paid_order_is_captured() -> None:
    """The other end of the flow, which the picture shows too."""
    from choreo.testing import TestApp

    orders = importlib.import_module("orders")
    async with TestApp(orders.app) as t:
        flow = await t.publish(orders.OrderPlaced(order_id="A-2", cents=100))
        await flow.settled()
        assert flow.types == ["order.placed", "stock.reserved", "payment.captured"]


def test_picture_has_each_handler_and_event() -> None:
    """Nothing declared is missing from the flow's picture."""
    found = re.search(r"^```mermaid\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found
    app = importlib.import_module("orders").app
    for name in app.services:
        for bound in app.bound(name):
            assert f"[{bound.handler.label}]" in found[1]
    for type_ in app.event_classes():
        assert f"([{type_}])" in found[1]


def test_published_order_is_traced(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`publish` and `trace` as the README has them, with the services run in between."""
    monkeypatch.setenv("CHOREO_BROKER", "embedded:.choreo/dev.db")
    orders = importlib.import_module("orders")

    async def prepare() -> None:
        async with orders.app.running(
            broker="embedded:.choreo/dev.db", create_topics=True, create_replay_topics=True
        ):
            pass

    async def serve(correlation_id: str) -> list[str]:
        async with orders.app.running(broker="embedded:.choreo/dev.db"):
            for _ in range(200):
                await asyncio.sleep(0.05)
                seen = [each["type"] for each in await asyncio.to_thread(events, correlation_id)]
                if "stock.released" in seen:
                    break
        return seen

    asyncio.run(prepare())
    line = re.search(r"^choreo publish (orders:app .* cents:=250000) --broker embedded:", README, re.MULTILINE)
    assert line
    said = choreo("publish", *line[1].split()).stdout
    seen = asyncio.run(serve(said.split()[-1]))
    assert sorted(seen) == ["order.placed", "payment.declined", "stock.released", "stock.reserved"]
    shown = re.search(r"^choreo trace CORRELATION_ID .*?^```\n\n```\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert shown
    assert plain(choreo("trace", said.split()[-1]).stdout) == plain(shown[1])
    for command in ("graph orders:app --format json", "drift released.json --broker"):
        line = re.search(rf"^choreo ({command} .*?) +#", README, re.MULTILINE)
        assert line
        said = choreo(*line[1].split()).stdout
    assert "flow order: 1 started, 1 ended" in said
    assert "violation" not in said


def test_dead_letters_are_looked_at_and_dealt_with(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `choreo dlq` of README.md and docs/dlq.md that names no letter is a command, with such options."""
    monkeypatch.setenv("CHOREO_BROKER", "embedded:.choreo/dev.db")
    choreo("topics", "apply", "orders:app")
    text = README + (ROOT / "docs" / "dlq.md").read_text()
    lines = re.findall(r"^choreo (dlq \w+ +orders:app[^#\n@]*)(?:#.*)?$", text, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        arguments = shlex.split(line)
        sure = ["--yes"] if arguments[1] in ("replay", "drop", "release", "skip") else []
        names_a_key = arguments[1] in ("release", "skip") and "A-17" in arguments  # and it is not parked
        choreo(*arguments, *sure, code=2 if names_a_key else 0)
    assert (newcomer / "letters.jsonl").exists()


def test_flow_is_drawn_and_checked() -> None:
    """Every `choreo graph` and `choreo check` of the README's own app, as it stands there, in its order."""
    lines = re.findall(r"^choreo ((?:graph|check) orders:app [^#\n]*)", README, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        choreo(*line.split())
    assert "payments.charge" in Path("flow.html").read_text()


def test_explained_record_is_what_the_page_says() -> None:
    """docs/bad-input.md shows the real answer of `choreo explain`."""
    page = (ROOT / "docs" / "bad-input.md").read_text()
    record = re.search(r"^echo '(.*)' \|$", page, re.MULTILINE)
    assert record
    for line in choreo("explain", "orders:app", "orders", "-", stdin=record[1]).stdout.splitlines():
        assert line in page


def test_engine_page_shows_the_table() -> None:
    """docs/engine.md holds the diagram that the transition table draws."""
    assert f"```mermaid\n{mermaid()}```\n" in (ROOT / "docs" / "engine.md").read_text()
