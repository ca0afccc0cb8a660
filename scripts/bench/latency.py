"""How long a hop takes, from the moment an event is due until its follow-on can be read, beside a bare hop's."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from scripts.bench.markdown import prose, ratios, table
from scripts.bench.running import FOR_EVER, Run
from scripts.bench.stage import CHILD, NotMeasured, Stage, beside, child, say

TITLE = "Latency of a hop"
SHARES = (0.1, 0.5, 0.9)
PAIRS = {
    "changelog": ("aiokafka-txn", "kafka", "changelog"),
    "changelog/confluent": ("confluent-txn", "kafka+confluent", "changelog"),
    "sqlite": ("aiokafka-alo", "kafka", "sqlite"),
    "postgres": ("aiokafka-alo", "kafka", "postgres"),
}
"""The bare hop beside each makes no weaker a promise to readers of the log, and knows no duplicates."""
BURST, SECONDS = 12_000, 3.0
PERCENTILES = ("p50_ms", "p99_ms", "p99.9_ms")


def measure(stage: Stage) -> dict[str, Any]:
    """First the capacity of each pair, then rounds: each pair and its bare hop at the same rates."""
    found: dict[str, Any] = {}
    capacity: dict[str, float] = {}
    for name in stage.some(tuple(PAIRS)):
        try:
            capacity[name] = drive(stage, ours(stage, name), burst=stage.scaled(BURST, 1_000))["per_s"]
            say(f"latency: {name}: {capacity[name]:,.0f} events/s at most")
        except NotMeasured as error:
            found[name] = {"not measured": str(error)}
    points: dict[tuple[str, str], list[list[dict[str, float]]]] = {}
    for number in range(1, stage.few + 1):
        turns = [(name, side) for name in capacity for side in ("bare", "choreo")]
        stage.chance.shuffle(turns)
        for name, side in turns:
            rates = [share * capacity[name] for share in SHARES]
            run = ours(stage, name) if side == "choreo" else bare(stage, name)
            measured = drive(stage, run, rates=rates)["points"]
            points.setdefault((name, side), []).append(measured)
            told = ", ".join(f"{each['p50_ms']:.1f}/{each['p99_ms']:.1f}" for each in measured)
            say(f"latency: round {number} of {stage.few}: {name}, {side}: p50/p99 {told} ms")
    for name in capacity:
        found[name] = {"capacity_per_s": capacity[name], "against": PAIRS[name][0], "points": []}
        for place, share in enumerate(SHARES):
            point: dict[str, Any] = {"share": share, "per_s": share * capacity[name]}
            for side in ("bare", "choreo"):
                point[side] = {key: median(each[place][key] for each in points[name, side]) for key in PERCENTILES}
            ratios = [
                mine[place]["p99_ms"] / its[place]["p99_ms"]
                for mine, its in zip(points[name, "choreo"], points[name, "bare"], strict=True)
            ]
            point |= {"p99_ratio": median(ratios), "p99_ratio_min": min(ratios), "p99_ratio_max": max(ratios)}
            found[name]["points"].append(point)
    return found


def ours(stage: Stage, name: str) -> Run:
    """Choreo's side of a pair, on topics of its own."""
    _, client, store = PAIRS[name]
    return Run("choreo", stage.kafka, "hop", "hop-out", FOR_EVER, client=client, store=stage.store(store))


def bare(stage: Stage, name: str) -> Run:
    """The other side."""
    return Run(PAIRS[name][0], stage.kafka, "hop", "hop-out", FOR_EVER)


def drive(stage: Stage, run: Run, *, burst: int = 0, rates: list[float] | None = None) -> dict[str, Any]:
    """The loop in one process, what drives it in another."""
    topics = {"topic": stage.topic(run.topic), "out": stage.topic(run.out)}
    run = run._replace(**topics, group=stage.name("group"))
    given = {
        "servers": run.servers,
        "topic": run.topic,
        "out": run.out,
        "burst": burst,
        "seconds": max(1.0, SECONDS * stage.asked.scale),
        "rates": rates or [],
    }
    with beside([*CHILD, "run", json.dumps(run)]):
        found: dict[str, Any] = json.loads(child("load", given))
    stage.drop_own(run)
    stage.drop(lambda name: name in (run.topic, run.out))
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The table."""
    text = """From the moment an order is due at the sender until its payment is read under read_committed, sender
    and reader in one process. The rate is that share of what the pair takes when all events are there at once,
    and the same for the bare hop beside it, on the same client: for the changelog a transaction a batch, else at
    least once."""
    rows: list[tuple[str, ...]] = []
    for name, row in found.items():
        if "points" not in row:
            rows.append((name, f"not measured: {row['not measured']}"))
            continue
        for point in row["points"]:
            mine, its = (" / ".join(f"{point[side][key]:.1f}" for key in PERCENTILES) for side in ("choreo", "bare"))
            share, per_s = f"{point['share']:.0%}", f"{point['per_s']:,.0f}"
            rows.append((name, share, per_s, mine, its, row["against"], *ratios(point, "p99_ratio")))
    heads = (
        "pair",
        "load",
        "events/s",
        "p50 / p99 / p99.9 ms",
        "bare ms",
        "bare hop",
        "p99 to bare's",
        "of the rounds",
    )
    return [*prose(text), *table(heads, rows)]
