"""Everything a run needs, set up and torn down: servers, topics, services; and how their tables are read."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import psycopg

from choreo.opening import open_store, open_transport
from choreo.runtime.clock import SystemClock
from choreo.stores.changelog import changelog_specs
from deploy.kafka.jars import Missing
from handlers.order_fulfilment.app import PROVIDER_DB
from handlers.order_fulfilment.app import app as orders_app
from handlers.order_fulfilment.ledger import reconcile
from tests.integration.chaos.brokers import ProxiedKafka
from tests.integration.chaos.crew import Crew, Job
from tests.integration.chaos.entries import TABLE, mirror
from tests.integration.chaos.entries import app as entries_app
from tests.integration.chaos.faults import World
from tests.integration.chaos.network import Proxy
from tests.integration.chaos.outcome import Kept
from tests.integration.killing import PARTITIONS, TARGET, Fleet
from tests.kafka_server import Unavailable, unavailable
from tests.postgres_server import fresh_postgres
from tests.redis_server import LocalRedis, started

ENTRIES_TARGET = "tests.integration.chaos.entries:app"
BROKERS = 3
READY_S = 60.0
PROPERTIES = {
    # As low as the test wants it; the broker's own is 45 s.
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
}


class Stage:
    """The world that faults are done to, and what is in it."""

    def __init__(self, folder: Path, world: World, topics: Sequence[str]) -> None:
        self.world = world
        self.topics = topics
        self.fleet = Fleet(folder, f"kafka://{world.kafka.bootstrap_servers}")

    async def ready(self, stock_times: int) -> None:
        """Return when the services have made their tables; then there is so many times the catalogue's stock."""
        async with asyncio.timeout(READY_S):
            while not self._has_tables():  # noqa: ASYNC110 - nothing says so but the databases
                await asyncio.sleep(0.2)
        with closing(sqlite3.connect(self.fleet.database("inventory"), timeout=30)) as db, db:
            db.execute(
                "UPDATE inventory_stock SET opening = opening * :times, available = available * :times",
                {"times": stock_times},
            )

    def _has_tables(self) -> bool:
        if not self.fleet.query("inventory", "SELECT sku FROM inventory_stock"):
            return False
        with psycopg.connect(self.world.postgres.url) as db:
            found = db.execute("SELECT to_regclass(%s) IS NOT NULL", (TABLE,)).fetchone()
        return bool(found and found[0])

    def kept(self, orders: Sequence[str]) -> Kept:
        """What is in the tables. The services have drained."""
        with psycopg.connect(self.world.postgres.url) as db:
            rows = db.execute(f"SELECT kind, account, number FROM {TABLE} ORDER BY id").fetchall()
        ledgers, query = self.fleet.ledgers(), self.fleet.query
        return Kept(
            reconcile(ledgers, orders=set(orders), stock=self.fleet.stock()),
            ledgers,
            query("shipping", "SELECT order_id, attempt FROM shipping_attempt ORDER BY rowid"),
            query("notifications", "SELECT order_id, text FROM notifications_message"),
            [(str(kind), str(account), int(number)) for kind, account, number in rows],
        )


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """Servers, topics and services, all at work; none is left running."""
    async with AsyncExitStack() as stack:
        try:
            postgres = stack.enter_context(fresh_postgres())
        except Unavailable as error:
            unavailable(str(error))
        (folder / "redis").mkdir()
        redis = LocalRedis(folder / "redis")
        stack.enter_context(started(redis))
        proxies = [await stack.enter_async_context(Proxy().open()) for _ in range(BROKERS)]
        kafka = ProxiedKafka(folder / "kafka", proxies, PROPERTIES)
        try:
            await asyncio.to_thread(kafka.start)
        except Missing as error:
            unavailable(str(error))
        stack.push_async_callback(asyncio.to_thread, kafka.stop)
        topics = await _topics(kafka.bootstrap_servers)
        store = open_store(postgres.url, "bookkeeper", "", None, clock=SystemClock())
        await store.open()
        await store.apply()
        await store.close()
        crew = Crew(
            folder,
            _jobs(folder, kafka.proxied_servers, postgres.url, redis.url),
            {PROVIDER_DB: str(folder / "provider.db"), "CHOREO_TOPIC_PREFIX": ""},
        )
        stack.callback(crew.end)
        for service in crew.jobs:
            crew.start(service)
        yield Stage(folder, World(crew, kafka, proxies, postgres, redis), topics)


async def _topics(servers: str) -> list[str]:
    """Make all of them; those of events and dead letters."""
    specs = [spec for app in (orders_app, entries_app) for spec in app.topic_specs(PARTITIONS, BROKERS)]
    specs = [spec for spec in specs if not spec.name.endswith(".replay")]  # nobody replays anything here
    inputs = {spec.name: spec for spec in specs if spec.name in entries_app.input_topics("mirror")}
    transport = open_transport(f"kafka://{servers}")
    await transport.open()
    await transport.create_topics([*specs, *changelog_specs(mirror.group, inputs)])
    await transport.close()
    return [spec.name for spec in specs]


def _jobs(folder: Path, servers: str, postgres: str, redis: str) -> list[Job]:
    aiokafka, librdkafka = f"kafka://{servers}", f"kafka+confluent://{servers}"
    return [
        *(Job(TARGET, service, aiokafka, f"sqlite:{folder}/{{service}}.db") for service in orders_app.services),
        Job(ENTRIES_TARGET, "bookkeeper", aiokafka, postgres),
        Job(ENTRIES_TARGET, "clerk", aiokafka, redis),
        Job(ENTRIES_TARGET, "mirror", librdkafka, "changelog"),
    ]
