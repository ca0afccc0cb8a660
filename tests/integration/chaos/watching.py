"""What has come to its end so far, seen from the services' own tables, and how long a fault is felt."""

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from statistics import median

import psycopg

from tests.integration.chaos.entries import TABLE
from tests.integration.chaos.load import Load, Made
from tests.integration.killing import Fleet

ORDERS, ENTRIES = "orders", "entries"
BOTH = frozenset({ORDERS, ENTRIES})
POLL_S = 0.25
ENDS = {
    "inventory": "SELECT rowid, order_id FROM inventory_ledger"
    " WHERE effect IN ('reject', 'release', 'issue') AND rowid > {}",
    "notifications": "SELECT rowid, order_id FROM notifications_message"
    " WHERE text NOT LIKE 'Thank you%' AND text NOT LIKE '%little later%' AND rowid > {}",
}
"""By service, what says that an order has come to its end there."""
ROWS_BACK = 2_000
"""Numbers are given before commits, so rows appear out of order."""
KINDS = frozenset({"entry.booked", "entry.noted", "entry.mirrored"})


@dataclass
class Felt:
    """One fault, and when all that was published before its end had come to its own end.

    Attributes:
        flows: `ORDERS`, `ENTRIES` or both: those that depend on what failed.
        disturbed: Another fault on one of them began before that, or was not over yet.
    """

    kind: str
    what: str
    began_s: float
    flows: frozenset[str] = BOTH
    ended_s: float = 0.0
    recovered_s: float | None = None
    disturbed: bool = False

    @property
    def recovery_s(self) -> float | None:
        """From the end of the fault; None: not recovered."""
        return None if self.recovered_s is None else self.recovered_s - self.ended_s


class Watcher:
    """Polls the tables of inventory, notifications and bookkeeper, the last of their flows."""

    def __init__(self, load: Load, fleet: Fleet, postgres: str, tell: Callable[[str], None]) -> None:
        self.faults: list[Felt] = []
        self._load, self._fleet, self._postgres, self._tell = load, fleet, postgres, tell
        self._order_rows = dict.fromkeys(ENDS, 0)
        self._entry_row = 0
        self._ended: dict[str, set[str]] = {service: set() for service in ENDS}
        self._heard: dict[Made, set[str]] = {}
        self._complete: set[Made] = set()

    def outstanding(self, flow: str) -> tuple[int, float]:
        """How many orders or entries have no end yet, and when the first of them was published."""
        if flow == ORDERS:
            ended = set.intersection(*self._ended.values())
            since = [at_s for order, at_s in self._load.placed.items() if order not in ended]
        else:
            since = [at_s for made, at_s in self._load.made.items() if made not in self._complete]
        return len(since), min(since, default=math.inf)

    def state(self) -> str:
        """What is outstanding, in words."""
        entries = [kind for made in self._load.made for kind in KINDS - self._heard.get(made, set())]
        kinds = "".join(f", {count} {kind}" for kind, count in sorted(Counter(entries).items()))
        return f"outstanding: {self.outstanding(ORDERS)[0]} orders{kinds}"

    def begin(self, felt: Felt) -> None:
        """Take note of a fault, which disturbs those that are not overcome on the same flow."""
        for each in self.faults:
            if each.recovered_s is None and each.flows & felt.flows:
                each.disturbed = felt.disturbed = True
        self.faults.append(felt)

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
        while self.missing() or any(each.recovered_s is None for each in self.faults):
            assert time.monotonic() < until_s, f"{self.state()}, such as {self.missing()[:10]}"
            await asyncio.sleep(POLL_S)

    def missing(self) -> list[str]:
        """Orders and entries without an end, the latter with what they still lack."""
        ended = set.intersection(*self._ended.values())
        orders = [f"order {order}" for order in self._load.placed if order not in ended]
        entries = [made for made in self._load.made if made not in self._complete]
        lacking = ((made, sorted(KINDS - self._heard.get(made, set()))) for made in entries)
        return orders + [f"{made}: {kinds}" for made, kinds in lacking]

    def _poll(self) -> None:
        for service, query in ENDS.items():
            for row, order in self._fleet.query(service, query.format(self._order_rows[service])):
                assert isinstance(row, int)
                self._order_rows[service] = max(row, self._order_rows[service])
                self._ended[service].add(str(order))
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
        oldest_s = {flow: self.outstanding(flow)[1] for flow in BOTH}
        for each in self.faults:
            over = each.recovered_s is None and 0 < each.ended_s < seen_s
            if over and min(oldest_s[flow] for flow in each.flows) > each.ended_s:
                each.recovered_s = seen_s
                note = ", other faults meanwhile" if each.disturbed else ""
                self._tell(f"recovered from {each.what} in {each.recovery_s:.1f} s{note}")


def recovery(faults: Sequence[Felt]) -> dict[str, tuple[int, float, float]]:
    """By kind, in the end of all: how many, median and maximum of their recovery in seconds."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for each in sorted(faults, key=lambda each: each.kind):
        if each.recovery_s is not None:
            times[each.kind].append(each.recovery_s)
    if times:
        times["all"] = list(chain.from_iterable(times.values()))
    return {kind: (len(found), median(found), max(found)) for kind, found in times.items()}
