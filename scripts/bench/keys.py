"""What deduplication costs an event in stores of 10^4 to 10^7 keys: claim and commit alone, no handler, in turns."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any, NamedTuple

from choreo.ports import ClaimRequest, CommitRequest, Finished, IdempotencyStore, Lease
from choreo.record import ProducerRecord
from scripts.bench import fill
from scripts.bench.markdown import prose, table
from scripts.bench.stage import NotMeasured, Stage, say

TITLE = "Keys in the store"
STORES = ("sqlite", "postgres", "redis", "changelog")
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
QUICK = 2
"""So many of the sizes in a quick run."""
EVENTS, SLICE = 7_000, 250
TURNS = {"sqlite": 8}
"""Turns a round, 1 unless named. In five rounds SQLite has as many events as a run of its index at 10^7 keys, so that
its CPU time has one sorted in, and no more than one."""
TURN_MS = 3_600_000
"""Log time between two turns: Redis forgets by the hour."""
CpuS = Callable[[], float]


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
        if self._keys == SIZES[0]:
            return unit
        scattered = (unit.offset * 7_919 + number) % self._keys
        return unit._replace(digest=fill.digest(scattered))

    def _finished(self, unit: ClaimRequest) -> Finished:
        emit = ProducerRecord(self._out, unit.digest, b"v" * 300, ())
        return Finished(unit.partition, unit.offset, unit.digest, (emit,), "handled")


def measure(stage: Stage) -> dict[str, Any]:
    """Store after store, since the larger ones fill the memory."""
    sizes = SIZES if stage.asked.scale == 1 else SIZES[:QUICK]
    found: dict[str, Any] = {"sizes": list(sizes), "stores": {}}
    for name in STORES:
        try:
            place = {
                "sqlite": lambda: str(stage.folders.mktemp("keys")),
                "postgres": lambda: stage.postgres,
                "redis": lambda: stage.redis,
                "changelog": lambda: stage.kafka,
            }[name]()
        except NotMeasured as error:
            say(f"keys: {name}: not measured: {error}")
            found["stores"][name] = {"not measured": str(error)}
            continue
        found["stores"][name] = asyncio.run(_measured(stage, name, place, sizes))
    return found


async def _measured(stage: Stage, name: str, place: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        filled = await fill.FILLED[name](stack, place, sizes, lambda line: say(f"keys: {line}"))
        sides = [
            Side(store, lease, keys, filled.out, filled.server_cpu_s)
            for (store, lease), keys in zip(filled.stores, sizes, strict=True)
        ]
        for side in sides:  # what is read for the first time, and compiled, is not counted
            await side.turn(0)
            side.turns.clear()
        for number in range(1, stage.asked.rounds * TURNS.get(name, 1) + 1):
            await sides[0].trim(number - 1)
            await filled.tidy()
            turns = list(sides)
            stage.chance.shuffle(turns)
            for side in turns:
                await side.turn(number)
        points = [_point(each.turns) for each in sides]
        told = ", ".join(f"{each['cpu_us']:.1f}" for each in points)
        say(f"keys: {name}: {told} us of CPU an event")
        return {"points": points, "facts": filled.facts}


def _point(turns: list[Turn]) -> dict[str, float]:
    """Median of wall time; sum of CPU time, since the kernel counts a server's in ticks of 10 ms."""
    return {
        "us": median(each.claim_s + each.commit_s for each in turns) / EVENTS * 1e6,
        "cpu_us": sum(each.client_cpu_s + each.server_cpu_s for each in turns) / len(turns) / EVENTS * 1e6,
        "client_cpu_us": sum(each.client_cpu_s for each in turns) / len(turns) / EVENTS * 1e6,
        "duplicate_us": median(each.duplicate_s for each in turns) / SLICE * 1e6,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The table, and what a key takes."""
    text = f"""Claim and commit of an event with one emit of 300 bytes, in slices of {SLICE}, by the store alone;
    CPU of the client and of the server's processes. What else an event costs is the same with any number of keys."""
    rows: list[tuple[str, ...]] = []
    facts = []
    for name, row in found["stores"].items():
        if "points" not in row:
            rows.append((name, f"not measured: {row['not measured']}"))
            continue
        for keys, point in zip(found["sizes"], row["points"], strict=True):
            ratio = point["cpu_us"] / row["points"][0]["cpu_us"]
            rows.append(
                (
                    name,
                    f"{keys:,}",
                    f"{point['cpu_us']:.1f}",
                    f"{ratio:.2f}",
                    f"{point['us']:.1f}",
                    f"{point['duplicate_us']:.1f}",
                )
            )
        told = ", ".join(f"{key.replace('_', ' ')} {value:.1f}" for key, value in row["facts"].items())
        facts.append(f"- {name}, with {found['sizes'][-1]:,} keys: {told}")
    heads = ("store", "keys", "CPU us", "ratio to the fewest", "us", "us of a duplicate")
    return [*prose(text), *table(heads, rows), "", *facts]
