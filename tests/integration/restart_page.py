"""What there is to say of rolling restarts, and where in docs/ it is said."""

import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median
from typing import NamedTuple

from tests.integration.outbox_stage import ROOT
from tests.integration.restart_load import PRESSES, RUSH
from tests.integration.restart_outcome import Outcome, Restart, longest_s, pauses_s

PAGE = ROOT / "docs" / "deploying.md"
HEADING = "## Rolling restart, measured"
FELT_MS = 10_000
TEXT = """\
{heading}

Written by `make rolling-restart`: the four services of [the order flow](../handlers/order_stores/README.md),
{processes} processes each, on one Kafka broker, {partitions} partitions a topic, and PostgreSQL; the changelog
store, where it is named, for the three services without rows. {per_s:g} customers a second place an order and press
the button {presses} times: {presses} events, of which the flow must serve one. One publication in ten is repeated
under its id. Every process is replaced, one after the other: a new one is started, and when it is ready {rush}
customers come at once and an old one gets SIGTERM, as of a Deployment; a static member is stopped and started again
under its name, as of a StatefulSet.

**Pause**: the longest time for which a partition had an event for the service and the service finished none of that
partition, at each restart of a process of it, over all partitions that it reads. *At rest*: the same in {calm_s:g}
s without a restart.

| members, store | restarts | pause, median | maximum | at rest, median | maximum | drained after, median | maximum |
|---|---|---|---|---|---|---|---|
{pauses}

| members, store | orders | events | lost | doubled | out of order | dead letters | handlers run again | sent again |
|---|---|---|---|---|---|---|---|---|
{counts}

*Lost*: an order without an end, an event that nobody was told of. *Doubled*: one fact under two ids, an order
reserved, charged or shipped twice, goods that do not add up. *Out of order*: a customer's events told of in another
order than they were placed, an effect before its cause. *Run again*: a handler without a transaction, which is
legal. *Sent again*: under its id, the load's own repetitions among them.

{when}, Kafka 4.1.1, {versions}, on {cores} cores (load average {busy:.1f}: other work is in these times, too).
"""


class Run(NamedTuple):
    """One way of belonging to a group, on one store."""

    way: str
    store: str
    outcome: Outcome
    restarts: Sequence[Restart]
    calm_ms: tuple[int, int]

    def pauses(self) -> str:
        """A row of the first table."""
        pauses = pauses_s(self.outcome, self.restarts, after_ms=FELT_MS)
        drains = [each.drained_s for each in self.restarts]
        cells = [_of(pauses), _of(longest_s(self.outcome, *self.calm_ms)), _of(drains)]
        return f"| {self.way}, {self.store} | {len(self.restarts)} | {' | '.join(cells)} |"

    def counts(self) -> str:
        """A row of the second table."""
        found = self.outcome
        wrong = [len(each) for each in (found.lost(), found.doubled(), found.reordered(), found.dead)]
        cells = [len(found.presses), len(found.facts), *wrong, found.told_again, found.sent_again]
        return f"| {self.way}, {self.store} | {' | '.join(f'{each:,}' for each in cells)} |"


def markdown(runs: Sequence[Run], *, processes: int, partitions: int, per_s: float, calm_s: float) -> str:
    """The section of the page."""
    return TEXT.format(
        heading=HEADING,
        presses=PRESSES,
        rush=RUSH,
        processes=processes,
        partitions=partitions,
        per_s=per_s,
        calm_s=calm_s,
        pauses="\n".join(each.pauses() for each in runs),
        counts="\n".join(each.counts() for each in runs),
        when=time.strftime("%Y-%m-%d", time.gmtime()),
        versions=", ".join(f"{name} {version(name)}" for name in ("aiokafka", "confluent-kafka", "psycopg")),
        cores=os.cpu_count(),
        busy=os.getloadavg()[2],
    )


def written(section: str) -> None:
    """Put it at the end of the page, instead of what an earlier run wrote."""
    PAGE.write_text(PAGE.read_text().partition(HEADING)[0].rstrip() + "\n\n" + section)


def _of(found: Sequence[float]) -> str:
    return f"{median(found):.1f} s | {max(found):.1f} s"
