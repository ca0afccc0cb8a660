"""What an event costs: each pair of broker and store, each client, tracing off, 1 % and 100 %, beside bare loops."""

from __future__ import annotations

from typing import Any

from scripts.bench.markdown import prose, ratios, table
from scripts.bench.running import Run
from scripts.bench.stage import NotMeasured, Row, Stage, say, summed_up

TITLE = "Cost of an event"
EVENTS, FASTSTREAM_EVENTS = 12_000, 1_500
BASELINES = {"kafka": "aiokafka-txn", "kafka+confluent": "confluent-txn"}
OFTEN = (*BASELINES.values(), "changelog", "changelog@1")
"""What others are compared to, and what differs by little."""
STORES = ("changelog", "sqlite", "postgres", "redis")
TELEMETRY = ("", "1", "100")


def name_of(store: str, client: str, telemetry: str) -> str:
    """Such as changelog, changelog/confluent@1."""
    return store + ("/confluent" if client == "kafka+confluent" else "") + (f"@{telemetry}" if telemetry else "")


def measure(stage: Stage) -> dict[str, Any]:
    """All of them in turns."""
    events, few = stage.scaled(EVENTS, 2_000), stage.scaled(FASTSTREAM_EVENTS, 300)
    topics = stage.filled(
        {"orders": (4, events, 100, 0), "orders-1": (4, events, 1, 0), "orders-few": (4, few, 100, 0)}
    )
    out, kafka = stage.topic("payments"), stage.kafka
    bare = [Row(name, Run(name, kafka, topics["orders"], out, events), "aiokafka-txn") for name in BARE]
    fast = [Row(name, Run(name, kafka, topics["orders-few"], out, few), "aiokafka-txn") for name in FASTSTREAM]
    rows, missing = [*bare, *fast], {}
    for store in STORES:
        for client, baseline in BASELINES.items():
            for telemetry in TELEMETRY if stage.asked.scale == 1 else TELEMETRY[::2]:
                if telemetry and client == "kafka+confluent" and store != "changelog":
                    continue  # what tracing adds does not depend on both
                name = name_of(store, client, telemetry)
                try:
                    url = stage.store(store)
                except NotMeasured as error:
                    missing[name] = str(error)
                    say(f"cost: {name}: not measured: {error}")
                    continue
                topic = topics["orders-1" if telemetry == "1" else "orders"]
                run = Run("choreo", kafka, topic, out, events, client, url, telemetry=telemetry)
                rows.append(Row(name, run, baseline))
    found = stage.in_rounds("cost", rows, often=OFTEN)
    stage.drop(lambda name: name in (*topics.values(), out))
    return {"events": events, "rows": summed_up(rows, found), "missing": missing}


BARE = ("aiokafka-txn", "confluent-txn", "aiokafka-alo", "confluent-alo")
FASTSTREAM = ("faststream", "faststream-otel")


def lines(found: dict[str, Any]) -> list[str]:
    """The table."""
    text = f"""{found["events"]:,} orders on 4 partitions. CPU time of the client process, all its threads, an
    event. The ratio is to the bare loop named behind it, on the same client, in the same round; of the rounds the
    lowest and the highest. `@1` and `@100`: so many percent of the events sampled, two spans each, sent by OTLP
    over HTTP to a receiver in another process, until the last one is sent. FastStream acknowledges before it
    handles, and its spans are dropped. `peak MB`: the most memory the process had. Events a second are those of
    one process beside its broker on this machine."""
    return [*prose(text), *rows_table(found)]


def rows_table(found: dict[str, Any]) -> list[str]:
    """Rows with their ratios."""
    rows: list[list[str]] = []
    for name, row in found["rows"].items():
        against = row.get("against", "") if row.get("against") != name else ""
        rows.append(
            [
                name,
                *(ratios(row) if against else ("1", "")),
                against,
                f"{row['cpu_us']:.1f}",
                f"{row['events_per_s']:,.0f}",
                f"{row['events_per_transaction']:,.0f}",
                f"{row['peak_mb']:.0f}",
            ]
        )
    rows += [[name, f"not measured: {why}"] for name, why in found["missing"].items()]
    heads = ("row", "ratio", "of the rounds", "to", "CPU us", "events/s", "events a transaction", "peak MB")
    return table(heads, rows)
