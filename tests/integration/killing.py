"""Four services of the order flow as processes of their own, killed without warning and started again."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.envelope import read as read_envelope
from choreo.opening import open_transport
from choreo.ports import Transport
from choreo.record import Record, TopicPartition
from choreo.sqlite import log as embedded_log
from handlers.order_fulfilment.app import PROVIDER_DB, app
from handlers.order_fulfilment.ledger import LedgerRow, StockRow, read_rows, read_stock, row_of
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider

ROOT = Path(__file__).parents[2]
TARGET = "handlers.order_fulfilment.app:app"
SERVICES = tuple(app.services)
PARTITIONS = 4
STALL_S = 40.0
"""Longer than a killed member of a group can hold up its successor."""
# A killed member is forgotten as soon as the broker allows, and not after 45 s.
QUICK_SESSIONS = {"CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000"}


class Stalled(AssertionError):
    """Nothing moved for `STALL_S`."""


class Way(NamedTuple):
    """One event's place on the log, and what caused it."""

    where: TopicPartition
    offset: int
    key: bytes | None
    cause: str | None


class Fleet:
    """The four services on one broker.

    Args:
        folder: Stores, logs of the processes, the provider's ledger.
        broker: As `choreo run --broker` takes it.
        environment: Added to what every process has.
    """

    def __init__(self, folder: Path, broker: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.broker = broker
        self.embedded = broker.startswith("embedded:")
        self.provider_db = folder / "provider.db"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {
            **os.environ,
            **QUICK_SESSIONS,
            "PYTHONPATH": str(ROOT),
            "CHOREO_TOPIC_PREFIX": app.topic(""),
            PROVIDER_DB: str(self.provider_db),
            **(environment or {}),
        }

    def choreo(self, *arguments: str) -> list[str]:
        """The command line of a choreo command."""
        return [sys.executable, "-m", "choreo", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A choreo command that ends by itself."""
        command = [*self.choreo(*arguments), "--broker", self.broker]
        return subprocess.run(
            command, env=self._environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, service: str) -> None:
        """Start one service; its log goes on where it was."""
        command = self.choreo("run", TARGET, "--service", service, "--broker", self.broker)
        if not self.embedded:
            command += ["--store", f"sqlite:{self.folder}/{{service}}.db"]
        with open(self.folder / f"{service}.log", "ab") as output:
            self.processes[service] = subprocess.Popen(
                command, env=self._environment, cwd=self.folder, stdout=output, stderr=output
            )

    def kill(self, service: str) -> None:
        """End one service as a crash would. It must have been alive until then."""
        process = self.processes[service]
        assert process.poll() is None, f"{service} ended by itself:\n{self.logs(service)}"
        process.kill()
        assert process.wait(10) == -signal.SIGKILL

    def drain(self) -> dict[str, int]:
        """Tell all of them to stop; their exit codes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return {service: process.wait(30) for service, process in self.processes.items()}

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(10)

    def logs(self, service: str) -> str:
        """The last lines of what a service said."""
        return "\n".join((self.folder / f"{service}.log").read_text(errors="replace").splitlines()[-25:])

    # ---- what they did

    def database(self, service: str) -> Path:
        """The file with a service's tables."""
        return Path(self.broker.partition(":")[2]) if self.embedded else self.folder / f"{service}.db"

    def query(self, service: str, query: str) -> list[tuple[object, ...]]:
        """Rows of a service's database; none while it has not got so far as to have the table."""
        path = self.database(service)
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
            try:
                return db.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def handled(self, service: str) -> int:
        """Units the service has finished, over all its lives."""
        ((count,),) = self.query(
            service, f"SELECT COUNT(*) FROM choreo_key WHERE done = 1 AND handler LIKE '{service}.%'"
        ) or [(0,)]
        assert isinstance(count, int)
        return count

    def ledgers(self) -> list[LedgerRow]:
        """Every service's ledger and the provider's statement."""
        rows: list[LedgerRow] = []
        for path in sorted({self.database(service) for service in SERVICES}):
            with closing(sqlite3.connect(path)) as db:
                rows += read_rows(db.execute)
        with FakePaymentProvider(self.provider_db) as provider:
            return rows + [row_of("provider", *entry) for entry in provider.statement()]

    def stock(self) -> list[StockRow]:
        """Inventory's articles."""
        with closing(sqlite3.connect(self.database("inventory"))) as db:
            return read_stock(db.execute)

    async def unread(self) -> int:
        """Records some service has not finished; offsets are read before the ends, so that 0 means rest."""
        offsets = await self._offsets()
        ends = await self._ends()
        return sum(
            end - offsets.get((service, where), 0)
            for service in SERVICES
            for where, end in ends.items()
            if where.topic in app.input_topics(service)
        )

    async def _offsets(self) -> dict[tuple[str, TopicPartition], int]:
        offsets: dict[tuple[str, TopicPartition], int] = {}
        if self.embedded:
            rows = self.query("inventory", 'SELECT "group", topic, "partition", next FROM choreo_offset')
            groups = {app.services[service].group: service for service in SERVICES}
            return {(groups[str(group)], TopicPartition(*where)): at for group, *where, at in rows}  # type: ignore[arg-type, misc]
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers())
        await admin.start()
        try:
            for service in SERVICES:
                found = await admin.list_consumer_group_offsets(app.services[service].group)
                offsets |= {(service, TopicPartition(*where)): each.offset for where, each in found.items()}
        finally:
            await admin.close()
        return {place: offset for place, offset in offsets.items() if offset >= 0}

    async def _ends(self) -> Mapping[TopicPartition, int]:
        if self.embedded:
            with closing(sqlite3.connect(self.database("inventory"))) as db:
                return embedded_log.ends(db)
        consumer = AIOKafkaConsumer(bootstrap_servers=self._servers(), isolation_level="read_committed")
        await consumer.start()
        try:
            topics = {topic for service in SERVICES for topic in app.input_topics(service)}
            found = await consumer.end_offsets(
                [KafkaPartition(each, n) for each in topics for n in range(PARTITIONS)]
            )
            return {TopicPartition(*where): end for where, end in found.items()}
        finally:
            await consumer.stop()

    def _servers(self) -> str:
        return self.broker.removeprefix("kafka://")

    async def at_rest(self, *, stall_s: float = STALL_S) -> None:
        """Return when nothing is unread; however long it takes, as long as it moves."""
        seen: set[tuple[int, ...]] = set()
        moved_s = time.monotonic()
        while unread := await self.unread():
            state = (unread, *(self.handled(service) for service in SERVICES))
            if state not in seen:
                seen.add(state)
                moved_s = time.monotonic()
                print(f"{time.strftime('%X')} unread, handled by service: {state}")
            if time.monotonic() - moved_s > stall_s:
                told = "\n".join(f"--- {service}\n{self.logs(service)}" for service in SERVICES)
                raise Stalled(f"nothing moves: unread and handled {state}\n{told}")
            await asyncio.sleep(0.3)

    async def worked(self, service: str, since: int, *, units: int, within_s: float) -> bool:
        """Whether the service finished more than `units` units since it had finished `since`."""
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            if self.handled(service) > since + units:
                return True
            await asyncio.sleep(0.05)
        return False

    async def records(self) -> list[Record]:
        """Everything on the log."""
        async with self.transport() as transport:
            return list(await transport.scan([spec.name for spec in app.topic_specs()], since_ms=0))

    @asynccontextmanager
    async def transport(self) -> AsyncIterator[Transport]:
        """The log, open; each time anew."""
        transport = open_transport(self.broker)
        await transport.open()
        try:
            yield transport
        finally:
            await transport.close()


async def kill_at_random(fleet: Fleet, chance: random.Random, *, times: int, stop: asyncio.Event) -> Counter[str]:
    """Kill each service `times` times, each time at work, and start it again; returns kills of services at work."""
    at_work: Counter[str] = Counter()

    async def torment(service: str) -> None:
        for _ in range(times):
            before = fleet.handled(service)
            if await fleet.worked(service, before, units=chance.randint(0, 60), within_s=25.0):
                at_work[service] += 1
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            fleet.kill(service)
            await asyncio.sleep(chance.uniform(0.0, 0.2))
            fleet.start(service)

    tasks = [asyncio.ensure_future(torment(service)) for service in SERVICES]
    try:
        await asyncio.gather(*tasks)
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
    return at_work


def out_of_order(records: Sequence[Record]) -> list[str]:
    """Pairs of one key in one partition where an effect stands before its cause.

    On a log that keeps duplicates it is the first of each that counts: the later ones are dropped by whoever reads.
    """
    ways: dict[str, Way] = {}
    for record in sorted(records, key=lambda each: each[:3]):
        envelope, _ = read_envelope(record.headers, record.value or b"")
        where = TopicPartition(record.topic, record.partition)
        ways.setdefault(envelope.id, Way(where, record.offset, record.key, envelope.causationid))
    found = []
    for id_, way in ways.items():
        cause = way.cause
        while cause is not None and cause in ways:
            before = ways[cause]
            if (before.where, before.key) == (way.where, way.key) and before.offset >= way.offset:
                found.append(f"{id_} at {way.where}@{way.offset}, its cause {cause} at {before.offset}")
            cause = before.cause
    return found


def scattered(records: Sequence[Record]) -> list[bytes]:
    """Keys that are in more than one partition of a topic."""
    places: dict[tuple[str, bytes], set[int]] = defaultdict(set)
    for record in records:
        if record.key is not None:
            places[record.topic, record.key].add(record.partition)
    return [key for (_, key), partitions in places.items() if len(partitions) > 1]
