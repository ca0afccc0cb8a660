"""What an operator does by hand is told as that, and what comes of it is no drift: on a real log and store."""

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tea_app import choreo

MODULE = """
from datetime import timedelta

from choreo import App, Event, Flow, ProcessManager, Reject, Service

class Asked(Event, type="cup.asked", version=1, topic="asked", key="who"):
    who: str

class Poured(Event, type="cup.poured", version=1, topic="poured", key="who"):
    who: str

class Served(Event, type="cup.served", version=1, topic="served", key="who"):
    who: str

kitchen = Service("kitchen")

@kitchen.handler(Asked)
def pour(asked: Asked) -> Poured:
    if asked.who.startswith("bad"):
        raise Reject("there is no tea")
    return Poured(who=asked.who)

class Cup(ProcessManager, version=1, by="who"):
    who: str

waiting, done = Cup.state("waiting"), Cup.final("done")

@Cup.starts(Asked, to=waiting)
def begin(asked: Asked) -> Cup:
    return Cup(who=asked.who)

@waiting.on(Poured, to=done)
def serve(self: Cup, poured: Poured) -> Served:
    return Served(who=self.who)

@waiting.after(timedelta(hours=1), to=done)
def apologise(self: Cup) -> Served:
    return Served(who=self.who)

app = App(kitchen, Cup, flows=[Flow("cup", starts=Asked, ends=Served, deadline=timedelta(days=1))])
"""
TARGET = "cups_for_tests:app"
BY = ("--yes", "--by", "ann")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the app and an empty broker."""
    (tmp_path / "cups_for_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHOREO_BROKER", "embedded:cups.db")
    monkeypatch.setattr(sys, "path", list(sys.path))
    choreo("topics", "apply", TARGET)
    yield tmp_path
    sys.modules.pop("cups_for_tests", None)


def asked(who: str) -> str:
    """Somebody wants tea; the flow's correlation id."""
    published = choreo("publish", TARGET, "cup.asked", f"who={who}", "--json")
    return str(json.loads(published.stdout)["correlation_id"])


def handled(**wanted: int) -> None:
    """Run the services until each is done with so many more units."""
    app = importlib.import_module("cups_for_tests").app

    async def run() -> None:
        async with app.running(broker="embedded:cups.db") as running, asyncio.timeout(20):
            while any(  # noqa: ASYNC110 - counts tell nobody that they change
                sum(running.workers[name].counts[each] for each in ("handled", "dead_letters")) < count
                for name, count in wanted.items()
            ):
                await asyncio.sleep(0.01)

    asyncio.run(run())


def drift(target: str = TARGET, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Findings by id."""
    said = choreo("drift", target, "--timeout", "0s", "--ignore", "never_observed_edge", "--json", code=code).stdout
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(said)["findings"]:
        found.setdefault(each["id"], []).append(each)
    return found


def with_deadline(seconds: float) -> str:
    """The app's capability, in which flows are to end in so many seconds."""
    capability = json.loads(choreo("graph", TARGET, "--format", "json").stdout)
    capability["flows"][0]["deadline_s"] = seconds
    Path("cups.json").write_text(json.dumps(capability))
    return "cups.json"


def test_flow_that_somebody_ended_is_not_overdue(here: Path) -> None:
    """Put in a state or its dead letter dropped in time; one nobody cared for is, and one helped too late as well."""
    begun_s = time.time()
    flows = {who: asked(who) for who in ("bad-1", "bad-2", "bad-3")}
    asked_s = time.time() - begun_s
    handled(kitchen=3, cup=3)
    seen_s = time.time() - begun_s
    choreo("instances", "set-state", TARGET, "bad-1", "done", *BY, "--reason", "she had coffee")
    choreo("dlq", "drop", TARGET, "--key", "bad-2", *BY, "--note", "he left")
    in_time_s = time.time() - begun_s
    time.sleep(asked_s + 0.2)
    found = drift(with_deadline(in_time_s + 0.1), code=1)
    (overdue,) = found["overdue_flow"]
    assert (overdue["count"], overdue["example_correlation_ids"]) == (1, [flows["bad-3"]])
    told = {each["edge"]: (each["level"], each["count"], each["message"]) for each in found["intervention"]}
    assert told == {
        "cup: set-state waiting -> done": ("information", 1, "done by hand by ann (she had coffee)"),
        "kitchen: drop pour": ("information", 1, "done by hand by ann (he left)"),
    }
    assert found["intervention"][0]["example_correlation_ids"] == [flows["bad-1"]]
    assert set(found) == {"overdue_flow", "intervention"}
    (late,) = drift(with_deadline((seen_s - asked_s) / 2), code=1)["overdue_flow"]
    assert late["count"] == 3, "all were overdue before anybody did anything"


def test_timer_fired_by_hand_is_told_and_what_it_emits_is_declared(here: Path) -> None:
    """Timers are the process's own affair, whoever fires them; the flow is at its end."""
    asked("bad-1")
    handled(kitchen=1, cup=1)
    choreo("instances", "fire-timer", TARGET, "bad-1", "apologise", *BY, "--reason", "at once")
    handled(cup=1)
    found = drift()
    assert [each["edge"] for each in found["intervention"]] == ["cup: fire-timer apologise"]
    assert set(found) <= {"intervention", "late_hop", "missing_emission"}


def test_nothing_is_missed_of_a_process_that_did_all_it_may(here: Path) -> None:
    """Its instance decides for which event, or timer, it emits: that another one caused none is no finding."""
    asked("ada")
    handled(kitchen=1, cup=2)
    said = json.loads(choreo("drift", TARGET, "--timeout", "1h", "--json").stdout)
    assert (said["fitness"], said["precision"], said["findings"]) == (1.0, 1.0, [])


def test_forced_replays_are_told_and_emit_no_more_than_is_declared(here: Path) -> None:
    """Each under ids of its own, so that one event comes to three of a type that it may cause once."""
    asked("ada")
    handled(kitchen=1, cup=2)
    for number in (1, 2):
        order = ("replay", TARGET, "--topic", "asked", "--handler", "kitchen.pour", "--from", "1h", "--mode", "force")
        choreo(*order, *BY, "--note", f"again {number}")
        handled(kitchen=1, cup=1)
    found = drift()
    (told,) = found["intervention"]
    assert (told["edge"], told["count"]) == ("kitchen: replay pour, forced", 2)
    assert told["message"] == "done by hand by ann (again 2)"
    assert set(found) <= {"intervention", "late_hop"}
    assert not [each for each in found.get("late_hop", ()) if "kitchen.pour" in each["edge"]]


def test_trace_tells_who_dropped_a_dead_letter(here: Path) -> None:
    """A mark on the log that names no flow: the dead letter it names does."""
    flow, other = asked("bad-1"), asked("bad-2")
    handled(kitchen=2, cup=2)
    choreo("dlq", "drop", TARGET, "--key", "bad-1", *BY, "--note", "she left")
    assert "dead letter of pour dropped by ann (she left)" in choreo("trace", flow, TARGET).stdout
    assert "dropped" not in choreo("trace", other, TARGET).stdout
    (found,) = json.loads(choreo("trace", flow, "--json").stdout)["flows"]
    (order,) = next(each["replays"] for each in found["events"] if each["type"] == "cup.asked")
    assert (order["mode"], order["by"], order["note"]) == ("drop", "ann", "she left")
