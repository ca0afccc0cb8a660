"""scripts/bench: what goes into docs/performance.md, and that the command writes it. No server is needed."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import page, targets
from scripts.bench.profiles import file_of
from scripts.bench.running import Result, Run
from scripts.bench.sections import SECTIONS, section
from scripts.bench.stage import ROOT, Asked, NotMeasured, Row, Stage, summed_up

RUN = Run("aiokafka-txn", "", "orders", "payments", 1_000)
ROWS = [
    Row("aiokafka-txn", RUN, "aiokafka-txn"),
    Row("changelog", RUN, "aiokafka-txn"),
    Row("half", RUN._replace(events=500), "aiokafka-txn"),
]


class Recorded(Stage):
    """A stage whose runs take what they are told to."""

    def __init__(self, asked: Asked, stack: ExitStack, cpu_s: dict[str, list[float]]) -> None:
        super().__init__(asked, stack)
        self.turns: list[str] = []
        self._cpu_s = {name: iter(values) for name, values in cpu_s.items()}

    def run(self, run: Run) -> Result:
        """The next of the row; the topic is its name."""
        self.turns.append(run.topic)
        value = next(self._cpu_s[run.topic])
        if value < 0:
            raise NotMeasured("it fell over")
        return Result(value, 1.0, 4, 50.0)


def rounds(cpu_s: dict[str, list[float]], *, often: tuple[str, ...] = (), seed: int = 1, count: int = 3) -> Any:
    """What came of these rows in so many rounds, and the order of all turns."""
    rows = [Row(name, RUN._replace(topic=name), "aiokafka-txn") for name in cpu_s]
    with ExitStack() as stack:
        stage = Recorded(Asked(count, seed, 1.0), stack, cpu_s)
        return stage.in_rounds("test", rows, often), stage.turns


def test_rounds_are_shuffled_by_the_seed() -> None:
    """Every row once a round, those asked for twice; the same seed gives the same order, another one another."""
    names = {name: [1.0] * 12 for name in "abcdef"}
    orders = [rounds(names, often=("a",), seed=seed)[1] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0][:7]) == sorted("aabcdef")
    assert orders[0][:7] != orders[0][7:14]


def test_a_row_that_fails_is_left_out() -> None:
    """The others go on, and it is not tried again."""
    found, turns = rounds({"a": [1.0] * 3, "b": [-1.0] * 3})
    assert list(found) == ["a"]
    assert turns.count("b") == 1


def test_a_ratio_is_to_the_baseline_of_its_round() -> None:
    """Median of the rounds' ratios, by event: a round on a slow machine counts as any other."""
    found = {
        "aiokafka-txn": [Result(cpu_s, 1.0, 2, 50.0) for cpu_s in (1.0, 10.0, 1.0)],
        "changelog": [Result(cpu_s, 2.0, 4, 80.0) for cpu_s in (1.5, 12.0, 1.3)],
        "half": [Result(cpu_s, 2.0, 4, 80.0) for cpu_s in (1.0, 10.0, 1.0)],
    }
    table = summed_up(ROWS, found)
    assert table["changelog"]["ratio"] == pytest.approx(1.3)
    assert (table["changelog"]["ratio_min"], table["changelog"]["ratio_max"]) == pytest.approx((1.2, 1.5))
    assert table["changelog"]["cpu_us"] == pytest.approx(1_500)
    assert table["changelog"]["events_per_transaction"] == 250
    assert table["half"]["ratio"] == pytest.approx(2.0)


def test_a_target_is_met_or_its_profile_is_named() -> None:
    """At the limit it is met; beyond it the shares of the row's profile stand beside it."""
    row = {"cpu_us": 40.0, "ratio_min": 1.0, "ratio_max": 2.0}
    profiles = {"sqlite": {"busy": 0.5, "shares": {"choreo/core": 0.6, "pydantic": 0.4}}}
    found = {
        "cost": {"rows": {"changelog": {**row, "ratio": 1.1}, "sqlite": {**row, "ratio": 1.41}}},
        "profiles": profiles,
    }
    cells = {each[0]: each[1:] for each in targets.rows(found)}
    assert cells["Kafka + changelog, tracing off, to aiokafka-txn"] == ("<= 1.1", "1.10", "1.00-2.00", "met", "")
    told = cells["Kafka + SQLite, tracing off, to aiokafka-txn"]
    assert told[3] == "**not met**"
    assert told[4].endswith("sqlite.txt): busy 50% of the time; choreo/core 60%, pydantic 40%")


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_can_be_asked_for(name: str) -> None:
    """Each is there, and has what the command calls."""
    found = section(name)
    assert found.TITLE
    assert callable(found.measure)
    assert callable(found.lines)


def test_the_page_as_it_is_kept_is_that_of_its_results() -> None:
    """docs/performance.md was not edited between its marks, and every profile that it names is there."""
    results = page.Results(ROOT / "docs" / "performance")
    figures = [name for name in SECTIONS if (results.folder / f"{name}.svg").exists()]
    between = page.PAGE.read_text().partition(page.BEGIN)[2].partition(page.END)[0]
    assert between.strip() == "\n".join(page.body(results, figures)).strip()
    for row in results.found().get("profiles", {}):
        assert (results.folder / "profiles" / file_of(row)).exists()


def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    """One section that needs no server, as `make bench QUICK=1 ONLY=embedded` does it."""
    command = [sys.executable, "-m", "scripts.bench", "--quick", "--only", "embedded", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "performance" / "results.json").read_text())
    assert kept["embedded"]["found"]["calls_per_s"] > 0
    written = (tmp_path / "performance.md").read_text()
    assert "## Embedded broker" in written
    assert "## What made the difference" in written


def test_the_command_refuses_what_it_does_not_know() -> None:
    """A section by a wrong name is said, with those there are, and nothing is measured."""
    command = [sys.executable, "-m", "scripts.bench", "--only", "costs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no such section: costs; there are cost, " in done.stderr
