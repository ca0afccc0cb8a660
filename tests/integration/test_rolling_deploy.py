"""From version 1 of the approval to 2, back, and to 2 again, on Kafka and PostgreSQL, with instances in flight.

`ROLLING_INSTANCES` of them, 100 unless given; `ROLLING_PER_S`, `ROLLING_DAY_S`, `ROLLING_LOOK_S`, `ROLLING_HOLD_S`;
`ROLLING_WRITE=1` writes docs/definitions.md.
"""

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.integration.rolling import Deploy
from tests.integration.rolling_page import Run, written

INSTANCES = int(os.environ.get("ROLLING_INSTANCES", "100"))
PER_S = float(os.environ.get("ROLLING_PER_S", "10"))
DAY_S = float(os.environ.get("ROLLING_DAY_S", "10"))
LOOK_S = float(os.environ.get("ROLLING_LOOK_S", "0.1"))
HOLD_S = float(os.environ.get("ROLLING_HOLD_S", "1"))
RUN_S_MAX = 600.0
MEMBERS = ("one", "two")


@pytest.mark.slow
async def test_builds_are_rolled_forward_and_back(kafka: str, postgres: str, tmp_path: Path) -> None:
    """None lost, none doubled, none under a version it does not store; what a build does not know waits."""
    deploy = Deploy(tmp_path, kafka, postgres, instances=INSTANCES, per_s=PER_S, day_s=DAY_S, look_s=LOOK_S)
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
    run = Run(deploy, end, rolled, in_flight, HOLD_S, time.monotonic() - begun_s)
    print(run.markdown())
    assert [before.problems(), back.problems(), end.problems()] == [[], [], []]
    assert min(in_flight) >= INSTANCES * 0.9
    assert min(end.versions().values()) >= INSTANCES * 0.1
    assert all(row.ended for row in end.rows.values())
    assert any(row.version == 2 and not row.ended for row in back.rows.values())
    assert waits, "no build of version 1 has met an instance of version 2"
    assert end.waited
    if os.environ.get("ROLLING_WRITE") == "1":
        written(run)
