"""Services running in this process: broker and stores by their URLs, resources, workers started and drained."""

import asyncio
import inspect
import math
import typing
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from choreo.access import Access, lacking
from choreo.binding import Around, BoundHandler
from choreo.core.messages import Limits
from choreo.core.retry import Delayed
from choreo.errors import ConfigurationError, DeclarationError
from choreo.event import Event
from choreo.instances import INSTANCES, TimerStore
from choreo.observing import Observing
from choreo.opening import STORES, open_store, open_transport
from choreo.parked import ParkedStore
from choreo.ports import Clock, Guarded, IdempotencyStore, TopicSpec, Transport
from choreo.process.interpreting import Process
from choreo.process.timing import due_record
from choreo.publisher import Publisher, Reference
from choreo.runtime.clock import SystemClock
from choreo.runtime.emitting import Emitter
from choreo.runtime.health import not_alive, not_ready
from choreo.runtime.invoking import Invoker
from choreo.runtime.routing import Router
from choreo.runtime.timers import POLL_S, Heads, TimerPoller
from choreo.runtime.worker import Ports, Worker
from choreo.service import Service
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from choreo.telemetry.setup import SPLIT_AFTER_S, TRACE_MODES, TraceMode
from choreo.transports.embedded import EmbeddedTransport


@dataclass(frozen=True, slots=True)
class Plan:
    """One service to run: its handlers, the topics it reads (`inputs`) and writes (`outputs`), and if it is one the
    process it runs."""

    service: Service
    handlers: Sequence[BoundHandler]
    inputs: Sequence[str]
    around: Sequence[Around]
    propagate: Sequence[str]
    outputs: Sequence[str]
    process: Process | None = None

    def needs(self, topic: Callable[[str], str], *, changelog: bool) -> list[Access]:
        """The rights it needs on Kafka."""
        from choreo.granting import needs  # not needed, and its clients not imported, without Kafka

        written = [*self.outputs, *delay_topics(self.service, topic)]
        if self.process is not None:
            written.append(topic(self.process.due.event_topic))
        return needs(self.service, self.inputs, written, topic, changelog=changelog)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how to run; see `App.running`."""

    broker: str
    store: str | None = field(default=None, repr=False)  # its URL may hold a password
    drain_s: float = 20.0
    lease_s: float = 30.0
    key_ttl_s: float = 7 * 86_400.0
    limits: Limits = field(default_factory=Limits)
    clock: Clock = field(default_factory=SystemClock)
    inline: bool = False
    create_topics: bool = False
    create_replay_topics: bool = False
    create_schema: bool = False
    partitions: int = 4
    trace_mode: TraceMode = "parent"
    trace_split_after_s: float = SPLIT_AFTER_S
    share_tracer: bool = False
    health_host: str = "127.0.0.1"
    health_port: int | None = None

    def __post_init__(self) -> None:
        if self.trace_mode not in TRACE_MODES:
            raise ConfigurationError(f"the trace mode {self.trace_mode!r} is none of {', '.join(TRACE_MODES)}")


class Resources:
    """What handlers are given by type."""

    def __init__(self, given: Sequence[Any] | Mapping[Any, Any]) -> None:
        self._given: dict[Any, Any] = dict(given) if isinstance(given, Mapping) else {}
        if not isinstance(given, Mapping):
            self._given = {_offered(each): each for each in given}

    def offers(self, wanted: Any) -> bool:
        """Whether something of the type is there."""
        return self._find(wanted) is not None

    async def open(self, overrides: Mapping[Any, Any], wanted: set[Any], stack: AsyncExitStack) -> dict[Any, Any]:
        """The instances that are wanted, by type; generators are closed with `stack`."""
        merged = Resources({**self._given, **overrides})
        opened: dict[Any, Any] = {}
        instances: dict[Any, Any] = {}
        for type_ in wanted:
            key = merged._find(type_)
            if key not in opened:
                opened[key] = await _open(merged._given[key], stack)
            instances[type_] = opened[key]
        return instances

    def _find(self, wanted: Any) -> Any:
        if wanted in self._given:
            return wanted
        if not isinstance(wanted, type):
            return None
        return next((key for key in self._given if isinstance(key, type) and issubclass(key, wanted)), None)


def _offered(resource: Any) -> Any:
    if not inspect.isasyncgenfunction(resource):
        return type(resource)
    arguments = typing.get_args(typing.get_type_hints(resource).get("return"))
    if not arguments:
        raise DeclarationError(
            f"the resource {resource.__qualname__} must say what it yields: -> AsyncIterator[PaymentProvider]"
        )
    return arguments[0]


async def _open(resource: Any, stack: AsyncExitStack) -> Any:
    if inspect.isasyncgenfunction(resource):
        return await stack.enter_async_context(asynccontextmanager(resource)())
    return resource


class Running:
    """Services that run in this process."""

    def __init__(self, plans: Sequence[Plan], topic: Callable[[str], str], settings: Settings, name: str) -> None:
        self.settings = settings
        self.stores: dict[str, IdempotencyStore] = {}
        self.workers: dict[str, Worker] = {}
        self._plans = plans
        self._topic = topic
        self._name = name
        self.database: Database | None = None
        self.transport = self._transport()
        self.publisher: Publisher
        self.health_port: int | None = None

    def _transport(self) -> Transport:
        settings = self.settings
        kind, _, path = settings.broker.partition(":")
        if kind == "embedded" and path:
            if settings.store is not None and settings.store.partition(":")[0] in ("sqlite", "changelog"):
                raise ConfigurationError(
                    "the embedded broker keeps an SQLite store in its own file: leave --store out, or give "
                    "PostgreSQL or Redis where handlers need them"
                )
            self.database = Database(path, inline=settings.inline)
            return EmbeddedTransport(self.database, settings.clock)
        if settings.store is None and kind.startswith("kafka"):
            raise ConfigurationError(f"Kafka needs an idempotency store; give --store: {STORES}")
        return open_transport(settings.broker, clock=settings.clock)

    async def _store(self, plan: Plan, stack: AsyncExitStack) -> IdempotencyStore:
        """The service's store, open, its schema as this version needs it."""
        settings, service = self.settings, plan.service
        store: IdempotencyStore
        if settings.store is None:
            assert self.database is not None
            store = SqliteStore(self.database, settings.clock, with_log=True, lease_s=settings.lease_s)
        else:
            store = open_store(
                settings.store,
                service.name,
                service.group,
                self.transport,
                clock=settings.clock,
                lease_s=settings.lease_s,
                topic_prefix=self._topic(""),
            )
        await store.open()
        stack.push_async_callback(store.close)
        if await store.plan():
            if settings.store is not None and not settings.create_schema:
                raise ConfigurationError(
                    f"the schema of the store {store.name} is not there or older than this choreo: see it with "
                    "`choreo store plan --sql`, and bring it up to date with `choreo store apply`"
                )
            await store.apply()
        return store

    @asynccontextmanager
    async def started(self, resources: Resources, overrides: Mapping[Any, Any]) -> AsyncIterator["Running"]:
        """Open, start, and in the end drain and close, in the opposite order."""
        async with AsyncExitStack() as stack:
            await self.transport.open()
            stack.push_async_callback(self.transport.close)
            await self._check_rights()
            await self._check_topics()
            observing = self._observing()
            stack.push_async_callback(asyncio.to_thread, observing.close)  # it may wait for a collector
            own = observing.instrument(self._name, alone=False)
            stack.push_async_callback(asyncio.to_thread, own.close)
            self.publisher = Publisher(
                observing.transport(self._name),
                own,
                self.settings.clock,
                topic=self._topic,
                source=f"/{self._name}",
            )
            wanted = {type_ for plan in self._plans for bound in plan.handlers for type_ in bound.resources.values()}
            instances = await resources.open(overrides, wanted, stack)
            for plan in self._plans:
                worker = await self._worker(plan, instances, observing, stack)
                self.workers[plan.service.name] = worker
            self.health_port = await stack.enter_async_context(
                observing.serving(lambda: not_alive(self.workers.values()), lambda: not_ready(self.workers.values()))
            )
            async with AsyncExitStack() as draining:
                for worker in self.workers.values():
                    draining.push_async_callback(worker.stop)
                    await worker.start()
                async with observing.gauging(self.workers):
                    yield self
                stops = draining.pop_all()
                stopped = asyncio.gather(*(worker.stop() for worker in self.workers.values()), return_exceptions=True)
                stops.pop_all()
                failures = [each for each in await stopped if isinstance(each, BaseException)]
                if failures:  # said when all have stopped: what they run on is closed next
                    raise failures[0]

    async def publish(self, event: Event, *, id: str | None = None, correlation_id: str | None = None) -> Reference:
        """Publish one event; see `Publisher.publish`."""
        return await self.publisher.publish(event, id=id, correlation_id=correlation_id)

    async def failed(self) -> None:
        """Wait until a worker dies of a bug, and raise what it died of."""
        await asyncio.gather(*(worker.failed_for_good() for worker in self.workers.values()))

    async def _worker(
        self, plan: Plan, instances: Mapping[Any, Any], observing: Observing, stack: AsyncExitStack
    ) -> Worker:
        settings, service = self.settings, plan.service
        if settings.store == "changelog":
            await self._check_changelog(plan)
        store = await self._store(plan, stack)
        self.stores[service.name] = store
        check_pair(plan, store)
        instrument = observing.instrument(service.name, alone=len(self._plans) == 1)
        stack.push_async_callback(asyncio.to_thread, instrument.close)
        # Nobody else sets timers there, and virtual time would stop at every look.
        in_memory = self.database is not None and self.database.path == ":memory:"
        ports = Ports(
            observing.transport(service.name),
            observing.store(service.name, store),
            instrument,
            settings.clock,
            lease_s=settings.lease_s,
            drain_s=settings.drain_s,
            key_ttl_s=settings.key_ttl_s,
            retention_s=plan.process.retention_s if plan.process is not None else None,
            limits=settings.limits,
        )
        return Worker(
            service,
            plan.inputs,
            ports,
            Router(
                service,
                plan.handlers,
                topic=self._topic,
                replay_topic=self._topic(service.replay_topic),
                delay_topics=delay_topics(service, self._topic),
                knows_keys=store.dedupe_scope == "anywhere",
            ),
            Emitter(service, self._topic, plan.propagate),
            Invoker(instances, plan.around, settings.clock, inline=settings.inline),
            timers_of(plan, ports, self._topic, poll_s=math.inf if in_memory else POLL_S),
        )

    def _observing(self) -> Observing:
        settings = self.settings
        return Observing(
            self._plans[0].service.name if len(self._plans) == 1 else self._name,
            self.transport,
            trace_mode=settings.trace_mode,
            split_after_s=settings.trace_split_after_s,
            share_tracer=settings.share_tracer,
            health_host=settings.health_host,
            health_port=settings.health_port,
        )

    async def _check_changelog(self, plan: Plan) -> None:
        """Its topics as wide as their inputs, found out before anything is consumed."""
        from choreo.stores.changelog import changelog_specs, check_topics

        group, prefix = plan.service.group, self._topic("")
        inputs = await self.transport.topics(plan.inputs)
        specs = changelog_specs(group, inputs, prefix)
        if self.settings.create_topics:
            await self.transport.create_topics(specs)
        known = await self.transport.topics([*plan.inputs, *(spec.name for spec in specs)])
        check_topics(group, plan.inputs, known, prefix)

    async def _check_rights(self) -> None:
        """All that the services need is granted: else it shows at the first emit, or as a topic that is missing."""
        if not isinstance(self.transport, Guarded):
            return
        changelog = self.settings.store == "changelog"
        wanted = [each for plan in self._plans for each in plan.needs(self._topic, changelog=changelog)]
        missing = await self.transport.lacking(wanted)
        if missing:
            raise ConfigurationError(lacking(self.transport.principal, missing))

    async def _check_topics(self) -> None:
        """All that are needed are there; each service reads its topic of replays too, if there is one."""
        settings = self.settings
        needed = {topic for plan in self._plans for topic in (*plan.inputs, *plan.outputs)}
        replays = [self._topic(plan.service.replay_topic) for plan in self._plans]
        parking = {self._topic(plan.service.replay_topic) for plan in self._plans if plan.service.parks}
        there = set(await self.transport.topics([*needed, *replays]))
        made = set(replays if settings.create_replay_topics else parking if settings.create_topics else ()) - there
        missing = sorted((needed | parking) - there - made)
        if missing and not settings.create_topics:
            raise ConfigurationError(
                f"these topics do not exist: {', '.join(missing)}; create them with "
                "`choreo topics apply MODULE:APP --broker URL`"
            )
        wanted = [TopicSpec(name, settings.partitions) for name in missing]
        wanted += [TopicSpec(name, 1) for name in sorted(made)]
        there |= made
        if wanted:
            await self.transport.create_topics(wanted)
        self._plans = [
            replace(plan, inputs=[*plan.inputs, name]) if name in there else plan
            for plan, name in zip(self._plans, replays, strict=True)
        ]


