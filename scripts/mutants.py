"""Takes choreo's protections out one at a time, and counts the seeds until the simulation notices.

    python scripts/mutants.py [--seeds 2000] [--only TEXT] [--write docs/mutants.md]

On the page rows of mutants that were not asked for stay as they are. Exit 1 if one survives.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from tests.simulation.mutants import MUTANTS  # noqa: E402
from tests.simulation.mutants.mutant import Mutant  # noqa: E402

PAGE = """# Mutants: a simulation that would not notice proves nothing

Each row is a protection of choreo, or a fault of the Kafka client that choreo contains, taken out or put back by a
patch in `tests/simulation/mutants/`. The simulation runs seed after seed, from 0, until a checker finds something
wrong. Written by `make mutants` with at most {seeds:,} seeds each; `tests/simulation/test_mutants.py` runs those that
are found soon in CI.

| taken out | what it protects | flow, pair | seeds until found | checker |
|---|---|---|---|---|
{rows}

{survivors}

Fault numbers are those of [aiokafka's faults](aiokafka-faults.md).
"""


class Found(NamedTuple):
    """`seeds` run; `checker` that noticed, None if none did."""

    name: str
    seeds: int
    checker: str | None
    took_s: float


def hunt(name: str, seeds: int) -> Found:
    """Run seeds until one fails."""
    mutant = next(each for each in MUTANTS if each.name == name)
    simulation, began_s = mutant.simulation(), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        mutant.take_out(patch)
        for seed in range(seeds):
            outcome = simulation.run(seed)
            if outcome.violations:
                checker = outcome.violations[0].partition(":")[0]
                return Found(name, seed + 1, checker, time.monotonic() - began_s)
    return Found(name, seeds, None, time.monotonic() - began_s)


def row(mutant: Mutant, found: Found) -> str:
    """As a line of the page."""
    seeds, checker = (found.seeds, found.checker) if found.checker else ("-", "none")
    return f"| {mutant.name} | {mutant.what} | {mutant.flow}, {mutant.pair} | {seeds} | {checker} |"


def write(page: Path, rows: list[str], seeds: int) -> None:
    """Put the rows on the page, among those that are there."""
    before = page.read_text() if page.exists() else ""
    lines = {line.split(" | ")[0][2:]: line for line in [*re.findall(r"^\| .* \|$", before, re.MULTILINE), *rows]}
    kept = {each.name: lines[each.name] for each in MUTANTS if each.name in lines}
    names = ", ".join(name for name, line in kept.items() if line.endswith("| none |"))
    told = f"**Survivors**, each a gap of the simulation: {names}." if names else "None survives."
    page.write_text(PAGE.format(seeds=seeds, rows="\n".join(kept.values()), survivors=told))


def main() -> int:
    """Hunt them all, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2_000)
    parser.add_argument("--only", default="", help="mutants whose name or flow has this in it")
    parser.add_argument("--write", type=Path, help="the page to write")
    asked = parser.parse_args()
    wanted = [each for each in MUTANTS if asked.only in f"{each.name} | {each.flow}"]
    found: dict[str, Found] = {}
    with ProcessPoolExecutor(2) as pool:
        for future in as_completed([pool.submit(hunt, each.name, asked.seeds) for each in wanted]):
            one = future.result()
            found[one.name] = one
            said = f"found by {one.checker} in seed {one.seeds}" if one.checker else f"SURVIVES {one.seeds} seeds"
            print(f"{len(found)}/{len(wanted)} {one.name}: {said}, {one.took_s:.0f} s", flush=True)
    if asked.write:
        write(asked.write, [row(each, found[each.name]) for each in wanted], asked.seeds)
    survivors = [each for each in wanted if found[each.name].checker is None]
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
