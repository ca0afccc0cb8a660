"""Simulates every flow of handlers/ on bad days, all faults, seeds 1 to N each, and writes what came of them.

    python scripts/simulate_flows.py [--seeds 1000] [--processes 2] [--only NAME ...] [--minutes 60] [--keep FILE]
                                     [--write docs/simulated-flows.md]

With --keep what was run is kept in a file, a line for each hundred seeds, and gone on with when it is run again. On
the page rows of flows that were not asked for stay as they are. Exit 1 if a seed violates anything.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import orjson

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from choreo.testing.simulation.seeds import run_seeds  # noqa: E402

FLOWS = sorted(path.parent.name for path in (ROOT / "handlers").glob("*/simulation.py"))
CHUNK = 100
PAGE = """# The flows of handlers/, simulated

Every flow on bad days with all faults of [simulation.md](simulation.md), seeds 1 to N each. Beside choreo's own
promises each flow's `simulation.py` says what it must come to: an end, once, as its input says; compensated if and
only if it must be; timers neither lost nor early; every instance under the version it began under. Bugs that were
put in on purpose, and were found, are in [mutants.md](mutants.md). Written by `make simulate-flows`.

{table}

*Bound*: of N seeds none has failed, so that with 95 % certainty fewer than 3 in N do. A seed is 30 virtual seconds of
faults and what it takes to come to rest. While the approval runs, its version 2 is rolled out, and back, and out.
"""
HEADER = (
    "| flow | seeds | virtual hours | faults | events | violations | bound |\n|---|---:|---:|---:|---:|---:|---:|\n"
)


class Row(NamedTuple):
    """What came of seeds 1 to `seeds` of one flow; `violations`: of how many there were any."""

    flow: str
    seeds: int = 0
    virtual_hours: float = 0.0
    faults: int = 0
    events: int = 0
    violations: int = 0

    def text(self) -> str:
        """As a line of the page."""
        bound = f"{3 / self.seeds:.4%}" if self.seeds and not self.violations else "-"
        return (
            f"| {self.flow} | {self.seeds:,} | {self.virtual_hours:,.1f} | {self.faults:,} | {self.events:,} | "
            f"{self.violations:,} | {bound} |"
        )


def run(row: Row, seeds: int, processes: int, until_s: float, keep: Path | None) -> Row:
    """Go on from where the row ends; tells of each seed that fails, and how to see it again."""
    target, began_s = f"handlers.{row.flow}.simulation:simulation", time.monotonic()
    while row.seeds < seeds and (left_s := until_s - time.monotonic()) > 0:
        chunk = range(row.seeds + 1, min(row.seeds + CHUNK, seeds) + 1)
        tally = run_seeds(target, chunk, processes=processes, minutes_max=left_s / 60, failing_max=CHUNK)
        new = Row(
            row.flow, tally.seeds, tally.virtual_hours, tally.faults.total(), tally.events, len(tally.violations)
        )
        for seed, outcome in sorted(tally.violations.items()):
            print(f"choreo simulate {target} --seed {seed}\n    {outcome.violations[0]}", flush=True)
        if keep is not None:
            with keep.open("ab") as file:
                file.write(orjson.dumps(new._asdict(), option=orjson.OPT_APPEND_NEWLINE))
        row = added(row, new)
        print(f"{row.text()} {time.monotonic() - began_s:,.0f} s", flush=True)
    return row


def added(row: Row, new: Row) -> Row:
    """Both together."""
    return Row(row.flow, *(one + other for one, other in zip(row[1:], new[1:], strict=True)))


def kept(keep: Path | None) -> dict[str, Row]:
    """What earlier runs have kept, by flow."""
    rows = {flow: Row(flow) for flow in FLOWS}
    for line in keep.read_bytes().splitlines() if keep is not None and keep.exists() else ():
        new = Row(**orjson.loads(line))
        rows[new.flow] = added(rows[new.flow], new)
    return rows


def write(page: Path, rows: list[Row]) -> None:
    """Put the rows on the page, among those that are there."""
    before = page.read_text() if page.exists() else ""
    lines = {name: line for line, name in re.findall(r"^(\| ([a-z_]+) \| [\d,]+ \|.*)$", before, re.MULTILINE)}
    lines |= {row.flow: row.text() for row in rows if row.seeds}
    page.write_text(PAGE.format(table=HEADER + "\n".join(lines[flow] for flow in FLOWS if flow in lines)))


def main() -> int:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=FLOWS, default=FLOWS, help="these flows, in this order")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no seed is begun later than this")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    until_s, rows = time.monotonic() + 60 * asked.minutes, kept(asked.keep)
    ran = [run(rows[flow], asked.seeds, asked.processes, until_s, asked.keep) for flow in asked.only]
    if asked.write:
        write(asked.write, ran)
    return 1 if any(row.violations for row in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
