"""Cost at other points: few events in a transaction, handlers with rows of their own, partitions, payloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.bench import cost
from scripts.bench.markdown import prose, table
from scripts.bench.running import Run
from scripts.bench.stage import PARTITIONS_MAX, NotMeasured, Row, Stage, summed_up

BATCHES = {20: 3_000, 4: 800}
PARTITIONS = (1, 16, 64, 256)
PAYLOADS = {100: 8_000, 1_000: 8_000, 10_000: 3_000, 100_000: 500}
SIDES = {
    "aiokafka-txn": ("", "", ""),
    "changelog": ("aiokafka-txn", "kafka", "changelog"),
    "sqlite": ("aiokafka-txn", "kafka", "sqlite"),
    "postgres": ("aiokafka-txn", "kafka", "postgres"),
    "confluent-txn": ("", "", ""),
    "changelog/confluent": ("confluent-txn", "kafka+confluent", "changelog"),
    "aiokafka-postgres": ("", "", ""),
}
"""Of each the row it is a ratio to, choreo's client and its store."""


def _row(stage: Stage, side: str, point: str, topic: str, out: str, events: int, **more: Any) -> Row:
    against, client, store = SIDES[side]
    if not against:
        return Row(f"{side}, {point}", Run(side, stage.kafka, topic, out, events, **more), f"{side}, {point}")
    run = Run("choreo", stage.kafka, topic, out, events, client, stage.store(store), **more)
    return Row(f"{side}, {point}", run, f"{against}, {point}")


def _measured(stage: Stage, title: str, wanted: Sequence[tuple[Any, ...]], **facts: Any) -> dict[str, Any]:
    """`wanted`: arguments of `_row` after the first, and what more there is by name as the last."""
    rows, missing = [], {}
    for *place, more in wanted:
        try:
            rows.append(_row(stage, *place, **more))
        except NotMeasured as error:
            missing[f"{place[0]}, {place[1]}"] = str(error)
    found = stage.in_rounds(title, rows, rounds=stage.few)
    return {"rows": summed_up(rows, found), "missing": missing, **facts}


class Batches:
    """Few events a transaction, and `ctx.transaction`."""

    TITLE = "Few events a transaction, and rows of the handler's own"
    ROWS_EVENTS = 4_000

    @classmethod
    def measure(cls, stage: Stage) -> dict[str, Any]:
        counts = {size: stage.scaled(count, 200) for size, count in BATCHES.items()}
        many = stage.scaled(cls.ROWS_EVENTS, 500)
        topics = stage.filled(
            {f"orders-{size}": (4, count, 100, 0) for size, count in counts.items()} | {"rows": (4, many, 100, 0)}
        )
        out = stage.topic("payments")
        wanted: list[tuple[Any, ...]] = [
            (side, f"{size} a transaction", topics[f"orders-{size}"], out, count, {"batch": size})
            for size, count in counts.items()
            for side in SIDES
            if side != "aiokafka-postgres"
        ]
        point = "rows"
        wanted += [("aiokafka-txn", point, topics["rows"], out, many, {})]
        wanted += [(side, point, topics["rows"], out, many, {"work": "rows"}) for side in ("sqlite", "postgres")]
        try:
            more = {"store": stage.postgres}
            wanted += [("aiokafka-postgres", point, topics["rows"], out, many, more)]
        except NotMeasured:
            pass  # said of the row of choreo
        found = _measured(stage, "points", wanted)
        for name, row in found["rows"].items():  # beside the loop that does the same
            if name.endswith(", rows") and "postgres" in name and "aiokafka-postgres, rows" in found["rows"]:
                row["beside"] = row["cpu_us"] / found["rows"]["aiokafka-postgres, rows"]["cpu_us"]
        stage.drop(lambda name: name in (*topics.values(), out))
        return found

    @staticmethod
    def lines(found: dict[str, Any]) -> list[str]:
        text = """Both are given so few records at a time; how many came to be in a transaction is in the table:
        choreo puts what has become ready meanwhile into one, and on aiokafka has one for each input partition.
        `rows`: the handler inserts a row in the unit's transaction, a savepoint an event; `aiokafka-postgres` is
        the loop by hand that inserts the same rows by the batch, at least once."""
        out = [*prose(text), *cost.rows_table(found)]
        beside = found["rows"].get("postgres, rows", {}).get("beside")
        if beside:
            out += ["", f"PostgreSQL with rows is {beside:.2f} times the loop by hand that inserts the same rows."]
        return out


