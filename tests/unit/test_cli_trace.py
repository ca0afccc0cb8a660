"""`choreo trace` as a shell runs it, on an embedded broker in a file."""

import asyncio
import importlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from choreo.flow.model import to_json
from choreo.record import ProducerRecord
from choreo.transports.embedded import EmbeddedTransport
from tests.tea_app import TARGET, choreo, tea_folder
from tests.unit.test_cli_processes import start

here = pytest.fixture(tea_folder)


def serve(units: int, *services: str) -> None:
    """Run services in this process until so many units are handled."""
    app = importlib.import_module("tea_for_tests").app

    async def run() -> None:
        async with app.running(services or None, broker="embedded:tea.db", create_topics=True) as running:
            for _ in range(1000):
                await asyncio.sleep(0.02)
                if sum(worker.counts["handled"] for worker in running.workers.values()) >= units:
                    return
            raise AssertionError(f"not handled: {units} units")

    asyncio.run(run())


def asked(who: str, *more: str) -> str:
    """Publish one; returns its correlation id."""
    return choreo("publish", TARGET, "tea.asked", f"who={who}", *more).stdout.split()[-1]


def flows(*arguments: str) -> list[dict[str, Any]]:
    """What `choreo trace --json` finds."""
    found: list[dict[str, Any]] = json.loads(choreo("trace", *arguments, "--json").stdout)["flows"]
    return found


def test_flow_is_found_by_key_and_by_any_of_its_events(here: Path) -> None:
    """A record key finds every flow that has it, in order of time; an event's id finds the flow it belongs to."""
    choreo("topics", "apply", TARGET)
    first, second, other = asked("Ada"), asked("Ada"), asked("Bob")
    serve(6)
    assert [each["correlation_id"] for each in flows("--key", "Ada", TARGET)] == [first, second]
    poured = flows(other)[0]["events"][1]
    assert [each["correlation_id"] for each in flows(poured["id"])] == [other]
    drawn = choreo("trace", "--key", "Ada", TARGET).stdout
    assert drawn.count("flow tea ended with tea.poured after 0.") == 2
    assert "read log: asks, bell.dlq, bell.replay, kitchen.dlq, kitchen.replay, pours since 20" in drawn


def test_flow_of_several_keys_is_whole(here: Path) -> None:
    """Its events are looked for beyond the partition that its key chooses."""
    choreo("topics", "apply", TARGET)
    flow = asked("Ada")
    serve(2)
    rekeyed = flows(flow)[0]["events"][0]

    async def append() -> None:
        transport = EmbeddedTransport(*_opened())
        await transport.open()
        headers = (("ce_id", b"9"), ("ce_source", b"/x"), ("ce_type", b"tea.paid"))
        more = (("ce_correlationid", flow.encode()), ("ce_causationid", rekeyed["id"].encode()))
        await transport.send([ProducerRecord("pours", b"another key", b"{}", (*headers, *more), n) for n in range(4)])
        await transport.close()

    asyncio.run(append())
    events = flows("--key", "Ada")[0]["events"]
    assert [each["type"] for each in events] == ["tea.asked", "tea.poured", "tea.paid"]
    assert len(events[2]["repeats"]) == 3


def _opened() -> tuple[Any, Any]:
    from choreo.runtime.clock import SystemClock
    from choreo.sqlite.database import Database

    return Database("tea.db"), SystemClock()


def test_service_that_does_not_run_is_waited_for(here: Path) -> None:
    """Whose turn it is, and what would come of it."""
    choreo("topics", "apply", TARGET)
    flow = asked("Ada")
    drawn = choreo("trace", flow, TARGET).stdout
    assert "flow tea open for 00:00:0" in drawn
    assert "waiting for tea.poured from kitchen, 00:00:0" in drawn
    serve(1, "kitchen")
    drawn = choreo("trace", flow, TARGET).stdout
    assert "kitchen.pour handled" in drawn
    assert "waiting for bell.ring, 00:00:0" in drawn


