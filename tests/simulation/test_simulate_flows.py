"""scripts/simulate_flows.py: what was run is kept and gone on with; rows of flows not asked for stay."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OTHER = "| approval | 7 | 0.1 | 230 | 950 | 0 | 42.8571% |"


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """The script, on one flow and in one process."""
    script = (sys.executable, ROOT / "scripts" / "simulate_flows.py", "--processes", "1", "--only", "enrichment")
    return subprocess.run((*script, *arguments), capture_output=True, text=True, timeout=120)


def test_seeds_are_counted_once_and_rows_stay(tmp_path: Path) -> None:
    """Two seeds, then a third; then nothing is left to be run."""
    keep, page = tmp_path / "kept.jsonl", tmp_path / "page.md"
    page.write_text(f"# Before\n\n{OTHER}\n")
    for seeds in ("2", "3", "3"):
        done = run("--seeds", seeds, "--keep", keep, "--write", page)
        assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in keep.read_text().splitlines()]
    assert [each["seeds"] for each in kept] == [2, 1]
    assert all(each["faults"] > 10 and each["events"] > 50 for each in kept)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows[0] == OTHER
    assert rows[1].startswith(f"| enrichment | 3 | 0.0 | {sum(each['faults'] for each in kept):,} | ")
    assert rows[1].endswith(" | 0 | 100.0000% |")


def test_a_flow_that_fails_has_no_bound(tmp_path: Path) -> None:
    """It says so by its exit code, too, and the row has how many seeds there were."""
    keep, page = tmp_path / "kept.jsonl", tmp_path / "page.md"
    row = {"flow": "enrichment", "seeds": 5, "virtual_hours": 0.1, "faults": 9, "events": 9, "violations": 2}
    keep.write_text(json.dumps(row) + "\n")
    assert run("--seeds", "5", "--keep", keep, "--write", page).returncode == 1
    assert "| enrichment | 5 | 0.1 | 9 | 9 | 2 | - |" in page.read_text()
