"""A simulation that would not notice proves nothing: protections taken out are noticed, most of them at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutants.mutant import Mutant

ROOT = Path(__file__).parent.parent.parent
SEEDS = 24
LATE = {
    "leases do not fence",
    "refusals ignored",
    "sent for a lost partition",
    "stale offsets told",
    "taking given up",
    "wall-clock timers",
    "timers noted before they are sent",
    "deploys overtake each other",
    "fault 2: unread offset",
    "fault 5: position before the fence",
    "fault 6: late EndTxn",
}
"""Found after dozens or hundreds of seeds: `make mutants` looks for them."""


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.name not in LATE], ids=lambda each: each.name)
def test_what_is_taken_out_is_missed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within two dozen seeds."""
    simulation = mutant.simulation()
    mutant.take_out(monkeypatch)
    assert any(simulation.run(seed).violations for seed in range(SEEDS))


def test_mutants_have_names_of_their_own() -> None:
    """And those that are found late are among them."""
    names = [each.name for each in MUTANTS]
    assert len(set(names)) == len(names) >= 12
    assert set(names) >= LATE


def test_rows_of_mutants_that_were_not_asked_for_stay(tmp_path: Path) -> None:
    """In the order of the mutants; a name that is none any more is gone."""
    page = tmp_path / "page.md"
    old, gone = (
        "| keys forgotten | what it was | orders, outbox | 3 | twice |",
        "| gone | x | orders, outbox | 1 | lost |",
    )
    page.write_text(f"{gone}\n{old}\n")
    script: list[str | Path] = [
        sys.executable,
        ROOT / "scripts" / "mutants.py",
        "--only",
        "next not sent",
        "--write",
        page,
    ]
    subprocess.run(script, check=True, capture_output=True, timeout=120)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == [old, "| next not sent | who leaves a queue sends the next | parked, outbox | 1 | still_parked |"]
    assert "None survives." in page.read_text()
