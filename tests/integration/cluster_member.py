"""One process of the service that tests restart, freeze and whose brokers they kill.

`python -m tests.integration.cluster_member JOB`, where JOB is a `Job` as JSON; see tests/integration/cluster.py.
"""

import asyncio
import faulthandler
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from choreo import App, Event, Service
from choreo.cli import logs
from choreo.cli.run import stop_on_signals


class Work(Event, type="cluster.work", version=1, topic="work", key="key"):
    """What is to be done; `number` grows within a key, and is there once."""

    key: str
    number: int


class Done(Event, type="cluster.done", version=1, topic="done", key="key"):
    """What was done, and by which process."""

    key: str
    number: int
    by: int


class Job(TypedDict):
    """One process: what it runs on, and where it writes what it does."""

    name: str
    folder: str
    broker: str
    store: str
    prefix: str
    handler_s: Sequence[float]
    lease_s: float


def app_of(job: Job) -> App:
    """One handler that takes its time and emits; with SQLite another one that writes a row."""
    calls = os.open(Path(job["folder"]) / "calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    worker, prefix = Service("worker", group=f"{job['prefix']}worker"), job["prefix"]

    def note(what: str, number: int) -> None:
        os.write(calls, f"{what} {number} {os.getpid()}\n".encode())

    async def work(work: Work) -> Done:
        note("begin", work.number)
        await asyncio.sleep(random.uniform(*job["handler_s"]))
        note("end", work.number)
        return Done(key=work.key, number=work.number, by=os.getpid())

    def keep(work: Work, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO kept VALUES (?)", (work.number,))

    worker.handler(Work)(work)
    if job["store"].startswith("sqlite"):
        worker.on_start(lambda db: db.execute("CREATE TABLE IF NOT EXISTS kept (number INTEGER)"))
        worker.handler(Work)(keep)
    return App(worker, topics={name: prefix + name for name in ("work", "done", "worker.dlq")}, name="cluster")


async def live(job: Job) -> None:
    """Run until SIGTERM, telling how many partitions are owned; in the end, what was counted."""
    logs.configure(as_json=False)
    faulthandler.register(signal.SIGUSR1)  # where it hangs, if it does
    stop, folder = stop_on_signals(), Path(job["folder"])
    running = app_of(job).running(
        broker=job["broker"], store=job["store"], lease_s=job["lease_s"], create_schema=True, drain_s=20.0
    )
    async with running as services:
        worker = services.workers["worker"]
        failing = asyncio.ensure_future(services.failed())
        while not stop.is_set() and not failing.done():
            (folder / f"{job['name']}.owned").write_text(str(len(worker.leases)))
            await asyncio.sleep(0.1)
        if failing.done():
            failing.result()
        failing.cancel()
    (folder / f"{job['name']}.owned").write_text("0")
    (folder / f"{job['name']}-{os.getpid()}.counts").write_text(json.dumps(worker.counts))


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
