"""What deduplication costs an event in a store of 10^3 keys and in one of 10^6, in turns, in the same run.

    python scripts/bench_stores.py [--stores sqlite,postgres,redis,changelog] [--json]

Kafka, PostgreSQL and Redis are real, and found or started as the tests find them. Ratios are what to compare between
machines; microseconds are those of this one. Exit 1 if a ratio is above 1.2 or a store could not be tried.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from choreo.ports import ClaimRequest, CommitRequest, Finished, IdempotencyStore, Lease  # noqa: E402
from choreo.record import ProducerRecord  # noqa: E402
from scripts import bench_fill as fill  # noqa: E402

STORES = ("changelog", "sqlite", "postgres", "redis")
FEW, MANY = 1_000, 1_000_000
ROUNDS, EVENTS, SLICE = 10, 7_000, 250
"""More events in all than a run of SQLite's index, so that CPU time has one sorted in."""
RATIO_MAX, RESTORE_S_MAX = 1.2, 30.0
TURN_MS = 3_600_000
"""Log time between two turns: Redis forgets by the hour."""
CpuS = Callable[[], float]


class Folders:
    """What the servers' fixtures ask for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def mktemp(self, name: str) -> Path:
        """A new folder; PostgreSQL runs as another user, who has to reach it."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root))
        folder.chmod(0o755)
        return folder


class Turn(NamedTuple):
    """Seconds of claim and commit of EVENTS units, CPU of both sides in them; then of claiming SLICE duplicates."""

    claim_s: float
    commit_s: float
    client_cpu_s: float
    server_cpu_s: float
    duplicate_s: float


class Side:
    """A store that begins with so many keys, and its turns."""

    def __init__(self, store: IdempotencyStore, lease: Lease, keys: int, out: str, server_cpu_s: CpuS) -> None:
        self._store, self._lease, self._keys, self._out = store, lease, keys, out
        self._server_cpu_s = server_cpu_s
        self._handled = 0
        self.turns: list[Turn] = []

    async def turn(self, number: int) -> None:
        """EVENTS fresh units, then SLICE duplicates of keys that were there before."""
        lease, at_ms = self._lease, fill.BASE_MS + (number + 1) * TURN_MS
        claim_s = commit_s = cpu_s = server_s = 0.0
        units: list[ClaimRequest] = []
        for _ in range(EVENTS // SLICE):
            units = [self._unit(os.urandom(16), at_ms) for _ in range(SLICE)]
            request = CommitRequest(
                {lease.partition: lease}, [self._finished(unit) for unit in units], {lease.partition: self._handled}
            )
            began_cpu_s, began_server_s, began_s = time.process_time(), self._server_cpu_s(), time.perf_counter()
            claimed = await self._store.claim([lease], units)
            claimed_s = time.perf_counter()
            result = await self._store.commit(request)
            ended_s = time.perf_counter()
            cpu_s += time.process_time() - began_cpu_s
            server_s += self._server_cpu_s() - began_server_s
            claim_s, commit_s = claim_s + claimed_s - began_s, commit_s + ended_s - claimed_s
            assert {each.verdict for each in claimed} == {"fresh"}
            assert not result.refused
            await self._store.sent([row for row, _ in result.outbox])
        known = [self._known(unit, number) for unit in units]
        began_s = time.perf_counter()
        claimed = await self._store.claim([lease], known)
        duplicate_s = time.perf_counter() - began_s
        assert {each.verdict for each in claimed} == {"done"}
        self.turns.append(Turn(claim_s, commit_s, cpu_s, server_s, duplicate_s))

    async def trim(self, number: int) -> None:
        """Forget what was there before this turn, so that the store of few keys stays one."""
        partition, until_ms = self._lease.partition, fill.BASE_MS + (number + 1) * TURN_MS
        await self._store.renew([self._lease], 600.0, {partition: until_ms})
        while await self._store.purge(self._lease.group, [partition.topic], 0):
            pass

    def _unit(self, digest: bytes, at_ms: int) -> ClaimRequest:
        self._handled += 1
        flow = os.urandom(16).hex()
        return ClaimRequest(self._lease.partition, digest, fill.FINGERPRINT, fill.HANDLER, self._handled, flow, at_ms)

    def _known(self, unit: ClaimRequest, number: int) -> ClaimRequest:
        """Of the store of many any key, scattered; of that of few one just handled, since the first ones are gone."""
        if self._keys == FEW:
            return unit
        scattered = (unit.offset * 7_919 + number) % self._keys
        return unit._replace(digest=fill.digest(scattered))

    def _finished(self, unit: ClaimRequest) -> Finished:
        emit = ProducerRecord(self._out, unit.digest, b"v" * 300, ())
        return Finished(unit.partition, unit.offset, unit.digest, (emit,), "handled")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default=",".join(STORES), help="some of them, with commas between")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    wanted = asked.stores.split(",")
    unknown = sorted(set(wanted) - set(STORES))
    if unknown:
        parser.error(f"no such store: {', '.join(unknown)}; there are {', '.join(STORES)}")
    results: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="choreo-bench-")))
        folder.chmod(0o755)
        for name in (each for each in STORES if each in wanted):
            say(f"{name}: begins")
            try:
                place = _place(name, stack, folder)
            except BaseException as error:  # pytest's Skipped and Failed are no Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                missing[name] = " ".join(str(error).split())[:300]
                say(f"{name}: not tried: {missing[name]}")
                continue
            results[name] = asyncio.run(_measure(name, place))
    print(json.dumps(results, indent=2) if asked.json else _table(results))
    broken = [
        name
        for name, row in results.items()
        if row["ratio"] > RATIO_MAX or row.get("restore_s_100_a_record", 0.0) > RESTORE_S_MAX
    ]
    say(f"above the limits: {', '.join(broken)}" if broken else "all within the limits")
    return 1 if broken or missing else 0


