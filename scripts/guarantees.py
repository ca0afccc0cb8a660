"""Kill every pair of broker and store at every durable sub-step of its work, count, and write docs/guarantees.md.

    python scripts/guarantees.py [--crashes 20] [--seed 1] [--only NAME] [--out docs/guarantees.md]

Kafka, PostgreSQL and Redis are real, and found or started as the tests find them; a pair whose server is missing is
said not to have been tried. Exit 1 if a promise did not hold.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from choreo.testing import crash_pairs  # noqa: E402
from choreo.testing.crash_points import both_moments  # noqa: E402
from choreo.testing.crashing import Outcome, Pair, crash  # noqa: E402

SESSIONS = {
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "3000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "1000",
}
"""Of the Kafka started here: a killed member is replaced after 3 s."""

Result = tuple[Pair, list[Outcome], float]


class Folders:
    """What the servers' fixtures ask for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def mktemp(self, name: str) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root))


def main() -> int:
    """Try, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crashes", type=int, default=20, help="at each point of each pair")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="pairs whose name has this in it")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "guarantees.md")
    asked = parser.parse_args()
    results: list[Result] = []
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="choreo-guarantees-")))
        for name, make in pairs(stack, Folders(folder)).items():
            if asked.only.lower() not in name.lower():
                continue
            try:
                pair = make()
            except BaseException as error:  # pytest's Skipped and Failed are no Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                missing[name] = " ".join(str(error).split())[:300]
                print(f"{name}: not tried: {missing[name]}", file=sys.stderr)
                continue
            results.append(tried(pair, folder / str(len(results)), asked.crashes, asked.seed))
    asked.out.write_text(page(results, missing, asked.crashes, asked.seed))
    print(f"written: {asked.out}")
    broken = [each for pair, outcomes, _ in results for outcome in outcomes for each in outcome.broken(pair)]
    print("\n".join(broken) if broken else "every promise held")
    return 1 if broken or missing else 0


def pairs(stack: ExitStack, folders: Any) -> dict[str, Callable[[], Pair]]:
    """Every pair by name, made, and its servers started, when it is its turn."""
    started: dict[str, str] = {}

    def server(name: str, urls: Callable[[Any], Any]) -> str:
        if name not in started:
            started[name] = stack.enter_context(contextmanager(urls)(folders))
        return started[name]

    def kafka() -> str:
        return server("kafka", _kafka)

    def postgres() -> str:
        from tests.postgres_server import postgres_url

        return server("postgres", postgres_url)

    def redis() -> str:
        from tests.redis_server import redis_url

        return server("redis", redis_url)

    quick = {"CHOREO_KAFKA_SESSION_TIMEOUT_MS": "3000"}
    return {
        "embedded + SQLite": crash_pairs.embedded,
        "Kafka + SQLite": lambda: crash_pairs.kafka_sqlite(kafka(), quick),
        "Kafka + PostgreSQL": lambda: crash_pairs.kafka_postgres(kafka(), postgres(), quick),
        "Kafka + Redis": lambda: crash_pairs.kafka_redis(kafka(), redis(), quick),
        "Kafka + changelog": lambda: crash_pairs.kafka_changelog(kafka(), quick),
        "Kafka (confluent) + changelog": lambda: crash_pairs.confluent_changelog(kafka(), quick),
    }


def _kafka(folders: Any) -> Any:
    from deploy.kafka.cluster import LocalKafka

    kafka = LocalKafka(folders.mktemp("kafka"), properties=SESSIONS)
    kafka.start()
    try:
        yield kafka.bootstrap_servers
    finally:
        kafka.stop()


def tried(pair: Pair, folder: Path, crashes: int, seed: int) -> Result:
    """One pair, with a line for each life."""
    points = list(both_moments(pair.points))
    began_s = time.monotonic()
    print(f"{pair.name}: {len(points)} points, {crashes} crashes each", file=sys.stderr)
    outcomes: list[Outcome] = []
    for number, outcomes in enumerate(crash(pair, points, folder, crashes=crashes, seed=seed)):
        done = sum(outcome.crashes for outcome in outcomes)
        print(
            f"  life {number + 1} of {crashes + 1}: {done} crashes, {time.monotonic() - began_s:.0f} s",
            file=sys.stderr,
        )
    return pair, outcomes, time.monotonic() - began_s


# ---- the page

PROMISES = {
    "embedded + SQLite": ("one transaction", "no loss, no duplicate, the handler's rows included"),
    "Kafka + SQLite": (
        "key, outbox and rows in one transaction; send; offset",
        "no loss; rows exactly once; a resend keeps its id",
    ),
    "Kafka + PostgreSQL": (
        "key, outbox and rows in one transaction; send; offset",
        "no loss; rows exactly once; a resend keeps its id",
    ),
    "Kafka + Redis": (
        "lease; send and await acks; complete; offset",
        "no loss; after a crash a handler may run again and, if it decides otherwise, emit otherwise",
    ),
    "Kafka + changelog": (
        "emits, keys and offset in one Kafka transaction a partition",
        "no loss, no duplicate on the log (read_committed) within an input partition",
    ),
    "Kafka (confluent) + changelog": (
        "emits, keys and offset in one Kafka transaction a flush",
        "no loss, no duplicate on the log (read_committed) within an input partition",
    ),
}
COLUMNS = ("crashes", "events", "lost", "rows_twice", "emits_twice", "heard_twice", "reordered")


def page(results: Sequence[Result], missing: dict[str, str], crashes: int, seed: int) -> str:
    """docs/guarantees.md."""
    text = (ROOT / "scripts" / "guarantees_head.md").read_text()
    tried_on = datetime.now(UTC).date().isoformat()
    packages = ("aiokafka", "confluent-kafka", "psycopg", "redis")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        f"Counted on {tried_on} by `make guarantees` ({crashes} crashes at each point, seed {seed}), "
        f"with {versions}, Python {platform.python_version()}.",
        "",
        "| pair | commit | promise | crashes | events | lost | rows twice | emits twice on the log | "
        "handled twice by the next service | reordered | held |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for pair, outcomes, _ in results:
        sums = [sum(getattr(each, name) for each in outcomes) for name in COLUMNS]
        rows = f"{sums[3]:,}" if pair.rows else "-"
        held = "no" if any(each.broken(pair) for each in outcomes) else "yes"
        counts = [f"{sums[0]:,}", f"{sums[1]:,}", f"{sums[2]:,}", rows, *(f"{each:,}" for each in sums[4:])]
        lines.append(f"| {pair.name} | {' | '.join(PROMISES[pair.name])} | {' | '.join(counts)} | {held} |")
    lines += [f"| {name} | not tried: {reason} |" + " |" * 9 for name, reason in missing.items()]
    total = sum(each.crashes for _, outcomes, _ in results for each in outcomes)
    if total:
        lines += [
            "",
            f"{total:,} crashes in all. Nothing lost in n crashes bounds the rate at 3/n a crash with 95 % "
            f"confidence (the rule of three): here {3 / total:.2%}. It does not prove it zero.",
        ]
    lines += ["", "## By point", "", "| pair | point | crashes | lost | emits twice |", "|---|---|---|---|---|"]
    for pair, outcomes, _ in results:
        lines += [f"| {pair.name} | {e.point} | {e.crashes} | {e.lost} | {e.emits_twice} |" for e in outcomes]
    broken = [each for pair, outcomes, _ in results for outcome in outcomes for each in outcome.broken(pair)]
    lines += ["", "## What did not hold", "", *([f"- {each}" for each in broken] or ["Nothing."])]
    return text + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
