"""The pairs of log and store that a simulation can run on, one for each class of guarantee."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from choreo.ports import CommitRequest, CommitResult, IdempotencyStore, Transport
from choreo.sqlite import log
from choreo.sqlite.database import Database
from choreo.stores.changelog import ChangelogStore, changelog_specs, changelog_topic
from choreo.stores.changelog.packing import DIGEST_BYTES, unpack
from choreo.stores.sqlite import SqliteStore
from choreo.testing.simulation.database import SharedDatabase, SimulatedDatabase
from choreo.testing.simulation.embedded import CopiedLog, OneFile
from choreo.testing.simulation.process import Process
from choreo.testing.simulation.transport import SimulatedTransport
from choreo.transports.embedded import SCHEMA, EmbeddedTransport

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

Pair = Callable[[Process, str], tuple[Transport, IdempotencyStore]]
"""Makes the transport and the store of one process of a service."""


async def embedded(world: "World") -> Pair:
    """The embedded broker: log, keys, rows and offsets of all services in one file of one host."""
    database = world.databases["embedded"] = Database(":memory:")
    await database.open(log.SCHEMA + SCHEMA)
    world.cluster.log = CopiedLog(world.cluster, database)
    world.create_topics()
    world.emits_once = True
    rows = _Rows(database)
    world.keys = lambda service: rows
    for service in world.app.services.values():
        world.cluster.group(service.group, world.inputs(service.name))

    def pair(process: Process, service: str) -> tuple[Transport, IdempotencyStore]:
        file = OneFile(process, database)
        return EmbeddedTransport(file, world.clock), SqliteStore(file, world.clock, with_log=True)

    return pair


async def outbox(world: "World") -> Pair:
    """Kafka, and a database a service that keeps keys, an outbox and the handlers' rows: PostgreSQL, or SQLite.

    The rows' transactions are SQLite's, in memory; a handler may have them through SQLAlchemy.
    """
    await _databases(world)
    wants = {bound.transaction for service in world.app.services for bound in world.app.bound(service)}

    def pair(process: Process, service: str) -> tuple[Transport, IdempotencyStore]:
        database = SimulatedDatabase(process, world.databases[service])
        if any(each.startswith("sqlalchemy.") for each in wants):
            from choreo.testing.simulation.sessions import SessionStore

            return SimulatedTransport(process), SessionStore(database, world.clock)
        return SimulatedTransport(process), SqliteStore(database, world.clock, with_log=False)

    world.keys = lambda service: _Rows(world.databases[service])
    return pair


async def lease(world: "World") -> Pair:
    """Kafka, and a store of keys and leases that nothing else commits with: Redis."""
    await _databases(world)

    def pair(process: Process, service: str) -> tuple[Transport, IdempotencyStore]:
        database = SimulatedDatabase(process, world.databases[service])
        return SimulatedTransport(process), _LeaseStore(database, world.clock, with_log=False)

    world.keys = lambda service: _Rows(world.databases[service])
    world.emits_alike = False
    return pair


async def changelog(world: "World") -> Pair:
    """Kafka alone: keys, emits and offsets in one transaction of the log."""
    for service in world.app.services.values():
        inputs = {name: world.cluster.log.specs[name] for name in world.inputs(service.name)}
        world.cluster.log.create(changelog_specs(service.group, inputs))

    def pair(process: Process, service: str) -> tuple[Transport, IdempotencyStore]:
        transport = SimulatedTransport(process)
        return transport, ChangelogStore(transport, world.app.services[service].group)

    logs = {service.name: _Log(world, service.group) for service in world.app.services.values()}
    world.keys = logs.__getitem__
    world.emits_once = True
    return pair


async def _databases(world: "World") -> None:
    for service in world.app.services:
        world.databases[service] = SharedDatabase()
        await world.databases[service].open("")


class _LeaseStore(SqliteStore):
    """Keys and leases, and nothing else: what is sent is sent before they are done."""

    transaction_types = frozenset[str]()
    transactions_max = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.name = "redis"
        self.carries = frozenset()

    async def commit(self, request: CommitRequest) -> CommitResult:
        """Keys only."""
        return await super().commit(replace(request, finished=[each._replace(emits=()) for each in request.finished]))


class _Rows:
    """Keys in a table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def done(self) -> set[bytes]:
        """All."""
        query = "SELECT digest FROM choreo_key WHERE done = 1"
        return self._database.read_inline(lambda db: {row[0] for row in db.execute(query)})

    def is_done(self, key: bytes) -> bool:
        """One."""
        query = "SELECT 1 FROM choreo_key WHERE digest = ? AND done = 1"
        return self._database.read_inline(lambda db: db.execute(query, (key,)).fetchone()) is not None


class _Log:
    """Keys on the log, read on from where it was last looked."""

    def __init__(self, world: "World", group: str) -> None:
        self._log = world.cluster.log
        topics = [changelog_topic(group, name) for name in world.inputs(group)]
        self._positions = dict.fromkeys(self._log.ids(topics), 0)
        self._found: set[bytes] = set()

    def done(self) -> set[bytes]:
        """All."""
        for id_, at in self._positions.items():
            records, self._positions[id_] = self._log.partitions[id_].committed(at, 1_000_000)
            for record in records:
                if record.value:
                    packed = unpack(record)
                    cut = range(0, packed.keys * DIGEST_BYTES, DIGEST_BYTES)
                    self._found.update(packed.body[begin : begin + DIGEST_BYTES] for begin in cut)
        return self._found

    def is_done(self, key: bytes) -> bool:
        """One."""
        return key in self._found or key in self.done()


PAIRS: dict[str, Callable[["World"], Awaitable[Pair]]] = {
    "embedded": embedded,
    "outbox": outbox,
    "lease": lease,
    "changelog": changelog,
}
"""By name, for the command line."""
