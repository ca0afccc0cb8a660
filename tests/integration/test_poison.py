"""An event that kills the process: it must not loop, and must not take the others with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DELIVERIES_MAX = 3
CHILD = """
import asyncio, json, os, signal, sys
from choreo import App, Event, Service
from choreo.core.messages import Limits
from choreo.runtime.emitting import original
from choreo.transports.embedded import membership

membership.MEMBER_S, membership.HEARTBEAT_S = 0.6, 0.2  # a killed member is replaced soon


class Asked(Event, type="tea.asked", topic="teas", key="who"):
    who: str


kitchen = Service("kitchen")


@kitchen.handler(Asked)
async def pour(asked: Asked) -> None:
    if asked.who == "poison":
        os.kill(os.getpid(), signal.SIGKILL)


async def main() -> None:
    limits = Limits(deliveries_max=%d)
    broker = "embedded:" + sys.argv[1]
    async with App(kitchen).running(broker=broker, limits=limits, create_topics=True, lease_s=1.0) as running:
        if len(sys.argv) > 2:
            for who in ("Ada", "poison", "Bob", "Eve"):
                await running.publish(Asked(who=who))
        while await running.transport.unread() or not running.workers["kitchen"].leases:
            await asyncio.sleep(0.02)
        letters = await running.transport.scan(["kitchen.dlq"], since_ms=0)
        print(json.dumps([[original(letter)["reason"], letter.key.decode()] for letter in letters]))


asyncio.run(main())
"""


def test_event_that_kills_the_process_is_dead_lettered_and_no_other(tmp_path: Path) -> None:
    """After `deliveries_max` deaths it is put aside as `crashed`; the events claimed with it are handled."""
    (tmp_path / "child.py").write_text(CHILD % DELIVERIES_MAX)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    codes, arguments = [], ["publish"]
    for _ in range(DELIVERIES_MAX + 1):
        ran = subprocess.run(
            [sys.executable, "child.py", "log.db", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            timeout=60,
        )
        codes.append(ran.returncode)
        arguments = []
    assert codes == [-9] * DELIVERIES_MAX + [0], ran.stderr.decode()
    assert json.loads(ran.stdout) == [["crashed", "poison"]]