class Partitions:
    """Cost against partitions."""

    TITLE = "Partitions"
    EVENTS = 8_000
    WHO = ("aiokafka-txn", "changelog", "sqlite", "confluent-txn", "changelog/confluent")

    @classmethod
    def measure(cls, stage: Stage) -> dict[str, Any]:
        events = stage.scaled(cls.EVENTS, 2_000)
        topics = stage.filled({f"orders-{each}": (each, events, 100, 0) for each in stage.some(PARTITIONS)})
        out = stage.topic("payments")
        wanted = [
            (side, f"{each} partition{'s' if each > 1 else ''}", topics[f"orders-{each}"], out, events, {})
            for each in stage.some(PARTITIONS)
            for side in cls.WHO
        ]
        found = _measured(
            stage, "partitions", wanted, points=list(stage.some(PARTITIONS)), who=list(cls.WHO), unit="partitions"
        )
        stage.drop(lambda name: name in (*topics.values(), out))
        return found

    @staticmethod
    def lines(found: dict[str, Any]) -> list[str]:
        text = f"""One process has them all. On aiokafka the changelog takes a producer for each input partition;
        above 200 it is refused unless CHOREO_KAFKA_TRANSACTION_PARTITIONS_MAX says otherwise, as it does here
        ({PARTITIONS_MAX})."""
        return [*prose(text), *cost.rows_table(found)]


class Payloads:
    """Cost against the size of the payload."""

    TITLE = "Payload"
    WHO = ("aiokafka-txn", "changelog", "confluent-txn", "changelog/confluent")

    @classmethod
    def measure(cls, stage: Stage) -> dict[str, Any]:
        counts = {size: stage.scaled(count, 100) for size, count in stage.some(tuple(PAYLOADS.items()))}
        topics = stage.filled({f"parcels-{size}": (4, count, 100, size) for size, count in counts.items()})
        out = stage.topic("received")
        wanted = [
            (side, f"{size:,} bytes", topics[f"parcels-{size}"], out, count, {"work": "parcel"})
            for size, count in counts.items()
            for side in cls.WHO
        ]
        found = _measured(stage, "payload", wanted, points=list(counts), who=list(cls.WHO), unit="bytes")
        stage.drop(lambda name: name in (*topics.values(), out))
        return found

    @staticmethod
    def lines(found: dict[str, Any]) -> list[str]:
        return [*prose("What is emitted is as large as what is read."), *cost.rows_table(found)]


class Waiting:
    """Handlers that wait."""

    TITLE = "A handler that waits 10 ms"
    EVENTS = 10_000
    CONCURRENCY = (64, 256)
    WHO = ("changelog", "sqlite", "postgres", "changelog/confluent")

    @classmethod
    def measure(cls, stage: Stage) -> dict[str, Any]:
        events = stage.scaled(cls.EVENTS, 2_000)
        topics = stage.filled({"orders": (4, events, 100, 0)})
        out = stage.topic("payments")
        wanted = [
            (side, f"{many} at once", topics["orders"], out, events, {"work": "wait", "concurrency": many})
            for side in stage.some(cls.WHO)
            for many in cls.CONCURRENCY
        ]
        found = _measured(stage, "waiting", wanted)
        stage.drop(lambda name: name in (*topics.values(), out))
        return found

    @staticmethod
    def lines(found: dict[str, Any]) -> list[str]:
        text = """One process, 4 partitions, 1,000 keys in turn; `Limits(concurrency=)` of 64 (the default) and of
        256 handlers at once. A loop by hand that waits for one event after the other takes 100 a second."""
        rows = [
            (name, f"{row['events_per_s']:,.0f}", f"{row['cpu_us']:.1f}", f"{row['events_per_transaction']:.0f}")
            for name, row in found["rows"].items()
        ]
        missing = [(name, f"not measured: {why}") for name, why in found["missing"].items()]
        return [*prose(text), *table(("row", "events/s", "CPU us", "events a transaction"), [*rows, *missing])]
