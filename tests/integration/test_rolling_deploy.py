"""From version 1 of the approval to 2, back, and to 2 again, on Kafka and PostgreSQL, with instances in flight.

`ROLLING_INSTANCES` of them, 100 unless given; `ROLLING_PER_S`, `ROLLING_DAY_S`, `ROLLING_HOLD_S`; `ROLLING_WRITE=1`
writes docs/definitions.md.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.integration.rolling import ROOT, Deploy, Rolled
from tests.integration.rolling_outcome import Outcome

INSTANCES = int(os.environ.get("ROLLING_INSTANCES", "100"))
PER_S = float(os.environ.get("ROLLING_PER_S", "10"))
DAY_S = float(os.environ.get("ROLLING_DAY_S", "6"))
HOLD_S = float(os.environ.get("ROLLING_HOLD_S", "1"))
RUN_S_MAX = 600.0
MEMBERS = ("one", "two")
PAGE = ROOT / "docs" / "definitions.md"
HEADING = "## Two builds at once, measured"
TEXT = """\
{heading}

Written by `make rolling-deploy`: `handlers/approval` on Kafka and PostgreSQL, two members of `choreo run`. {per_s:g} expenses a
second begin and as many are decided, {events_per_s:g} events a second, every tenth of them published twice; {instances:,} are in flight. Both
members run version 1; one after the other is stopped with SIGTERM, drains, and is started as version 2 (which holds
version 1 beside it), until `/readyz` says that it is in its group. {hold_s:g} s later back to version 1 in the same way,
then {hold_s:g} s of that, a pause to look, and version 2 again, both members at once. A day of the process takes {day_s:g} s, so
that reminders of version 2 come meanwhile.

| | |
|---|---|
| expenses | {total:,}: {v1:,} of version 1, {v2:,} of version 2 |
| in flight, when counted | {in_flight} |
| lost, doubled, under another version than stored, or in another state than their history says | {problems} |
| dead letters | {dead_letters} |
| decisions on version 2 that came while only version 1 ran, and waited | {waited:,}, the longest for {waited_s:.1f} s, each with one attempt |
| sent again under its own id | {sent_again} |
| a member replaced, from SIGTERM: drained | after {drained} |
| the other build in the group | after {ready} |
| from an event until it was handled, of version 1, which all builds know | median {median_ms:.0f} ms, 99 % within {p99_s:.1f} s, longest {max_s:.1f} s |
| all of it | {took_s:.0f} s |

{when}, Kafka 4.1.1, {versions}, on {cores} cores (load average {busy:.1f}). The longest times are those of events
that met a rebalance or a member being started.
"""


async def test_builds_are_rolled_forward_and_back(kafka: str, postgres: str, tmp_path: Path) -> None:
    """None lost, none doubled, none under a version it does not store; what a build does not know waits."""
    deploy = Deploy(tmp_path, kafka, postgres, instances=INSTANCES, per_s=PER_S, day_s=DAY_S)
    begun_s = time.monotonic()
    async with asyncio.timeout(RUN_S_MAX), deploy.prepared():
        await deploy.members.replace(MEMBERS, "v1")
        await deploy.submit(INSTANCES)
        before = await deploy.quiet()
        in_flight = [deploy.in_flight()]
        async with deploy.load():
            rolled = await deploy.members.roll("v2")
            await asyncio.sleep(HOLD_S)
            in_flight.append(deploy.in_flight())
            rolled += await deploy.members.roll("v1")
            await asyncio.sleep(HOLD_S)
            async with deploy.paused():
                back = await deploy.quiet()
            in_flight.append(deploy.in_flight())
            await deploy.members.replace(MEMBERS, "v2")
        await deploy.finish()
        end = await deploy.quiet()
        await deploy.members.stop(*MEMBERS)
        waits = deploy.members.log("v1").count("events wait: approval v2 is not in this build")
    text = page(end, rolled, in_flight, time.monotonic() - begun_s)
    print(text)
    assert [before.problems(), back.problems(), end.problems()] == [[], [], []]
    assert min(in_flight) >= INSTANCES * 0.9
    assert min(end.versions().values()) >= INSTANCES * 0.1
    assert all(row.ended for row in end.rows.values())
    assert any(row.version == 2 and not row.ended for row in back.rows.values())
    assert waits, "no build of version 1 has met an instance of version 2"
    assert end.waited
    if os.environ.get("ROLLING_WRITE") == "1":
        PAGE.write_text(PAGE.read_text().partition(HEADING)[0].rstrip() + "\n\n" + text)


def page(end: Outcome, rolled: Sequence[Rolled], in_flight: Sequence[int], took_s: float) -> str:
    """What there is to say of the run."""
    versions, delays_s = end.versions(), end.delays_s
    return TEXT.format(
        heading=HEADING,
        per_s=PER_S,
        events_per_s=3 * PER_S,
        instances=INSTANCES,
        hold_s=HOLD_S,
        day_s=DAY_S,
        total=versions.total(),
        v1=versions[1],
        v2=versions[2],
        in_flight=", ".join(f"{each:,}" for each in in_flight),
        problems=len(end.problems()) or "none",
        dead_letters=end.dead_letters or "none",
        waited=len(end.waited),
        waited_s=max((each.delay_s for each in end.waited), default=0.0),
        sent_again=end.sent_again,
        drained=_seconds(each.drained_s for each in rolled),
        ready=_seconds(each.ready_s for each in rolled),
        median_ms=1000 * delays_s[len(delays_s) // 2],
        p99_s=delays_s[int(len(delays_s) * 0.99)],
        max_s=delays_s[-1],
        took_s=took_s,
        when=time.strftime("%Y-%m-%d", time.gmtime()),
        versions=", ".join(f"{name} {version(name)}" for name in ("aiokafka", "psycopg")),
        cores=os.cpu_count(),
        busy=os.getloadavg()[1],
    )


def _seconds(found: Iterable[float]) -> str:
    return f"{', '.join(f'{each:.1f}' for each in found)} s"
