"""What an event costs and how long it takes, beside loops written by hand, in one run: `python -m scripts.bench`.

Kafka, PostgreSQL and Redis are found or started as the tests find them; what needs one that is not there is said not
to have been measured. Writes docs/performance.md, its figures and its profiles; a section that is measured alone
replaces its own part of the page only. Exit 1 if a row could not be measured; whether targets are met is in the page.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.bench import page, targets
from scripts.bench.sections import ONLY_WHEN_NAMED, SECTIONS, section
from scripts.bench.stage import ROOT, Asked, NotMeasured, Stage, say

QUICK_SCALE = 0.1


def main() -> int:
    """Measure and write."""
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers that were started are stopped
    began_s, failed = time.monotonic(), []
    results = page.Results(asked.out / "performance")
    with ExitStack() as stack:
        stage = Stage(Asked(asked.rounds, asked.seed, QUICK_SCALE if asked.quick else 1.0), stack)
        for place, name in enumerate(asked.only, 1):
            say(f"section {place} of {len(asked.only)}: {name}, after {time.monotonic() - began_s:.0f} s")
            load, section_began_s = os.getloadavg()[0], time.monotonic()
            try:
                found: Any = section(name).measure(stage)
            except Exception as error:  # the others are not to be lost for it
                if not isinstance(error, NotMeasured):
                    traceback.print_exc()
                say(f"{name}: not measured: {error}")
                failed.append(name)
                continue
            about = {
                "taken": datetime.now(UTC).date().isoformat(),
                "commit": page.commit(),
                "seed": asked.seed,
                "rounds": asked.rounds,
                "few": stage.few,
                "machine": page.machine(),
                "versions": page.versions(),
                "load": [load, os.getloadavg()[0]],
                "took_s": round(time.monotonic() - section_began_s),
            }
            results.add(name, found, about)
            failed += [f"{name}: {row}" for row in missing(found)]
            page.write(results, asked.out / "performance.md")  # what comes after it may fail
    for cells in targets.rows(results.found()):
        print(f"{cells[4].strip('*'):8} {cells[0]}: {cells[2]} ({cells[1]})")
    print(f"{asked.out / 'performance.md'} is written; took {time.monotonic() - began_s:.0f} s")
    if failed:
        print("not measured: " + "; ".join(failed))
    return 1 if failed else 0


def missing(found: Any) -> list[str]:
    """Rows that a section says it has not."""
    if not isinstance(found, dict):
        return []
    rows = found.get("stores", found)
    return [*found.get("missing", ()), *(name for name, row in rows.items() if "not measured" in str(row))]


def arguments() -> argparse.Namespace:
    """What was asked for, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [name for name in SECTIONS if name not in ONLY_WHEN_NAMED]
    parser.add_argument("--only", default="", help=f"with commas between: {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=None, help="5 unless given; 1 in a quick run")
    parser.add_argument("--seed", type=int, default=1, help="of the order of rows in a round")
    parser.add_argument("--quick", action="store_true", help="a tenth of the events, to see that it works")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of the page; docs, or build/bench in a quick run"
    )
    asked = parser.parse_args()
    asked.only = asked.only.split(",") if asked.only else every
    unknown = [name for name in asked.only if name not in SECTIONS]
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    asked.rounds = asked.rounds if asked.rounds is not None else (1 if asked.quick else 5)
    if not 1 <= asked.rounds <= 50:
        parser.error("from 1 to 50 rounds")
    asked.out = (asked.out or ROOT / ("build/bench" if asked.quick else "docs")).resolve()
    return asked


if __name__ == "__main__":
    sys.exit(main())
