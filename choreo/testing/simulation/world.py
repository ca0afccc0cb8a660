"""The simulated world: a cluster, services as processes on it, and a history of all that happened."""

import asyncio
import contextvars
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from choreo import envelope as cloudevents
from choreo.app import App
from choreo.core.units import Unit
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.ports import TopicSpec
from choreo.record import Record
from choreo.runtime.replaying import read_replay
from choreo.runtime.routing import Router
from choreo.sqlite.database import Database
from choreo.testing.simulation.cluster import Cluster
from choreo.testing.simulation.faults import Dice
from choreo.testing.simulation.happenings import Happening, Invocation, Keys, WorldClock
from choreo.testing.simulation.log import SimulatedLog
from choreo.testing.simulation.loop import SimulationLoop
from choreo.testing.simulation.process import Process

if TYPE_CHECKING:
    from choreo.process.interpreting import Process as Interpreted
    from choreo.testing.simulation.member import Member


@dataclass
class World:
    """Everything of one run. Checkers look at it; processes live in it.

    Attributes:
        history: All that happened, in order.
        invocations: Every call of a handler, in order.
        published: Events given to the flow from outside, by id.
        databases: By service; on the embedded broker there is one.
        replays: Whether services read their topics of replays, and an operator writes there.
        emits_once, emits_alike: What the pair promises: that no emit is on the log twice; that its copies are equal.
        upgrade: The next version's app, to which services are deployed; `app` where there is no other.
        failed: Units that a handler failed outside of a transaction, and how often it did, by the unit's identity.
    """

    app: App
    loop: SimulationLoop
    dice: Dice
    partitions: int
    cooperative: bool
    upgrade: App
    cluster: Cluster = field(init=False)
    members: dict[str, "Member"] = field(default_factory=dict)
    keys: Callable[[str], "Keys"] = field(init=False)
    replays: bool = False
    emits_once: bool = False
    emits_alike: bool = True
    dead: list[Process] = field(default_factory=list)
    history: list[Happening] = field(default_factory=list)
    invocations: list[Invocation] = field(default_factory=list)
    failed: dict[int, tuple[Unit, int]] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    resources: Mapping[Any, Any] = field(default_factory=dict)
    transitions: Counter[tuple[Any, Any]] = field(default_factory=Counter)
    failure: BaseException | None = None
    over: bool = False
    arriving_late: bool = False
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    _routers: dict[str, Router] = field(default_factory=dict)
    _routed: dict[tuple[str, str, int, int], list[tuple[bytes, str]]] = field(default_factory=dict)
    _events: tuple[int, list[tuple[Record, Envelope | None]]] | None = None
    databases: dict[str, Database] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cluster = Cluster(self.loop, self.note)

    @property
    def log(self) -> SimulatedLog:
        """All records, committed or not."""
        return self.cluster.log

    @property
    def processes(self) -> list["Interpreted"]:
        """Processes of both apps: one that both have is there twice."""
        apps = dict.fromkeys((self.app, self.upgrade))
        return [process for app in apps for process in app.processes.values()]

    @property
    def clock(self) -> WorldClock:
        """Without skew."""
        return WorldClock(self.loop)

    # ---- history

    def note(self, who: Process | str, kind: str, what: str) -> None:
        """Something happened."""
        name = who if isinstance(who, str) else who.name
        self.history.append(Happening(self.loop.now_s, name, kind, what))

    # ---- the cluster

    def inputs(self, service: str) -> list[str]:
        """Topics that a service reads, that of replays among them where there are any."""
        found = self.app.services[service]
        replays = [self.app.topic(found.replay_topic)] if self.replays or found.parks else []
        return [*self.app.input_topics(service), *replays]

    # ---- processes

    def crash(self, process: Process) -> None:
        """Kill it at once."""
        process.life.kill()
        self.dead.append(process)
        self.cluster.died(process)
        self.members[process.name].died()

    def invoked(self, process: Process, unit: Unit) -> None:
        """A handler is called."""
        record = unit.work.record
        handler = unit.work.bound.handler.label
        self.note(process, "invokes", f"{handler} {unit.partition}@{unit.offset} attempt {unit.attempts}")
        self.invocations.append(
            Invocation(self.loop.now_s, process.name, handler, unit.digest, record.key, unit.attempts, record)
        )

    def came_back(self, process: Process, unit: Unit, error: Exception | None = None) -> None:
        """A handler returned or raised."""
        handler, where = unit.work.bound.handler.label, f"{unit.partition}@{unit.offset}"
        if error is None:
            self.note(process, "returns", f"{handler} {where}")
            return
        self.note(process, "raises", f"{handler} {where} {type(error).__name__}")
        if not unit.transacts:  # in a transaction it is called again where nobody knows whether it was committed
            self.failed[id(unit)] = unit, self.failed.get(id(unit), (unit, 0))[1] + 1

    def settled(self) -> bool:
        """Whether everything that was published has been dealt with by everybody."""
        if not self.cluster.at_rest():
            return False
        if self.app.processes and self.rows("SELECT 1 FROM choreo_timer LIMIT 1"):
            return False
        if any(wake_ms is not None for *_, wake_ms in self.parked()):
            return False
        workers = [each.worker for each in self.members.values() if each.process is None or not each.process.hangs]
        return all(worker is not None and not worker.engine.unfinished() for worker in workers)

    def of(self, service: str) -> list["Member"]:
        """The service's members."""
        return [each for each in self.members.values() if each.service == service]

    def close(self) -> None:
        """Unwind what was left of dead processes, and the rest."""
        for process in [*self.dead, *(each.process for each in self.members.values() if each.process)]:
            process.life.kill()
            self.loop.abandon(process.life)
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.loop.close()

    # ---- looking

    def rows(self, query: str, *arguments: object, service: str | None = None) -> list[tuple[Any, ...]]:
        """Rows of the services' own tables; a name alone stands for all of a table.

        `service`: only of the database it writes to, which on the embedded broker is everybody's.
        """
        if query.isidentifier():
            query = f'SELECT * FROM "{query}"'
        names = [service] if service in self.databases else list(self.databases)
        found: list[tuple[Any, ...]] = []
        for name in names:
            try:
                found += self.databases[name].read_inline(lambda db: db.execute(query, arguments).fetchall())
            except Exception as error:
                if not isinstance(error.__cause__, sqlite3.OperationalError) or len(names) == 1:
                    raise
        return found

    def records(self, *topics: str) -> list[Record]:
        """Committed records of topics, all but dead letters and copies for a retry unless named, in order of time."""
        own = self.app.own_topics()
        names = topics or tuple(name for name in self.log.specs if name not in own and not name.endswith(".keys"))
        return self.log.scan(names)

    def events(self) -> list[tuple[Record, Envelope | None]]:
        """Committed records of all topics but those of dead letters, with what their headers say; None: no event."""
        if self._events is None or self._events[0] != self.log.appended:
            found: list[tuple[Record, Envelope | None]] = []
            for record in self.records():
                try:
                    found.append((record, cloudevents.read(record.headers, record.value or b"")[0]))
                except DecodeError:
                    found.append((record, None))
            self._events = self.log.appended, found
        return self._events[1]

    def replayed(self) -> set[str]:
        """Ids of the events that were replayed to some handler, out of the order of their key."""
        topics = [self.app.topic(service.replay_topic) for service in self.app.services.values()]
        found = set()
        for record in self.log.scan(topics) if self.replays else ():
            if (replay := read_replay(record.headers)) is not None and replay.parked:
                continue  # it was in its place in the order all the time
            with suppress(DecodeError):
                found.add(cloudevents.read(record.headers, record.value or b"")[0].id)
        return found

    def parked(self) -> list[tuple[Any, ...]]:
        """What is in queues of parked keys: group, handler, record key, and when it is sent without an order."""
        if not any(service.parks for service in self.app.services.values()):
            return []
        return self.rows('SELECT "group", handler, key, wake_ms FROM choreo_parked')

    def done(self, service: str) -> set[bytes]:
        """Idempotency keys that the service's store holds of handled units."""
        return self.keys(service).done()

    def is_done(self, service: str, key: bytes) -> bool:
        """Whether it holds this one."""
        return self.keys(service).is_done(key)

    def keys_of(self, service: str, record: Record) -> list[tuple[bytes, str]]:
        """Idempotency key and handler of each unit that a service makes of a record; it is read once."""
        where = (service, record.topic, record.partition, record.offset)
        if where not in self._routed:
            router = self._routers.get(service) or self._routers.setdefault(service, self.app.router(service))
            self._routed[where] = [
                (
                    router.key(work),
                    work.bound.handler.label if work.bound else f"{service}, which cannot read it",
                )
                for work in router.route(record).work
            ]
        return self._routed[where]

    def create_topics(self) -> None:
        """All the app needs."""
        self.log.create([TopicSpec(spec.name, self.partitions) for spec in self.app.topic_specs(self.partitions)])
