"""The order flow and a second one on three brokers, PostgreSQL and Redis, all of which fail again and again.

`CHAOS_S` seconds of faults (120), seed `CHAOS_SEED` (a new one), `CHAOS_KINDS="broker killed, scaled up"` for these
kinds only, and `CHAOS_WRITE=1` to write docs/chaos.md.
"""

import asyncio
import math
import os
import platform
import random
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from handlers.order_fulfilment.orders import EXPECTED
from tests.integration.chaos.crew import ROOT, Crew
from tests.integration.chaos.faults import Chaos
from tests.integration.chaos.load import Load
from tests.integration.chaos.outcome import Outcome, outcome_of
from tests.integration.chaos.page import Run
from tests.integration.chaos.reading import by_choreo, by_librdkafka, plain
from tests.integration.chaos.stage import Stage, staged
from tests.integration.chaos.watching import Watcher
from tests.integration.cluster import in_sync

CHAOS_S = float(os.environ.get("CHAOS_S", "120"))
KINDS = [each.strip() for each in os.environ.get("CHAOS_KINDS", "").split(",") if each.strip()]
ORDERS_PER_S, ENTRIES_PER_S = 5.0, 8.0
END_S = 90.0
"""For what was published to come to its end when nothing fails any more."""


@pytest.mark.chaos
async def test_nothing_is_lost_done_twice_or_overtaken(tmp_path: Path) -> None:
    """Every order and entry ends, every effect is there once and in order, and two clients read the same log."""
    seed, begun_s = int(os.environ.get("CHAOS_SEED") or random.randrange(1_000_000)), time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - begun_s:6.1f} s  {line}", flush=True)

    when, busy = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), os.getloadavg()[0]
    tell(f"seed {seed}, {CHAOS_S:g} s of faults, logs in {tmp_path}")
    async with staged(tmp_path) as stage:
        load = Load(
            stage.world.kafka.proxied_servers,
            orders_per_s=ORDERS_PER_S,
            entries_per_s=ENTRIES_PER_S,
            chance=random.Random(seed),
        )
        watcher = Watcher(load, stage.fleet, stage.world.postgres.url, tell)
        await stage.ready(stock_times=1 + math.ceil(ORDERS_PER_S * CHAOS_S / EXPECTED.orders))
        tell("all services are at work")
        await suffered(stage, load, watcher, Chaos(stage.world, watcher, seed, tell, only=KINDS))
        tell("everything has come to its end")
        outcome = await told(stage, load)
        tell("read back")
    run = Run(
        outcome,
        watcher.faults,
        stage.world.crew.ended,
        load.repeated,
        ORDERS_PER_S,
        ENTRIES_PER_S,
        when,
        command=f"CHAOS_S={CHAOS_S:g} CHAOS_SEED={seed} pytest -s tests/integration/chaos",
        versions=f"Kafka 4.1.1, {_versions('aiokafka', 'confluent-kafka', 'psycopg', 'redis')}",
        cores=os.cpu_count() or 1,
        busy=f"ran all of it (load average before: {busy:.1f})",
    )
    print(run.markdown())
    print(*outcome.problems, sep="\n")
    for each in stage.world.crew.ended:
        print(f"--- {each.service} ended by itself with exit code {each.code}:\n{each.said}")
    if os.environ.get("CHAOS_WRITE") == "1":
        (ROOT / "docs" / "chaos.md").write_text(run.markdown())
    assert (outcome.lost, outcome.twice, outcome.reordered, outcome.dead_letters) == (0, 0, 0, 0), outcome.problems
    assert outcome.problems == []
    assert outcome.resent["changelog"] == 0, "its emits are on the log once"
    assert all(each.recovered_s is not None for each in watcher.faults)


async def suffered(stage: Stage, load: Load, watcher: Watcher, chaos: Chaos) -> None:
    """Publish and do faults; return when all has come to its end and the services have drained."""
    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(watcher.watch()), tasks.create_task(mending(stage.world.crew))]
        async with load.running():
            await chaos.run(CHAOS_S)
        await in_sync(stage.world.kafka.bootstrap_servers)
        await watcher.at_end(within_s=END_S)
        await stage.fleet.at_rest()
        for each in watching:
            each.cancel()
    await stage.world.crew.drain(*stage.world.crew.names)


async def mending(crew: Crew) -> None:
    """Have processes started again that ended by themselves."""
    while True:
        crew.mend()
        await asyncio.sleep(0.5)


async def told(stage: Stage, load: Load) -> Outcome:
    """Read everything with both clients, which must agree, and compare it with the tables."""
    servers = stage.world.kafka.bootstrap_servers
    records = await by_choreo(servers, stage.topics)
    assert [plain(each) for each in records] == await by_librdkafka(servers, stage.topics)
    kept = await asyncio.to_thread(stage.kept, list(load.placed))
    return outcome_of(records, kept, placed=load.placed.keys(), made=load.made.keys())


def _versions(*names: str) -> str:
    return ", ".join([*(f"{name} {version(name)}" for name in names), f"Python {platform.python_version()}"])
