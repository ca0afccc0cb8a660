"""The pairs of log and store that a simulation can run on, one for each class of guarantee."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from choreo.ports import IdempotencyStore, Transport
from choreo.sqlite.database import Database
from choreo.stores.changelog import ChangelogStore, changelog_specs
from choreo.stores.sqlite import SqliteStore
from choreo.testing.simulation.database import SimulatedDatabase
from choreo.testing.simulation.process import Process
from choreo.testing.simulation.transport import SimulatedTransport

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

Pair = Callable[[Process, str], tuple[Transport, IdempotencyStore]]
"""Makes the transport and the store of one process of a service."""


def outbox(world: "World") -> Pair:
    """Kafka, and a database a service that keeps keys, an outbox and the handlers' rows: PostgreSQL, or SQLite.

    The rows' transactions are SQLite's, in memory.
    """
    for service in world.app.services:
        world.databases[service] = Database(":memory:")

    def pair(process: Process, service: str) -> tuple[Transport, IdempotencyStore]:
        database = SimulatedDatabase(process, world.databases[service])
        return SimulatedTransport(process), SqliteStore(database, world.clock, with_log=False)

    return pair


def changelog(world: "World") -> Pair:
    """Kafka alone: keys, emits and offsets in one transaction of the log."""
    for service in world.app.services.values():
        inputs = {name: world.log.specs[name] for name in world.app.input_topics(service.name)}
        world.log.create(changelog_specs(service.group, inputs))

    def pair(process: Process, service: str) -> tuple[Transport, IdempotencyStore]:
        transport = SimulatedTransport(process)
        return transport, ChangelogStore(transport, world.app.services[service].group)

    return pair


PAIRS: dict[str, Callable[["World"], Pair]] = {"outbox": outbox, "changelog": changelog}
"""By name, for the command line."""
