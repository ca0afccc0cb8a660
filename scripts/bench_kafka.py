"""What an event costs on a real Kafka, as a ratio to a loop on aiokafka written by hand, in turns, in the same run.

    python scripts/bench_kafka.py [--rows changelog,sqlite@100] [--events 20000] [--rounds 5] [--json]

A row is a store, and after @ what is observed: `@1` and `@100` percent of the events sampled, two spans each, sent by
OTLP to a receiver in another process; `@metrics`. Kafka and PostgreSQL are found or started as the tests find them.
CPU time is that of the consuming process alone, all its threads; with tracing until the last span is sent. Ratios are
what to compare between machines; microseconds are those of this one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.bench_loops import TOPICS, Result, Run, sampled_topic  # noqa: E402
from scripts.bench_stores import Folders, say  # noqa: E402

LOOPS = Path(__file__).with_name("bench_loops.py")
STORES = ("changelog", "sqlite", "postgres")
TELEMETRY = ("", "1", "100", "metrics")
ROWS = "changelog,changelog@1,changelog@100,changelog@metrics,sqlite,postgres"
RUN_S_MAX = 180.0
BASELINE = "bare"


class Place(NamedTuple):
    """Where the servers are."""

    kafka: str
    postgres: str
    folder: Path

    def store(self, kind: str) -> str:
        """The URL of a store of that kind, with nothing of this run in it yet."""
        return {"sqlite": f"sqlite:{self.folder}/{{service}}.db", "postgres": self.postgres}.get(kind, kind)


def main() -> int:
    """Measure and print."""
    asked = arguments()
    rows: list[str] = asked.rows
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="choreo-bench-")))
        folder.chmod(0o755)
        place = servers(stack, folder, rows)
        say(f"{asked.events} orders are written")
        asyncio.run(create_topics(place.kafka, asked.partitions))
        child(Run("fill", place.kafka, "", asked.events))
        if asked.profile:
            run_row(place, asked, rows[0], profile=asked.profile)
            return 0
        results: dict[str, list[Result]] = {row: [] for row in (BASELINE, *rows)}
        for number in range(1, asked.rounds + 1):
            # Back and forth, so that no row always comes first.
            for row in list(results) if number % 2 else reversed(results):
                results[row].append(run_row(place, asked, row))
            say(f"round {number} of {asked.rounds} is done")
    table = {row: summed_up(found, results[BASELINE], asked.events) for row, found in results.items()}
    print(json.dumps(table, indent=2) if asked.json else in_lines(table, asked))
    return 0


def arguments() -> argparse.Namespace:
    """What was asked for, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=ROWS, help=f"with commas between; unless given {ROWS}")
    parser.add_argument("--events", type=int, default=20_000, help="a run")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flush-units", type=int, default=0, help="of choreo; its own unless given")
    parser.add_argument("--profile", default="", help="write cProfile's statistics of the first row to this file")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    asked.rows = asked.rows.split(",")
    for row in asked.rows:
        store, _, telemetry = row.partition("@")
        if store not in (BASELINE, *STORES) or telemetry not in TELEMETRY:
            parser.error(f"no such row: {row}; stores: {', '.join(STORES)}; after @: {', '.join(TELEMETRY[1:])}")
    if not (1 <= asked.rounds <= 50 and 500 <= asked.events <= 1_000_000):
        parser.error("from 1 to 50 rounds of 500 to 1,000,000 events")
    return asked


def servers(stack: ExitStack, folder: Path, rows: list[str]) -> Place:
    """A Kafka, and a PostgreSQL if it is wanted, until `stack` ends."""
    from tests.kafka_server import kafka_bootstrap_servers
    from tests.postgres_server import postgres_url

    folders: Any = Folders(folder)
    kafka = stack.enter_context(contextmanager(kafka_bootstrap_servers)(folders))
    wanted = any(row.startswith("postgres") for row in rows)
    return Place(kafka, stack.enter_context(contextmanager(postgres_url)(folders)) if wanted else "", folder)


async def create_topics(servers: str, partitions: int) -> None:
    """Those of orders and of payments."""
    from choreo.opening import open_transport
    from choreo.ports import TopicSpec

    transport = open_transport(f"kafka://{servers}")
    await transport.open()
    await transport.create_topics([TopicSpec(name, partitions) for name in TOPICS])
    await transport.close()


def run_row(place: Place, asked: argparse.Namespace, row: str, profile: str = "") -> Result:
    """One run of one row in a process of its own."""
    kind, _, telemetry = row.partition("@")
    run = Run(
        kind,
        place.kafka,
        sampled_topic(telemetry),
        asked.events,
        place.store(kind),
        telemetry,
        asked.flush_units,
        profile,
    )
    if not telemetry:
        return Result(*json.loads(child(run)))
    signal, other = ("METRICS", "TRACES") if telemetry == "metrics" else ("TRACES", "METRICS")
    with receiver() as (endpoint, spans):
        exported = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            f"OTEL_{signal}_EXPORTER": "otlp",
            f"OTEL_{other}_EXPORTER": "none",
        }
        result = Result(*json.loads(child(run, exported)))
    sent = {"1": 2 * -(-asked.events // 100), "100": 2 * asked.events}.get(telemetry, 0)
    if spans[0] != sent:
        say(f"{row}: {spans[0]} spans of {sent} arrived")
    return result


def child(run: Run, more: dict[str, str] | None = None) -> str:
    """Run `run`; what it printed. What the environment says of telemetry is not for it."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, str(LOOPS), json.dumps(run)],
        env={**kept, **(more or {})},
        stdout=subprocess.PIPE,
        text=True,
        timeout=RUN_S_MAX,
        check=True,
    )
    return done.stdout


@contextmanager
def receiver() -> Iterator[tuple[str, list[int]]]:
    """A receiver's endpoint, and after the block how many spans came."""
    spans: list[int] = []
    with subprocess.Popen(
        [sys.executable, str(LOOPS), "receive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), spans
        finally:
            told, _ = process.communicate(timeout=RUN_S_MAX)
        spans.append(int(told))


def summed_up(found: list[Result], baseline: list[Result], events: int) -> dict[str, float]:
    """Medians; each round's ratio is to the baseline of that round."""
    ratios = sorted(each.cpu_s / bare.cpu_s for each, bare in zip(found, baseline, strict=True))
    return {
        "ratio": median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "cpu_us": median(each.cpu_s for each in found) / events * 1e6,
        "events_per_s": events / median(each.wall_s for each in found),
        "events_per_transaction": events / median(each.transactions for each in found),
    }


def in_lines(table: dict[str, dict[str, float]], asked: argparse.Namespace) -> str:
    """For people."""
    lines = [f"{'row':20} {'ratio':>6} {'of the rounds':>14} {'cpu us':>8} {'events/s':>9} {'a transaction':>14}"]
    for row, found in table.items():
        spread = f"{found['ratio_min']:.2f}-{found['ratio_max']:.2f}"
        lines.append(
            f"{row:20} {found['ratio']:6.2f} {spread:>14} {found['cpu_us']:8.1f} {found['events_per_s']:9.0f} "
            f"{found['events_per_transaction']:14.0f}"
        )
    lines.append(
        f"an event; {asked.events} events a run, {asked.partitions} partitions, medians of {asked.rounds} rounds; "
        f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    began_s = time.monotonic()
    code = main()
    say(f"took {time.monotonic() - began_s:.0f} s")
    sys.exit(code)
