"""Many seeds in processes of their own, on a small app in a folder of its own; what does not come of the seed."""

import asyncio
import multiprocessing
import sys
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest

from choreo.core.units import TRANSITIONS
from choreo.errors import ChoreoError, ConfigurationError
from choreo.testing.simulation import Faults, Unsimulated, seeds
from choreo.testing.simulation.loop import PROCESS, Life, SimulationLoop
from choreo.testing.simulation.seeds import Tally, check_twice, find, first_difference, run_seeds

MODULE = '''
import os
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime

from choreo import App, Event, Service
from choreo.testing.simulation import Faults, Simulation

class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    who: str

class Poured(Event, type="tea.poured", version=1, topic="pours", key="who"):
    who: str
    at: str = "at once"

class Cups:
    """On the table: no transaction takes one away, and nobody asks for a key."""

    def __init__(self):
        self.poured = []

def cook(pour):
    kitchen = Service("kitchen")
    kitchen.handler(Asked)(pour)
    return App(kitchen, resources={Cups: Cups()})

async def pour(asked: Asked, cups: Cups) -> Poured:
    cups.poured.append(asked.who)
    return Poured(who=asked.who)

async def pour_by_the_clock(asked: Asked) -> Poured:
    return Poured(who=asked.who, at=datetime.now().isoformat())

async def pour_in_any_order(asked: Asked) -> Poured:
    return Poured(who=asked.who, at="".join({"milk", "sugar", "lemon", "honey", "rum", "mint"}))

async def pour_in_time(asked: Asked) -> Poured:
    return Poured(who=asked.who, at=str(time.time()))

async def die(asked: Asked) -> None:
    os._exit(3)

async def spin(asked: Asked) -> None:
    while True:
        pass

def guests(chance):
    return [Asked(who=f"guest-{number}") for number in range(6)]

def one_cup(world):
    for who, cups in Counter(world.resources[Cups].poured).items():
        if cups > 1:
            yield f"{who} was poured {cups} cups"

def broken(world):
    raise KeyError("no such cup")

good = Simulation(cook(pour), guests, resources={Cups: Cups()}, members=1)
careless = replace(good, checkers=[one_cup])
by_the_clock = replace(good, app=cook(pour_by_the_clock))
in_any_order = replace(good, app=cook(pour_in_any_order))
in_time = replace(good, app=cook(pour_in_time))
dies = replace(good, app=cook(die))
spins = replace(good, app=cook(spin))
unchecked = replace(good, checkers=[broken])
app = good.app
'''


def brewing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `brewing.py` in it, in which simulations are found; for `pytest.fixture`."""
    (tmp_path / "brewing.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("brewing", None)


here = pytest.fixture(brewing_folder)


def test_seeds_are_run_in_processes_and_counted(here: Path) -> None:
    """Each seed once; faults, events, hours and the rows of the core's table are added up."""
    seen: list[int] = []
    tally = run_seeds("brewing:good", range(5, 9), processes=2, progress=lambda each: seen.append(each.seeds))
    alone = Tally()
    for seed in range(5, 9):
        alone.add(find("brewing:good").run(seed))
    assert seen == [1, 2, 3, 4]
    assert (tally.seeds, tally.events) == (4, alone.events)
    assert tally.virtual_s == pytest.approx(alone.virtual_s)
    assert tally.virtual_hours > 4 * 30 / 3600
    assert (tally.faults, tally.transitions) == (alone.faults, alone.transitions)
    assert tally.faults.total() > 10
    assert not tally.violations
    unreached = {(state, signal) for state, signal, _ in tally.unreached()}
    assert unreached == {row for row in TRANSITIONS if not tally.transitions[row]}
    assert 0 < len(unreached) < len(TRANSITIONS)


