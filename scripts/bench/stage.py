"""What every section stands on: servers, topics, processes that are measured, and rounds in a shuffled order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from scripts.bench.running import RUN_S_MAX, Result, Run

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS_MAX = 256
CHILD = [sys.executable, "-m", "scripts.bench.child"]
_T = TypeVar("_T")


class NotMeasured(Exception):
    """Why a server or a row is not there."""


class Asked(NamedTuple):
    """What was asked for. `scale`: of events and seconds, 1 for a whole run."""

    rounds: int
    seed: int
    scale: float


class Folders:
    """What the servers' fixtures ask for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def mktemp(self, name: str) -> Path:
        """A new folder; PostgreSQL runs as another user, who has to reach it."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root))
        folder.chmod(0o755)
        return folder


def say(line: str) -> None:
    """Progress, beside the result."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


class Row(NamedTuple):
    """One line of a table: what is run, and the name of the row it is a ratio to."""

    name: str
    run: Run
    against: str = ""


class Stage:
    """One run of the benchmark. Servers are started when first asked for, and stopped with `stack`."""

    def __init__(self, asked: Asked, stack: ExitStack) -> None:
        self.asked = asked
        self.chance = random.Random(asked.seed)
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="choreo-bench-")))
        self.folder.chmod(0o755)
        self.folders: Any = Folders(self.folder)
        self._stack = stack
        self._servers: dict[str, str | NotMeasured] = {}
        self._id = f"bench-{uuid.uuid4().hex[:8]}"
        self._made = 0

    def name(self, name: str) -> str:
        """One that nobody else has: a server may have been there before."""
        self._made += 1
        return f"{self._id}-{name}-{self._made}"

    def some(self, things: Sequence[_T]) -> Sequence[_T]:
        """All of them; the first two in a quick run."""
        return things if self.asked.scale == 1 else things[:2]

    def scaled(self, number: int, least: int = 1) -> int:
        """So many events, or fewer in a quick run."""
        return max(least, int(number * self.asked.scale))

    @property
    def few(self) -> int:
        """Rounds of what is not the main table."""
        return max(1, self.asked.rounds // 2)

    # ---- servers

    @property
    def kafka(self) -> str:
        """Bootstrap servers."""
        from tests.kafka_server import kafka_bootstrap_servers

        return self._server("Kafka", kafka_bootstrap_servers)

    @property
    def postgres(self) -> str:
        """URL of a PostgreSQL."""
        from tests.postgres_server import postgres_url

        if "PostgreSQL" not in self._servers:
            self._stack.callback(self._clean, self._server("PostgreSQL", postgres_url))
        return self._server("PostgreSQL", postgres_url)

    def _clean(self, url: str) -> None:
        """Nothing stays in one that was there before; one that was interrupted with us is gone."""
        import psycopg

        with suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")

    @property
    def redis(self) -> str:
        """URL of a Redis."""
        from tests.redis_server import redis_url

        return self._server("Redis", redis_url)

    def _server(self, name: str, start: Callable[[Any], Iterator[str]]) -> str:
        if name not in self._servers:
            say(f"{name} is started")
            try:
                self._servers[name] = self._stack.enter_context(contextmanager(start)(self.folders))
            except BaseException as error:  # pytest's Skipped and Failed are no Exception
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                self._servers[name] = NotMeasured(" ".join(str(error).split())[:300])
        found = self._servers[name]
        if isinstance(found, NotMeasured):
            raise found
        return found

    def store(self, kind: str) -> str:
        """URL of a store of that kind, with nothing of this run in it yet.

        Raises:
            NotMeasured: Its server is not there.
        """
        if kind == "sqlite":
            return f"sqlite:{self.folder}/{self.name('store')}-{{service}}.db"
        if kind == "postgres":
            return _with(self.postgres, choreo_schema=self.schema)
        return _with(self.redis, choreo_prefix=self._id) if kind == "redis" else kind

    @property
    def schema(self) -> str:
        """A schema in PostgreSQL for all that is kept there."""
        return self._id.replace("-", "_")

    # ---- topics

    def topic(self, name: str, partitions: int = 4) -> str:
        """A topic, made anew; returns its name, which has `name` in it."""
        from confluent_kafka.admin import NewTopic

        name = self.name(name)
        admin = self.admin()  # its answers come for as long as it is there
        for future in admin.create_topics([NewTopic(name, partitions, 1)]).values():
            future.result(30)
        return name

    def filled(self, topics: Mapping[str, tuple[int, int, int, int]]) -> dict[str, str]:
        """Topics by the names given here: of each its partitions, how many records, percent of them sampled, bytes of
        a payload (0: an order)."""
        made = {name: self.topic(name, partitions) for name, (partitions, *_) in topics.items()}
        self.fill([(made[name], *rest) for name, (_, *rest) in topics.items()])  # type: ignore[misc]
        return made

    def drop(self, wanted: Callable[[str], bool]) -> None:
        """Delete topics; each run leaves some of its own, and of 256 partitions."""
        admin = self.admin()
        names = [name for name in admin.list_topics(timeout=30).topics if wanted(name)]
        if names:
            for future in admin.delete_topics(names, operation_timeout=30).values():
                future.result(60)

    def admin(self) -> Any:
        """A client for topics and groups; to be kept for as long as its answers are waited for."""
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.kafka, "log_level": 4})

    # ---- processes

    def fill(self, topics: Sequence[tuple[str, int, int, int]]) -> None:
        """Records into topics: name, how many, percent sampled, bytes of a payload (0: an order)."""
        child("fill", [self.kafka, list(topics)])

    def run(self, run: Run) -> Result:
        """One run in a process of its own, what it sends received in another; its topics are gone afterwards.

        Raises:
            NotMeasured: It failed, or not all of its spans arrived.
        """
        run = run._replace(group=self.name("group"))
        try:
            if not run.telemetry:
                return Result(*json.loads(child("run", run)))
            with receiver() as (environment, spans):
                result = Result(*json.loads(child("run", run, environment)))
            sent = 2 * (run.events // 100 if run.telemetry == "1" else run.events)
            if spans[0] != sent:
                raise NotMeasured(f"{spans[0]} spans of {sent} arrived")
            return result
        finally:
            self.drop_own(run)

    def drop_own(self, run: Run) -> None:
        """Delete what a run of choreo has created: its keys, its dead letters and replays."""
        if run.loop == "choreo":
            assert run.group
            self.drop(lambda name: run.group in name)

    def in_rounds(self, title: str, rows: Sequence[Row], often: Sequence[str] = (), rounds: int = 0) -> Rounds:
        """Every row once a round, in an order that is shuffled anew; those named in `often` twice."""
        rounds = rounds or self.asked.rounds
        found: Rounds = {row.name: [] for row in rows}
        failed: dict[str, str] = {}
        for number in range(1, rounds + 1):
            turns = [*rows, *(row for row in rows if row.name in often)]
            self.chance.shuffle(turns)
            measured: dict[str, list[Result]] = {row.name: [] for row in rows}
            for place, row in enumerate(turns, 1):
                if row.name in failed:
                    continue
                try:
                    result = self.run(row.run)
                except NotMeasured as error:
                    failed[row.name] = str(error)
                    say(f"{title}: {row.name}: not measured: {error}")
                    continue
                measured[row.name].append(result)
                us = result.cpu_s / row.run.events * 1e6
                say(
                    f"{title}: round {number} of {rounds}, {place} of {len(turns)}: {row.name}: "
                    f"{us:.1f} us of CPU, {row.run.events / result.wall_s:,.0f} events/s"
                )
            for name, results in measured.items():
                if results:
                    columns: Any = zip(*results, strict=True)
                    found[name].append(Result(*map(median, columns)))
        for name in failed:
            del found[name]
        return found


Rounds = dict[str, list[Result]]
"""Of each row a Result a round; the median where it had several turns."""


def child(what: str, given: object, environment: Mapping[str, str] | None = None) -> str:
    """Run it; what it printed.

    Raises:
        NotMeasured: It failed, with the last it said; or it took too long.
    """
    try:
        done = subprocess.run(
            [*CHILD, what, json.dumps(given)],
            cwd=ROOT,
            env=_environment(environment),
            capture_output=True,
            text=True,
            timeout=RUN_S_MAX + 30,
        )
    except subprocess.TimeoutExpired as error:
        raise NotMeasured(f"not done after {error.timeout:g} s") from None
    if done.returncode:
        raise NotMeasured(done.stderr.strip().rpartition("\n")[2][:300] or f"exit code {done.returncode}")
    return done.stdout


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """Ours, without what it says of telemetry."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    return {**kept, "CHOREO_KAFKA_TRANSACTION_PARTITIONS_MAX": str(PARTITIONS_MAX), **(more or {})}


@contextmanager
def receiver() -> Iterator[tuple[dict[str, str], list[int]]]:
    """What is to be in the environment of whom it receives from, and after the block how many spans came."""
    spans: list[int] = []
    with subprocess.Popen(
        [*CHILD, "receive"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            endpoint = process.stdout.readline().strip()
            yield (
                {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                    "OTEL_TRACES_EXPORTER": "otlp",
                    "OTEL_METRICS_EXPORTER": "none",
                },
                spans,
            )
        finally:
            told, _ = process.communicate(timeout=RUN_S_MAX)
        spans.append(int(told))


@contextmanager
def beside(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs for as long as the block, then is told to end."""
    with subprocess.Popen(command, cwd=ROOT, env=_environment(environment), stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _with(url: str, **parameters: str) -> str:
    """The URL with parameters of choreo's."""
    return url + ("&" if "?" in url else "?") + "&".join(f"{name}={value}" for name, value in parameters.items())


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def summed_up(rows: Sequence[Row], found: Rounds) -> dict[str, dict[str, Any]]:
    """Of each row what is said of it: medians of its rounds; a round's ratio is to the other row of that round."""
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        results = found.get(row.name)
        if not results:
            continue
        table[row.name] = {
            "cpu_us": median(each.cpu_s for each in results) / row.run.events * 1e6,
            "events_per_s": row.run.events / median(each.wall_s for each in results),
            "events_per_transaction": row.run.events / max(1, median(each.transactions for each in results)),
            "peak_mb": median(each.peak_mb for each in results),
            "rounds": len(results),
        }
        other = next((each for each in rows if each.name == row.against and each.name in found), None)
        if other is not None:
            ratios = [
                (mine.cpu_s / row.run.events) / (its.cpu_s / other.run.events)
                for mine, its in zip(results, found[other.name], strict=False)
            ]
            table[row.name] |= {"against": row.against, "ratios": ratios, **spread(ratios)}
    return table
