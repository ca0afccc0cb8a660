"""`choreo simulate` as a shell runs it, on a small app in a folder of its own."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from choreo.testing.simulation.seeds import find
from tests.simulation.test_seeds import brewing_folder
from tests.tea_app import choreo

here = pytest.fixture(brewing_folder)


def failing_seed() -> int:
    """The first seed that pours a cup twice."""
    simulation = find("brewing:careless")
    return next(seed for seed in range(1, 100) if not simulation.run(seed).ok)


def test_many_seeds_are_summed_up(here: Path) -> None:
    """Seeds, hours, the chosen faults and rows of the core's table, for people; exit 0."""
    arguments = ("--seeds", "8", "--from", "11", "--processes", "1", "--faults", "crash, ")
    said = choreo("simulate", "brewing:good", *arguments).stdout
    assert re.search(r"^faults: \d+ crash$", said, re.MULTILINE)
    assert "of the core's table no seed used: " in said
    assert "8 seeds, 0.1 virtual hours" in said
    assert "no violation" in said
    assert "\x1b" not in said


def test_a_failing_seed_tells_how_to_see_it_again(here: Path) -> None:
    """Exit 1 with the seed, what it violates, the shortest schedule, its story and a command that replays it."""
    seed = failing_seed()
    result = choreo("simulate", "brewing:careless", "--seeds", "1", "--from", str(seed), code=1)
    assert f"seed {seed}: one_cup: guest-" in result.stdout
    assert "the shortest schedule, of " in result.stdout
    assert "  violated: one_cup: guest-" in result.stdout
    assert "\n! " in result.stdout
    (command,) = (line for line in result.stdout.splitlines() if line.startswith("replay it: "))
    words = shlex.split(command.removeprefix("replay it: "))
    assert words[:5] == ["choreo", "simulate", "brewing:careless", "--seed", str(seed)]
    replayed = choreo(*words[1:], code=1).stdout
    story = result.stdout.partition("replay it: ")[2]
    assert replayed.partition("replay it: ")[2].splitlines()[3:] == story.splitlines()[3:]


def test_one_seed_is_shortened_and_told_to_programs(here: Path) -> None:
    """`--seed` of a failing one, as JSON; with the shortest schedule as `--allowed`, and with none of its faults."""
    seed = str(failing_seed())
    found: dict[str, Any] = json.loads(
        choreo("simulate", "brewing:careless", "--seed", seed, "--json", code=1).stdout
    )
    told = found["told"]
    assert (found["ok"], told["seed"]) == (False, int(seed))
    assert 1 <= len(told["shortest"]) < told["faults"]
    assert told["story"]["mermaid"].startswith("sequenceDiagram\n")
    allowed = ",".join(told["shortest"])
    assert shlex.join(["--allowed", allowed]) in told["replay"]
    again = json.loads(choreo(*shlex.split(told["replay"])[1:], "--json", code=1).stdout)
    assert again["told"]["story"] == told["story"]
    peaceful = json.loads(choreo("simulate", "brewing:careless", "--seed", seed, "--allowed", "", "--json").stdout)
    assert (peaceful["ok"], peaceful["told"]["violations"]) == (True, [])


def test_a_fault_that_does_not_happen_is_named(here: Path) -> None:
    """A mistyped id would look as if the seed were fine without it."""
    result = choreo("simulate", "brewing:good", "--seed", "4", "--allowed", "crash@kitchen-1/nowhere#1")
    assert "did not happen: crash@kitchen-1/nowhere#1" in result.stderr


def test_a_good_seed_is_told(here: Path) -> None:
    """Exit 0, and its whole story."""
    said = choreo("simulate", "brewing:good", "--seed", "4").stdout
    assert "publisher  publishes tea.asked published-5" in said
    assert "seed 4: no violation" in said


def test_faults_are_replaced(here: Path) -> None:
    """With none, the seed that failed is fine; with its own, named all, it is not, and the replay names them, too."""
    seed = str(failing_seed())
    found = json.loads(choreo("simulate", "brewing:careless", "--seed", seed, "--faults", "none", "--json").stdout)
    assert found["ok"]
    failed = choreo("simulate", "brewing:careless", "--seed", seed, "--faults", "all", code=1).stdout
    assert f"--seed {seed} --faults all --allowed " in failed


def test_what_does_not_come_of_the_seed_fails(here: Path) -> None:
    """A handler that asks the real clock, in two ways: one is refused, one is found by running a seed twice."""
    refused = choreo("simulate", "brewing:in_time", "--seed", "1", code=1).stderr
    assert "take the time from ctx.now()" in refused
    found = json.loads(choreo("simulate", "brewing:by_the_clock", "--seeds", "1", "--json", code=1).stdout)
    assert (found["ok"], found["seeds"], found["violations"], found["told"]) == (False, 1, {}, [])
    assert found["not_deterministic"].startswith("line ")
    assert found["not_deterministic"].count('"at":"20') == 2
    assert len(found["unreached"][0]) == 3
    assert found["rows"]["used"] == found["rows"]["core"] - len(found["unreached"])
    assert found["unreachable"]["waiting + due"] == "no handler has retry=Delayed(...)"
    assert found["virtual_hours"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["brewing"], "is no MODULE:NAME"),
        (["brewing:app"], "is a App and no Simulation"),
        (["brewing:good", "--faults", "crash,flood"], "there is no fault 'flood'; there are: crash, crash_after"),
        (["brewing:good", "--allowed", "crash@cook-1/second#1"], "give --seed, too"),
        (["brewing:good", "--seeds", "0"], "Invalid value"),
    ],
)
def test_wrong_use_is_one_line(here: Path, arguments: list[str], said: str) -> None:
    """Exit 2 and what to write instead."""
    assert said in choreo("simulate", *arguments, code=2).stderr
