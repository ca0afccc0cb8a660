"""Crash every simulated pair of broker and store at every call, then at pairs of calls; write docs/crash-points.md.

    python scripts/crash_table.py [--seed 1991] [--runs-max 2200] [--visits-max 1] [--only NAME] [--out FILE]

Nothing is started: the servers are simulated, what is crashed is choreo's own code. Exit 1 if a promise did not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from choreo import Event  # noqa: E402
from choreo.testing.simulation import Faults, Simulation  # noqa: E402
from choreo.testing.simulation.crashes import RUNS_MAX, Crashes, double, single  # noqa: E402
from tests.simulation.parcels import Sent, parcel_flow  # noqa: E402

SEED, PROCESSES, TELL_S = 1991, 2, 10.0
"""In this seed two parcels of one street come 5 ms apart, and all within 4 s: every crash has time to be felt."""
POLLS = 4
"""How many times as long a run of the embedded broker takes, which asks its file again and again."""

PAIRS = {
    "embedded": ("embedded + SQLite", "one transaction", "no loss, no duplicate"),
    "outbox": (
        "Kafka + PostgreSQL or SQLite",
        "key and outbox in one transaction; send; offset",
        "no loss; a resend keeps its id",
    ),
    "lease": (
        "Kafka + Redis",
        "lease; send and await acks; complete; offset",
        "no loss; after a crash it may run again",
    ),
    "changelog": (
        "Kafka + changelog",
        "emits, keys and offset in one transaction",
        "no loss, no duplicate on the log",
    ),
}
"""By the name of the simulation: the pair's own, what commits together, the promise. The longest first."""
COLUMNS = ("points", "runs", "lost", "copies", "effects", "out_of_order", "other", "again")
HEADER = (
    "| pair | crashes a run | points | runs | lost | duplicated on the log | duplicated effects | out of order | "
    "other violations | handled again |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one pair."""

    pair: str
    one: Crashes
    two: Crashes
    elapsed_s: float

    def counts(self) -> list[tuple[int, Crashes]]:
        """By crashes a run."""
        return [(1, self.one), (2, self.two)]


def three_parcels(chance: random.Random) -> Sequence[Event]:
    """For two streets."""
    return [Sent(street=f"street {chance.randrange(2)}", number=number) for number in range(3)]


def few_parcels(pair: str) -> Simulation:
    """The flow as small as a run can be, one process a service."""
    return replace(parcel_flow(pair, Faults.none()), publish=three_parcels, members=1)


def tried(asked: tuple[str, int, int, int]) -> Tried:
    """One pair, in a process of its own."""
    pair, seed, runs_max, visits_max = asked
    runs_max //= POLLS if pair == "embedded" else 1
    begun_s = time.monotonic()
    simulation = few_parcels(pair)
    one = single(simulation, seed, progress=telling(f"{pair}, one crash"))
    tell = telling(f"{pair}, two crashes")
    two = double(simulation, seed, firsts=one, runs_max=runs_max, visits_max=visits_max, progress=tell)
    return Tried(pair, _light(one), _light(two), time.monotonic() - begun_s)


def telling(what: str) -> Callable[[int, int], None]:
    """A line now and then."""
    last_s = time.monotonic()

    def tell(runs: int, of: int) -> None:
        nonlocal last_s
        if runs == of or time.monotonic() - last_s > TELL_S:
            last_s = time.monotonic()
            print(f"{what}: {runs:,} of {of:,} runs", file=sys.stderr, flush=True)

    return tell


def _light(crashes: Crashes) -> Crashes:
    """Without what only the next crash is chosen from."""
    return replace(crashes, trials=tuple(replace(each, later=()) for each in crashes.trials))


def page(results: Sequence[Tried], options: str) -> str:
    """docs/crash-points.md."""
    counts = [(each, *row) for each in results for row in each.counts()]
    runs = sum(found.runs for *_, found in counts)
    lines = [
        HEAD,
        f"Counted on {datetime.now(UTC).date().isoformat()} by `make crash-table` ({options}): {runs:,} runs.",
        "\n" + HEADER,
    ]
    for each, crashes, found in counts:
        numbers = " | ".join(f"{getattr(found, name):,}" for name in COLUMNS)
        lines.append(f"| {PAIRS[each.pair][0]} | {crashes} | {numbers} |")
    lines += ["", "| pair | commit | promise |", "|---|---|---|"]
    lines += [f"| {' | '.join(PAIRS[each.pair])} |" for each in results]
    lines += ["", "Of the pairs of crashes:", ""]
    lines += [f"- {PAIRS[each.pair][0]}: {_chosen(each.two)}" for each in results]
    lines += ["", "## By call", "", BY_CALL]
    lines += ["| pair | call | points | duplicated on the log | handled again |", "|---|---|---|---|---|"]
    lines += [line for each in results for line in _by_call(each)]
    lines += ["", "## What did not hold", ""]
    failing = [
        f"- {PAIRS[each.pair][0]}, `{' '.join(trial.schedule)}`: {trial.violations[0]}"
        for each, _, found in counts
        for trial in found.failing
    ]
    return "\n".join([*lines, *(failing or ["Nothing."]), "", TAIL])


def _chosen(two: Crashes) -> str:
    how = "all were run" if two.points == two.runs else f"{two.runs:,} were run, evenly chosen"
    return f"{two.points:,} there are; {how}."


def _by_call(result: Tried) -> list[str]:
    points: Counter[str] = Counter()
    copies: Counter[str] = Counter()
    again: Counter[str] = Counter()
    for trial in result.one.trials:
        kind, _, visit = trial.schedule[0].partition("@")
        whose, _, place = visit.rpartition("#")[0].partition("/")
        call = place.partition("/")[0] if whose == "handler" else place  # one handler, whatever the key
        name = f"{'after' if kind == 'crash_after' else 'before'} {call}"
        points[name] += 1
        copies[name] += trial.copies
        again[name] += trial.again
    return [f"| {PAIRS[result.pair][0]} | {n} | {points[n]} | {copies[n]} | {again[n]} |" for n in points]


def main() -> int:
    """Try, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--runs-max", type=int, default=RUNS_MAX, help="of two crashes, for each pair")
    parser.add_argument("--visits-max", type=int, default=1, help="of a place, for the second crash")
    parser.add_argument("--only", default="", help="pairs whose name has this in it")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "crash-points.md")
    asked = parser.parse_args()
    bounds = asked.runs_max, asked.visits_max
    wanted = [(name, asked.seed, *bounds) for name in PAIRS if asked.only in name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the pool ends with it
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        results = pool.map(tried, wanted, chunksize=1)
    options = (
        f"seed {asked.seed}, runs of two crashes at most {asked.runs_max:,}, visits of a place {asked.visits_max}"
    )
    asked.out.write_text(page(results, options))
    for each in results:
        print(f"{each.pair}: {each.one.runs + each.two.runs:,} runs in {each.elapsed_s:.0f} s")
    failing = sum(len(found.failing) for each in results for _, found in each.counts())
    print(f"written: {asked.out}; " + (f"{failing} runs broke a promise" if failing else "every promise held"))
    return 1 if failing else 0


HEAD = """\
# Crash points, one by one

This page is written by `make crash-table`. For docs/guarantees.md real processes are killed on real servers, at a few
named points. Here the servers and the time are simulated, what runs on them is choreo's own code, and every point is
tried: a crash before and after every single call of a process to broker, store or handler, and then pairs of crashes.

The flow: three parcels, two of them for one street and 5 ms apart. `hub` sorts each, `van` delivers it, `hub` files
it: two services of one process each, two partitions a topic. A crashed process runs no further line; another is
started 0.5 to 8 s later. Everything else goes well.

- **points**: of one crash, all there are in a run without any, one before each call and one after it is done but not
  answered. A call that only reads has no point after it: nothing is there then that was not before. Of two crashes:
  each of these, with a second one at the next visit of every place that comes later (a place is one call of one
  process, of the crashed one's successor or of another, or of a handler for one key).
- **runs**: those that were run, each in a world of its own. In each the crashes happened where they were asked for.
- **lost**: events a handler neither handled nor made a dead letter of.
- **duplicated on the log**: emits beyond the first with their id, as a reader under `read_committed` sees them.
- **duplicated effects**: parcels delivered a second time under another id, which nobody downstream could drop.
- **out of order**: an emit of a street that came before one of an earlier parcel.
- **other violations**: of all else that every simulation checks: a duplicate where the pair promises none, copies
  that differ, offsets committed above what is done, two owners of a partition, attempts above the policy, flows
  without an end (seen on the log alone), causes that are nowhere, no rest after the last crash.
- **handled again**: calls of a handler begun, beyond the first for the same event. No promise is broken by one: a
  crash between a handler and the commit of what it did costs one on every pair, which is what `ctx.idempotency_key`
  is for. It shows that the crashes were felt.
"""

BY_CALL = """\
One crash a run. `write` and `read` are calls of the store, `send`, `commit offsets`, `position`, `fence`, `begin`,
`produce`, `add offsets` and `end` of the broker; `hub.sort`, `van.deliver` and `hub.file` are the handlers. The
embedded broker is a store, too.
"""

TAIL = """\
## Running it, and what it does not show

`make crash-table` needs two processes and some minutes. Of `scripts/crash_table.py`, `--only lease` tries one pair,
`--seed` another day, `--visits-max` more second crashes after each first one. One line is run again by

```python
from choreo.testing.simulation.crashes import try_one
from scripts.crash_table import SEED, few_parcels

print(try_one(few_parcels("lease"), SEED, ("crash_after@hub-1/send#1",)))
```

`crash_points`, `single` and `double` there take any `Simulation`, yours too. `tests/simulation/test_crashes.py` runs
a part of this in every build, and takes protections out to see that it is noticed.

- It is one seed, three parcels and one process a service: every point of that run, not of every run. Several members,
  other faults and other days are drawn by `choreo simulate`.
- The second crash comes at the first later visit of a place, not at every one, and there is no third. All that a
  store writes is one place, so that few second crashes hit the commit of a restarted process.
- A transaction of a database is one step, as it is from outside. No server loses what it acknowledged. No handler
  writes rows here; rows exactly once are in docs/guarantees.md and in the order flow's own simulation.
- Calls are crashed in the first 30 virtual seconds, so that the world can come to rest.
"""

if __name__ == "__main__":
    sys.exit(main())