def test_capability_files_say_what_is_declared(here: Path) -> None:
    """Without the code of the services; several of them, and what is none is refused with its name."""
    choreo("topics", "apply", TARGET)
    flow = asked("Ada")
    capability = importlib.import_module("tea_for_tests").app.capability()
    for service in ("kitchen", "bell"):
        (here / f"{service}.json").write_text(to_json(capability.of(service)))
    assert choreo("trace", flow, "kitchen.json", "bell.json").stdout.splitlines()[:2] == [
        line.replace("00:00:01", "00:00:00") for line in choreo("trace", flow, TARGET).stdout.splitlines()[:2]
    ]
    (here / "none.json").write_text("{}")
    assert "none.json is no capability file" in choreo("trace", flow, "none.json", code=2).stderr
    assert "gone.json cannot be read" in choreo("trace", flow, "gone.json", code=2).stderr


def test_followed_flow_is_drawn_until_it_ends(here: Path) -> None:
    """It waits for a flow that is not there yet, and ends by itself after the terminal event."""
    choreo("topics", "apply", TARGET)
    process = start(here, "trace", "--key", "Ada", TARGET, "--follow", "--broker", "embedded:tea.db")
    try:
        time.sleep(1.0)
        asked("Ada")
        serve(2)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "ended with tea.poured" in said
    assert said.endswith("keys\n")


def test_follow_ends_when_it_is_interrupted(here: Path) -> None:
    """With what was seen so far, and with success: the reader has seen enough."""
    choreo("topics", "apply", TARGET)
    flow = asked("Ada")
    process = start(here, "trace", flow, TARGET, "--follow", "--html", "flow.html", "--broker", "embedded:tea.db")
    try:
        until_s = time.monotonic() + 20
        while not (here / "flow.html").exists():
            assert time.monotonic() < until_s
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "waiting for tea.poured from kitchen" in said
    assert "waiting for tea.poured from kitchen" in (here / "flow.html").read_text()
    assert "Traceback" not in errors


def test_page_is_written(here: Path) -> None:
    """`--html` beside what is drawn; a file that cannot be written is exit code 2."""
    choreo("topics", "apply", TARGET)
    flow = asked("Ada")
    result = choreo("trace", flow, TARGET, "--html", "flow.html")
    assert "wrote flow.html" in result.stderr
    assert "waiting for tea.poured" in result.stdout
    assert (here / "flow.html").read_text().startswith("<!doctype html>")
    assert "cannot be written" in choreo("trace", flow, "--html", "no/such/folder.html", code=2).stderr


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("changelog", "a changelog is read back whole by its service, and by nobody else"),
        ("sqlite:gone-{service}.db", "there is no gone-kitchen.db here: is the store of kitchen elsewhere?"),
    ],
)
def test_store_that_cannot_tell_says_so(here: Path, store: str, said: str) -> None:
    """It is no error: the log tells the rest."""
    choreo("topics", "apply", TARGET)
    assert said in choreo("trace", asked("Ada"), TARGET, "--store", store).stdout
    assert not list(here.glob("gone*"))


def test_topics_that_were_not_read_are_named(here: Path) -> None:
    """What is declared to be in them may be there all the same."""
    choreo("topics", "apply", TARGET)
    drawn = choreo("trace", asked("Ada"), TARGET, "--topics", "asks").stdout
    names = "bell.dlq, bell.replay, kitchen.dlq, kitchen.replay, pours"
    assert f"not read, so what is there may seem to be missing: {names}" in drawn


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a correlation id"),
        (["x", "--follow", "--json"], "--follow draws for people"),
        (["x", "--since", "soon"], "is no length of time"),
        (["x", "no_such_module:app"], "there is no module"),
    ],
)
def test_wrong_use_is_one_line(here: Path, arguments: list[str], said: str) -> None:
    """Exit code 2 and a sentence."""
    choreo("topics", "apply", TARGET)
    assert said in choreo("trace", *arguments, code=2).stderr


def test_without_a_place_to_look_it_says_which_there_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a broker nor a Jaeger."""
    monkeypatch.delenv("CHOREO_BROKER")
    assert "--broker URL (or CHOREO_BROKER), or --jaeger URL" in choreo("trace", "x", code=2).stderr
