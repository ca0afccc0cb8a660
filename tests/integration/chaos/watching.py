"""What has come to its end so far, seen from the services' own tables, and how long a fault is felt."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import psycopg

from tests.integration.chaos.entries import TABLE
from tests.integration.chaos.load import Load, Made
from tests.integration.killing import Fleet

POLL_S = 0.25
ENDS = "SELECT rowid, order_id FROM inventory_ledger WHERE effect IN ('reject', 'release', 'issue') AND rowid > {}"
ROWS_BACK = 2_000
"""Numbers are given before commits, so rows appear out of order."""
KINDS = frozenset({"entry.booked", "entry.noted", "entry.mirrored"})


@dataclass
class Felt:
    """One fault, and when all that was published before its end had come to its own end.

    Attributes:
        disturbed: Another fault began before that.
    """

    kind: str
    what: str
    began_s: float
    ended_s: float = 0.0
    recovered_s: float | None = None
    disturbed: bool = False

    @property
    def recovery_s(self) -> float | None:
        """From the end of the fault; None: not recovered."""
        return None if self.recovered_s is None else self.recovered_s - self.ended_s


class Watcher:
    """Polls the tables of inventory and bookkeeper, the last of their flows."""

    def __init__(self, load: Load, fleet: Fleet, postgres: str, tell: Callable[[str], None]) -> None:
        self.faults: list[Felt] = []
        self._load, self._fleet, self._postgres, self._tell = load, fleet, postgres, tell
        self._order_row = 0
        self._entry_row = 0
        self._ended: set[str] = set()
        self._heard: dict[Made, set[str]] = {}
        self._complete: set[Made] = set()

    def outstanding(self) -> tuple[int, float | None]:
        """How many orders and entries have no end yet, and when the first of them was published."""
        since = [at_s for order, at_s in self._load.placed.items() if order not in self._ended]
        since += [at_s for made, at_s in self._load.made.items() if made not in self._complete]
        return len(since), min(since, default=None)

    async def watch(self) -> None:
        """Poll until cancelled, and say when a fault is over."""
        while True:
            begun_s = time.monotonic()
            await asyncio.to_thread(self._poll)
            self._judge(begun_s)
            await asyncio.sleep(POLL_S)

    async def at_end(self, *, within_s: float) -> None:
        """Return when nothing is outstanding."""
        until_s = time.monotonic() + within_s
        while (left := self.outstanding())[0] or any(each.recovered_s is None for each in self.faults):
            assert time.monotonic() < until_s, f"{left[0]} orders and entries have not ended: {self.missing()[:20]}"
            await asyncio.sleep(POLL_S)

    def missing(self) -> list[str]:
        """Orders and entries without an end, the latter with what they still lack."""
        orders = [f"order {order}" for order in self._load.placed if order not in self._ended]
        entries = [made for made in self._load.made if made not in self._complete]
        lacking = ((made, sorted(KINDS - self._heard.get(made, set()))) for made in entries)
        return orders + [f"{made}: {kinds}" for made, kinds in lacking]

    def _poll(self) -> None:
        for row, order in self._fleet.query("inventory", ENDS.format(self._order_row)):
            assert isinstance(row, int)
            self._order_row = max(row, self._order_row)
            self._ended.add(str(order))
        with suppress(psycopg.OperationalError, psycopg.errors.UndefinedTable):  # it may be down, or new
            self._poll_entries()

    def _poll_entries(self) -> None:
        found = f"SELECT id, kind, account, number FROM {TABLE} WHERE id > %s"
        with psycopg.connect(self._postgres, autocommit=True, connect_timeout=2) as db:
            rows = db.execute(found, (self._entry_row - ROWS_BACK,)).fetchall()
        for row, kind, account, number in rows:
            self._entry_row = max(row, self._entry_row)
            heard = self._heard.setdefault((account, number), set())
            heard.add(kind)
            if heard == KINDS:
                self._complete.add((account, number))

    def _judge(self, seen_s: float) -> None:
        count, oldest_s = self.outstanding()
        for each in self.faults:
            over = each.recovered_s is None and 0 < each.ended_s < seen_s
            if over and (oldest_s is None or oldest_s > each.ended_s):
                each.recovered_s = max(seen_s, each.ended_s)
                note = ", other faults meanwhile" if each.disturbed else ""
                self._tell(f"recovered from {each.what} in {each.recovery_s:.1f} s{note}; {count} outstanding")


def recovery(faults: list[Felt]) -> dict[str, tuple[int, float, float]]:
    """By kind: how many, median and maximum of their recovery in seconds."""
    kinds = Counter(each.kind for each in faults)
    times = {kind: [each.recovery_s or 0.0 for each in faults if each.kind == kind] for kind in kinds}
    return {kind: (kinds[kind], median(found), max(found)) for kind, found in sorted(times.items())}