def test_failing_seeds_come_back_whole_and_end_the_run(here: Path) -> None:
    """With their histories, as they are when they are run here; after so many no other seed is begun."""
    faults = Faults.only("handler_fails", chance=0.5)
    tally = run_seeds("brewing:careless", range(1, 1000), changes={"faults": faults}, failing_max=2)
    assert tally.seeds < 20
    assert len(tally.violations) == 2
    assert set(tally.faults) == {"handler_fails"}
    for seed, outcome in tally.violations.items():
        assert outcome.seed == seed
        assert outcome.violations[0].startswith("one_cup: guest-")
        assert (outcome.text != "", len(outcome.history)) == (True, outcome.text.count("\n"))


def test_no_seed_is_begun_when_the_time_is_over(here: Path) -> None:
    """Those that run are finished."""
    assert run_seeds("brewing:good", range(1, 10_000), minutes_max=0.0).seeds == 1


def test_a_handler_that_never_awaits_is_given_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No virtual time passes in it; its process is ended."""
    monkeypatch.setattr(seeds, "SEED_S_MAX", 0.5)
    with pytest.raises(ChoreoError, match="seed 3 takes more than"):
        run_seeds("brewing:spins", [3])
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("in_time", Unsimulated, r"pour_in_time calls time\.time\(\) \(brewing\.py:\d+\): take the time from ctx"),
        ("dies", ChoreoError, "the process that ran seed 3 ended with exit code 3"),
        ("unchecked", ChoreoError, r"seed 3: KeyError: 'no such cup' \(brewing\.py:\d+\)"),
    ],
)
def test_a_seed_that_cannot_be_run_is_an_error(here: Path, name: str, kind: type[Exception], said: str) -> None:
    """It says which, and where; nothing waits for ever."""
    with pytest.raises(kind, match=said):
        run_seeds(f"brewing:{name}", [3])


def test_one_seed_twice_is_the_same(here: Path) -> None:
    """In two interpreters with hash seeds of their own."""
    assert check_twice("brewing:good", 2) is None


def test_what_does_not_come_of_the_seed_is_found(here: Path) -> None:
    """The order of a set is another one in each interpreter, and is seen in what comes on the log."""
    difference = check_twice("brewing:in_any_order", 2)
    assert difference is not None
    assert difference.count('"at":"') == 2


def test_the_first_difference_is_shown_where_it_is() -> None:
    """By line, with a little of what is about it; a shorter text differs, too."""
    assert first_difference(["a", "b"], ["a", "b"]) is None
    assert first_difference(["a", "b"], ["a", "c"]) == "line 2 was 'b' and then 'c'"
    assert first_difference(["a"], ["a", "b"]) == "line 2 was '(no more lines)' and then 'b'"
    long = "x" * 500
    found = first_difference([f"{long}1{long}"], [f"{long}2{long}"])
    assert found is not None
    assert len(found) < 300
    assert "x1x" in found
    assert "x2x" in found


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("brewing", "is no MODULE:NAME"),
        ("gone:simulation", "importing gone failed: No module named 'gone'; is it below this folder"),
        ("brewing:nothing", "has no such name; there is brewing:good"),
        ("brewing:app", "is a App and no Simulation; there is brewing:good, brewing:careless"),
    ],
)
def test_a_simulation_is_found_by_its_name(here: Path, target: str, said: str) -> None:
    """Or it is said what there is."""
    with pytest.raises(ConfigurationError, match=said):
        find(target)
    assert find("brewing:good").members == 1


def test_what_is_unwound_at_the_end_is_in_the_simulated_loop() -> None:
    """Outside of it `asyncio.gather` would make a loop of its own, which nobody closes."""
    loop, life = SimulationLoop(0.0), Life()
    seen: list[asyncio.AbstractEventLoop] = []

    async def dies() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(asyncio.get_running_loop())

    context = copy_context()
    context.run(PROCESS.set, life)
    task = loop.create_task(dies(), context=context)
    loop.run_until_complete(_moment())
    life.kill()
    loop.abandon(life)
    loop.close()
    assert seen == [loop]
    assert not task.done()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


async def _moment() -> None:
    await asyncio.sleep(0.1)