def delay_topics(service: Service, topic: Callable[[str], str]) -> dict[str, int]:
    """Actual names of a service's delay topics, with their delays in seconds."""
    return {topic(service.delay_topic(delay_s)): delay_s for delay_s in service.delays_s}


def timers_of(
    plan: Plan, ports: Ports, topic: Callable[[str], str], *, poll_s: float = POLL_S
) -> TimerPoller[Any] | None:
    """What wakes the instances of the process that a service runs, if it runs one; or what waits in its queues."""
    process = plan.process
    if process is None:
        handlers = plan.service.handlers.values()
        if not any(each.order is not None and isinstance(each.retry, Delayed) for each in handlers):
            return None
        queues: ParkedStore = ports.store  # type: ignore[assignment]  # `check_pair` has seen to it
        return TimerPoller(
            plan.service.name,
            [],
            Heads(plan.service.group, queues),
            ports.transport,
            ports.clock,
            lambda head: head.record,
            poll_s=poll_s,
        )
    due_topic = topic(process.due.event_topic)
    store: TimerStore = ports.store  # type: ignore[assignment]  # `check_pair` has seen to it
    return TimerPoller(
        plan.service.name,
        [process.name],
        store,
        ports.transport,
        ports.clock,
        lambda timer: due_record(timer, process.due, due_topic, plan.service.source, ports.clock.now_s()),
        poll_s=poll_s,
    )


