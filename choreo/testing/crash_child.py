"""The process that crash tests kill: `python -m choreo.testing.crash_child` reads jobs as JSON from standard input.

It imports choreo once and forks a process for each job; on standard output is the exit code of each, negative for a
signal. A job without a point runs both services until everything is done, and ends well.
"""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypedDict

from choreo.core.messages import Limits
from choreo.running import Running
from choreo.testing import crash_flow
from choreo.testing.crash_points import CrashPoint, arm
from choreo.transports.embedded import membership

LIFE_S_MAX = 90.0
SETTLE_S = 1.0


class Job(TypedDict):
    """One life of one process; `point` is None for one that is to end well."""

    point: CrashPoint | None
    prefix: str
    broker: str
    store: str
    environment: dict[str, str]


def live(job: Job) -> int:
    """Live it, and return the exit code, if it comes to that."""
    os.environ.update(job["environment"])
    # A killed member is replaced sooner.
    membership.HEARTBEAT_S, membership.MEMBER_S = 0.1, 0.8
    try:
        asyncio.run(_run(job))
    except Exception:
        sys.stderr.write(f"{job['prefix']}: {traceback.format_exc()}\n")
        return 1
    return 0


async def _run(job: Job) -> None:
    app = crash_flow.app(job["store"], job["prefix"])
    point = job["point"]
    names = ["stock"] if point is not None else ["stock", "audit"]
    if point is not None:
        arm(CrashPoint(*point))
    # Small flushes: several a life. Deaths are not to be counted against an event, there are so many of them.
    limits = Limits(concurrency=4, flush_units=4, transact_units=4, together_max=1_000, deliveries_max=1_000)
    running = app.running(names, broker=job["broker"], store=job["store"] or None, limits=limits, drain_s=5.0)
    async with asyncio.timeout(LIFE_S_MAX), running as services:
        for name in names:
            await _finished(services, name)
            await asyncio.sleep(SETTLE_S)  # the other one may have been told something meanwhile
            await _finished(services, name)


async def _finished(services: Running, name: str) -> None:
    """Return when the service has every partition, and nothing of them is left to be done."""
    worker = services.workers[name]
    wanted = crash_flow.PARTITIONS * len(worker.topics)
    while (  # noqa: ASYNC110 - it is several objects that say when
        len(worker.leases) < wanted
        or worker.engine.unfinished()
        or not all(worker.consumer.drained(id_) for id_ in worker.leases)
    ):
        await asyncio.sleep(0.05)


def fork(lives: Sequence[Callable[[], int]]) -> list[int]:
    """Live all at once, each in a process of its own; the exit code of each."""
    pids = []
    for life in lives:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = life()
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    json.dump(fork([partial(live, job) for job in json.load(sys.stdin)]), sys.stdout)
