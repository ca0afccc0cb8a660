"""The order flow on Kafka and PostgreSQL, some processes a service, restarted one after another under load."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import psycopg

from choreo.publisher import Publisher
from choreo.runtime.clock import SystemClock
from choreo.telemetry.silent import NoInstrument
from choreo.transports.kafka import KafkaTransport
from deploy.kafka.node import free_ports
from handlers.order_fulfilment.app import PROVIDER_DB
from handlers.order_fulfilment.ledger import StockRow
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider
from handlers.order_stores.app import app
from tests.integration.outbox_stage import ROOT, Process
from tests.integration.restart_load import Customers, now_ms
from tests.integration.restart_outcome import Outcome, Restart, Told, opening

TARGET = "tests.integration.restart_app:app"
READY_S = SETTLED_S = 120.0
WITHOUT_ROWS = ("payments", "shipping", "notifications")
"""Services that a store on Kafka itself would do for; inventory has rows in PostgreSQL."""


class Way(NamedTuple):
    """How members belong to their group.

    `surge`: a new process is ready before an old one is told to stop, as of a Deployment; else the one that was
    stopped starts again under its own name, as of a StatefulSet.
    """

    title: str
    scheme: str
    environment: Mapping[str, str]
    surge: bool = True


CLASSIC = {"CHOREO_KAFKA_GROUP_PROTOCOL": "classic"}
WAYS = {
    "aiokafka": Way("aiokafka: classic, eager", "kafka", {}),
    "classic": Way("confluent: classic, cooperative", "kafka+confluent", CLASSIC),
    "kip-848": Way("confluent: KIP-848", "kafka+confluent", {}),
    "classic-static": Way("confluent: classic, static members", "kafka+confluent", CLASSIC, surge=False),
    "kip-848-static": Way("confluent: KIP-848, static members", "kafka+confluent", {}, surge=False),
}


class Replica:
    """One process of a service."""

    def __init__(self, folder: Path, service: str, name: str, environment: Mapping[str, str]) -> None:
        (self._port,) = free_ports(1)
        command = ["choreo", "run", TARGET, "--service", service, "--log-json", "--health-port", str(self._port)]
        self._process = Process(folder, name, *command, environment=environment)

    async def start(self) -> None:
        """Start it, and return when it is ready, as an orchestrator waits for it."""
        self._process.start()
        until_s = time.monotonic() + READY_S
        while not await asyncio.to_thread(self._is_ready):
            assert time.monotonic() < until_s, self._process.log.read_text()[-4000:]
            await asyncio.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    async def stop(self) -> float:
        """SIGTERM; seconds until it had drained, which it must."""
        begun_s = time.monotonic()
        assert await asyncio.to_thread(self._process.stop) == 0, self._process.log.read_text()[-4000:]
        return time.monotonic() - begun_s

    def close(self) -> None:
        """Leave no process behind."""
        self._process.close()


class Stage:
    """Topics, tables, processes and load of one run.

    Args:
        per_s: Customers a second; at each restart some more.
        changelog: Services without rows keep their keys on Kafka, not in PostgreSQL.
    """

    def __init__(
        self, folder: Path, servers: str, postgres: str, way: Way, *, per_s: float, changelog: bool = False
    ) -> None:
        run = uuid4().hex[:8]
        self.restarts: list[Restart] = []
        self._folder, self._way = folder, way
        self._prefix, self._schema, self._postgres = f"restart-{run}.", f"restart_{run}", postgres
        self._broker = f"{way.scheme}://{servers}"
        search = f"choreo_schema={self._schema}&options=-csearch_path%3D{self._schema}"
        store = f"{postgres}{'&' if '?' in postgres else '?'}{search}"
        self._stores = dict.fromkeys(app.services, store)
        if changelog:
            self._stores |= dict.fromkeys(WITHOUT_ROWS, "changelog")
        self._environment = {
            **way.environment,
            "CHOREO_BROKER": self._broker,
            "CHOREO_TOPIC_PREFIX": self._prefix,
            PROVIDER_DB: str(folder / "provider.db"),
        }
        self._replicas: dict[str, list[Replica]] = {service: [] for service in app.services}
        self._started = 0
        self._transport = KafkaTransport(servers)
        publisher = Publisher(self._transport, NoInstrument(), SystemClock(), topic=self._topic, source="/shop")
        self.customers = Customers(publisher, per_s=per_s)

    def _topic(self, logical: str) -> str:
        return self._prefix + logical

    @asynccontextmanager
    async def prepared(self, *, processes: int, partitions: int) -> AsyncIterator["Stage"]:
        """Topics, tables and so many processes a service are there; in the end nothing is left of them."""
        await self._transport.open()
        self._execute(f"CREATE SCHEMA {self._schema}")
        try:
            where = ["--store", self._stores["payments"]]
            await asyncio.gather(
                self._choreo("topics", "apply", TARGET, "--partitions", str(partitions), *where),
                self._choreo("store", "apply", TARGET, "--store", self._stores["inventory"]),
            )
            starting = [self._replica(service) for service in app.services for _ in range(processes)]
            await asyncio.gather(*(each.start() for each in starting))
            yield self
        finally:
            for replica in [each for found in self._replicas.values() for each in found]:
                replica.close()
            await self._transport.close()
            self._execute(f"DROP SCHEMA {self._schema} CASCADE")

    async def _choreo(self, *arguments: str) -> None:
        command, environment = [sys.executable, "-m", "choreo", *arguments], {**os.environ, **self._environment}
        run = subprocess.run
        done = await asyncio.to_thread(run, command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def _execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._postgres, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    # ---- processes

    def _replica(self, service: str) -> Replica:
        self._started += 1
        name = f"{service}-{self._started}"
        environment = {**self._environment, "CHOREO_STORE": self._stores[service]}
        if not self._way.surge:
            environment["CHOREO_KAFKA_GROUP_INSTANCE_ID"] = self._prefix + name
        replica = Replica(self._folder, service, name, environment)
        self._replicas[service].append(replica)
        return replica

    async def roll(self, *, at_once: int = 1) -> None:
        """Restart every process: of a service one after another, and of so many services at the same time."""
        turn = asyncio.Semaphore(at_once)

        async def of(service: str) -> None:
            for replica in list(self._replicas[service]):
                async with turn:
                    self.restarts.append(await self._restart(service, replica))

        await asyncio.gather(*(of(service) for service in app.services))

    async def _restart(self, service: str, replica: Replica) -> Restart:
        began_ms = now_ms()
        if self._way.surge:
            await self._replica(service).start()
        await self.customers.rush()
        drained_s = await replica.stop()
        if self._way.surge:
            self._replicas[service].remove(replica)
            replica.close()
        else:
            await replica.start()
        return Restart(service, began_ms, now_ms(), drained_s)

    async def stop(self) -> None:
        """All of them."""
        await asyncio.gather(*(each.stop() for found in self._replicas.values() for each in found))

    # ---- what came of it

    async def settled(self) -> None:
        """Return when all has come to its end, or not in time: what is missing is for the outcome to say."""
        until_s = time.monotonic() + SETTLED_S
        while (await self.outcome()).problems():
            if time.monotonic() > until_s:
                return
            await asyncio.sleep(0.5)

    async def outcome(self) -> Outcome:
        """What log, tables and logs hold now."""
        names = {self._topic(each.name) for each in app.topic_specs() if not each.name.endswith(".replay")}
        found = await self._transport.scan(sorted(names), since_ms=0)
        began = opening()
        rows = self._execute(f"SELECT sku, available, held, issued FROM {self._schema}.inventory_stock")
        ((held,),) = self._execute(f"SELECT count(*) FROM {self._schema}.inventory_hold")
        with FakePaymentProvider(self._folder / "provider.db") as provider:
            statement = provider.statement()
        return Outcome(
            presses=dict(self.customers.presses),
            records=[each for each in found if not each.topic.endswith(".dlq")],
            told=self._told(),
            stock=[StockRow(sku, began[sku], *rest) for sku, *rest in rows],
            held=held,
            statement=statement,
            dead=[each for each in found if each.topic.endswith(".dlq")],
        )

    def _told(self) -> list[Told]:
        found = []
        for file in self._folder.glob("notifications-*.log"):
            for line in file.read_text().splitlines():
                said = json.loads(line)
                if said.get("handler") == "tell" and said["message"].startswith("order "):
                    at = datetime.fromisoformat(said["time"])
                    found.append(Told(int(at.timestamp() * 1000), said["event_id"]))
        return found