def check_pair(plan: Plan, store: IdempotencyStore) -> None:
    """Whether the store can hold what the service's handlers ask for.

    Raises:
        ConfigurationError: It cannot; says which can.
    """
    for bound in plan.handlers:
        label, key = bound.handler.label, bound.handler.idempotency_key
        if bound.transaction == INSTANCES and INSTANCES not in store.transaction_types:
            raise ConfigurationError(
                f"{label} belongs to a process, whose instances and timers commit together with its events' keys; "
                f"the store {store.name} keeps neither. Take a store in PostgreSQL or SQLite"
            )
        if bound.handler.order is not None and "parked" not in store.carries:
            raise ConfigurationError(
                f'{label} has order="key", and the store {store.name} keeps no queues of parked keys. Take a store '
                "in PostgreSQL or SQLite, or leave order= out"
            )
        if bound.transacts and bound.transaction not in store.transaction_types:
            offered = ", ".join(sorted(store.transaction_types - {INSTANCES})) or "none"
            raise ConfigurationError(
                f"{label} asks for {bound.transaction} as its transaction; the store {store.name} offers {offered}"
            )
        if key is None or store.dedupe_scope == "anywhere":
            continue
        for event in bound.handler.events:
            if event.event_key != key:
                raise ConfigurationError(
                    f"{label} has the idempotency key {key!r}, and {event.__name__} is sent by the key "
                    f"{event.event_key!r}: the store {store.name} knows a key only in the partition it came from. "
                    f"Send the event by {key!r}, or take a store in PostgreSQL, SQLite or Redis"
                )