def say(line: str) -> None:
    """Progress, beside the result."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _place(name: str, stack: ExitStack, folder: Path) -> str:
    """Where the store is: a folder, or the URL of a server that runs from now on."""
    folders: Any = Folders(folder)
    if name == "sqlite":
        return str(folder)
    if name == "postgres":
        from tests.postgres_server import postgres_url as urls
    elif name == "redis":
        from tests.redis_server import redis_url as urls
    else:
        from tests.kafka_server import kafka_bootstrap_servers as urls
    return stack.enter_context(contextmanager(urls)(folders))


async def _measure(name: str, place: str) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        filled = await fill.FILLED[name](stack, place, (FEW, MANY), say)
        few, many = (
            Side(store, lease, keys, filled.out, filled.server_cpu_s)
            for (store, lease), keys in zip(filled.stores, (FEW, MANY), strict=True)
        )
        await few.turn(0)
        await many.turn(0)  # what is read for the first time, and compiled, is not counted
        few.turns.clear()
        many.turns.clear()
        for number in range(1, ROUNDS + 1):
            await few.trim(number - 1)
            await filled.tidy()
            for side in (few, many) if number % 2 else (many, few):
                await side.turn(number)
        row = _row(few.turns, many.turns) | filled.facts
        say(f"{name}: {row['few_us']:.1f} us, {row['many_us']:.1f} us an event, ratio {row['ratio']:.2f}")
        return row


def _row(few: list[Turn], many: list[Turn]) -> dict[str, float]:
    """Medians of wall time; sums of CPU time, since the kernel counts a server's in ticks of 10 ms."""

    def wall_us(turns: list[Turn]) -> float:
        return median(each.claim_s + each.commit_s for each in turns) / EVENTS * 1e6

    def cpu_us(turns: list[Turn]) -> float:
        return sum(each.client_cpu_s + each.server_cpu_s for each in turns) / len(turns) / EVENTS * 1e6

    def duplicate_us(turns: list[Turn]) -> float:
        return median(each.duplicate_s for each in turns) / SLICE * 1e6

    def claim_us(turns: list[Turn]) -> float:
        return median(each.claim_s for each in turns) / EVENTS * 1e6

    return {
        "few_us": wall_us(few),
        "many_us": wall_us(many),
        "ratio": wall_us(many) / wall_us(few),
        "few_cpu_us": cpu_us(few),
        "many_cpu_us": cpu_us(many),
        "cpu_ratio": cpu_us(many) / cpu_us(few),
        "claim_ratio": claim_us(many) / claim_us(few),
        "few_duplicate_us": duplicate_us(few),
        "many_duplicate_us": duplicate_us(many),
    }


def _table(results: dict[str, dict[str, float]]) -> str:
    lines = [
        f"{'store':10} {'us at 10^3':>10} {'us at 10^6':>10} {'ratio':>6} {'cpu us':>14} {'ratio':>6} "
        f"{'claim alone':>11} {'duplicate us':>14}"
    ]
    for name, row in results.items():
        cpu = f"{row['few_cpu_us']:.1f} {row['many_cpu_us']:.1f}"
        duplicate = f"{row['few_duplicate_us']:.1f} {row['many_duplicate_us']:.1f}"
        lines.append(
            f"{name:10} {row['few_us']:10.1f} {row['many_us']:10.1f} {row['ratio']:6.2f} {cpu:>14} "
            f"{row['cpu_ratio']:6.2f} {row['claim_ratio']:11.2f} {duplicate:>14}"
        )
    lines.append(f"claim and commit of an event with one emit of 300 bytes; slices of {SLICE}, {ROUNDS} turns each")
    for name, row in results.items():
        facts = [f"{key.replace('_', ' ')} {row[key]:.1f}" for key in row if key.endswith(("_a_key", "_a_record"))]
        lines.append(f"{name}: {', '.join(facts)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
