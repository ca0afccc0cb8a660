"""What there is to say of a rolling deploy, and where in docs/ it is said."""

import os
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import NamedTuple

from tests.integration.rolling import ROOT, Deploy, Rolled
from tests.integration.rolling_outcome import Outcome

PAGE = ROOT / "docs" / "definitions.md"
HEADING = "## Two builds at once, measured"
TEXT = """\
{heading}

Written by `make rolling-deploy`: `handlers/approval` on Kafka and PostgreSQL, two members of `choreo run`. {per_s:g}
expenses a second begin and as many are decided, twice each: {events_per_s:g} events a second, every tenth of them
published twice. {instances:,} are in flight. Both members run version 1; one after the other is stopped with SIGTERM,
drains, and is started as version 2, which holds version 1 beside it, until `/readyz` says that it is in its group.
{hold_s:g} s later it is back to version 1 in the same way; then {hold_s:g} s of that, a pause to look, and version 2
again, both members at once. A day of the process takes {day_s:g} s, so that reminders of version 2 come meanwhile.

| | |
|---|---|
{rows}

{when}, Kafka 4.1.1, {versions}, on {cores} cores (load average {busy:.1f}). The longest times are of events that met
a rebalance, or a member being started.
"""


class Run(NamedTuple):
    """One run: its end, the members that were replaced one at a time, and instances in flight, now and then."""

    deploy: Deploy
    end: Outcome
    rolled: Sequence[Rolled]
    in_flight: Sequence[int]
    hold_s: float
    took_s: float

    def markdown(self) -> str:
        """The section of the page."""
        deploy = self.deploy
        return TEXT.format(
            heading=HEADING,
            per_s=deploy.per_s,
            events_per_s=3 * deploy.per_s,
            instances=deploy.instances,
            hold_s=self.hold_s,
            day_s=deploy.day_s,
            rows="\n".join(f"| {what} | {said} |" for what, said in self._rows().items()),
            when=time.strftime("%Y-%m-%d", time.gmtime()),
            versions=", ".join(f"{name} {version(name)}" for name in ("aiokafka", "psycopg")),
            cores=os.cpu_count(),
            busy=os.getloadavg()[1],
        )

    def _rows(self) -> dict[str, str]:
        end, counts, delays_s = self.end, self.end.versions(), self.end.delays_s
        median_s, most_s = (delays_s[int(len(delays_s) * part)] for part in (0.5, 0.99))
        longest_s = max((each.delay_s for each in end.waited), default=0.0)
        wrong = "lost, doubled, under another version than stored, in another state than their history says"
        return {
            "expenses": f"{counts.total():,}: {counts[1]:,} of version 1, {counts[2]:,} of version 2",
            "in flight, when counted": ", ".join(f"{each:,}" for each in self.in_flight),
            wrong: str(len(end.problems()) or "none"),
            "dead letters": str(end.dead_letters or "none"),
            "decisions on version 2 that came while only version 1 ran": f"{len(end.waited):,} waited, the longest "
            f"for {longest_s:.1f} s, each handled with one attempt",
            "sent again under its own id": str(end.sent_again),
            "a member replaced, from SIGTERM: drained": _seconds(each.drained_s for each in self.rolled),
            "and the other build in the group": _seconds(each.ready_s for each in self.rolled),
            "from an event until it was handled, of version 1, which all builds know": f"median {median_s:.2f} s, "
            f"99 % within {most_s:.1f} s, longest {delays_s[-1]:.1f} s",
            "all of it": f"{self.took_s:.0f} s",
        }


def written(run: Run) -> None:
    """Put it at the end of the page, instead of what an earlier run wrote."""
    PAGE.write_text(PAGE.read_text().partition(HEADING)[0].rstrip() + "\n\n" + run.markdown())


def _seconds(found: Iterable[float]) -> str:
    return f"after {', '.join(f'{each:.1f}' for each in found)} s"
