"""What was to be reached, whether it was, and where it was not what the profile says."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from scripts.bench.profiles import file_of, told

BUSY = 0.7
"""A process that is busy for less waits for something else than a CPU."""


class Target(NamedTuple):
    """`measured` is to be `sense` (<= or >=) `limit`; `profile`: the row whose profile says what is in the way."""

    work: str
    sense: str
    limit: float
    measured: float
    spread: str
    profile: str

    @property
    def met(self) -> bool:
        """Whether it is."""
        return (operator.le if self.sense == "<=" else operator.ge)(self.measured, self.limit)


def targets(results: dict[str, Any]) -> list[Target]:
    """Those whose sections have been measured. `results`: what each section found, by its name."""
    found = [
        *_cost(results.get("cost", {}).get("rows", {})),
        *_waiting(results.get("waiting", {}).get("rows", {})),
        *_latency(results.get("latency", {})),
        *_keys(results.get("keys", {})),
    ]
    if "embedded" in results:
        row = results["embedded"]
        spread = f"{row['calls_per_s_min']:,.0f}-{row['calls_per_s_max']:,.0f}"
        work = "embedded broker, 4 services, one process: handler calls/s"
        found.append(Target(work, ">=", 5_000, row["calls_per_s"], spread, ""))
    return found


def _cost(rows: dict[str, Any]) -> Iterator[Target]:
    for name, limit, work in (
        ("changelog", 1.1, "Kafka + changelog, tracing off, to aiokafka-txn"),
        ("changelog/confluent", 1.4, "the same on confluent-kafka, to confluent-txn"),
        ("sqlite", 1.4, "Kafka + SQLite, tracing off, to aiokafka-txn"),
        ("postgres", 1.4, "Kafka + PostgreSQL, tracing off, to aiokafka-txn"),
    ):
        if name in rows:
            row = rows[name]
            yield Target(work, "<=", limit, row["ratio"], f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}", name)
    if "changelog@1" in rows and "changelog" in rows:
        pairs = zip(rows["changelog@1"]["ratios"], rows["changelog"]["ratios"], strict=False)
        more = sorted(sampled - off for sampled, off in pairs)  # within a round, which may be a noisy one
        yield Target(
            "1 % sampled: what it adds", "<=", 0.15, median(more), f"{more[0]:.2f}-{more[-1]:.2f}", "changelog"
        )
    if "changelog@100" in rows:
        row = rows["changelog@100"]
        spread = f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}"
        work = "100 % traced, two spans an event, by OTLP, to aiokafka-txn"
        yield Target(work, "<=", 2.0, row["ratio"], spread, "changelog@100")
        if "faststream-otel" in rows:
            times = rows["faststream-otel"]["cpu_us"] / row["cpu_us"]
            yield Target("FastStream with tracing, to choreo 100 % traced", ">=", 10, times, "", "changelog@100")


def _waiting(rows: dict[str, Any]) -> Iterator[Target]:
    if rows:
        best = max(rows, key=lambda name: rows[name]["events_per_s"])
        work = f"a handler that waits 10 ms, events/s a process (best: {best})"
        yield Target(work, ">=", 5_000, rows[best]["events_per_s"], "", f"{best.partition(',')[0]}, waiting")


def _latency(found: dict[str, Any]) -> Iterator[Target]:
    for name, row in found.items():
        for point in row.get("points", ()):
            if point["share"] == 0.5:
                spread = f"{point['p99_ratio_min']:.2f}-{point['p99_ratio_max']:.2f}"
                work = f"{name}: p99 of a hop at 50 % load, to {row['against']}"
                yield Target(work, "<=", 1.5, point["p99_ratio"], spread, name)


def _keys(found: dict[str, Any]) -> Iterator[Target]:
    for name, row in found.get("stores", {}).items():
        if "points" in row:
            few, many = found["sizes"][0], found["sizes"][-1]
            ratio = row["points"][-1]["cpu_us"] / row["points"][0]["cpu_us"]
            yield Target(f"{name}: CPU of an event at {many:,} keys, to {few:,}", "<=", 1.3, ratio, "", name)


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of a table."""
    profiles = results.get("profiles", {})
    cells = []
    for target in targets(results):
        shown = f"{target.measured:,.0f}" if target.limit >= 100 else f"{target.measured:.2f}"
        limit = f"{target.sense} {target.limit:,g}"
        way = ""
        if not target.met and target.profile in profiles:
            profile = profiles[target.profile]
            busy = f"busy {profile['busy']:.0%} of the time; " if profile["busy"] < BUSY else ""
            shares = told(profile["shares"])
            way = f"[profile](performance/profiles/{file_of(target.profile)}): {busy}{shares}"
        cells.append((target.work, limit, shown, target.spread, "met" if target.met else "**not met**", way))
    return cells
