"""Services that run in this process: broker and stores by their URLs, workers started, and drained in the end."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from choreo.errors import ConfigurationError
from choreo.event import Event
from choreo.observing import Observing
from choreo.opening import STORES, open_store, open_transport
from choreo.ports import IdempotencyStore, Transport
from choreo.publisher import Publisher, Reference
from choreo.running.plan import Plan, Settings, delay_topics
from choreo.running.preconditions import check_changelog, check_pair, check_rights, check_topics
from choreo.running.resources import Resources
from choreo.running.waking import timers_of
from choreo.runtime.emitting import Emitter
from choreo.runtime.health import not_alive, not_ready
from choreo.runtime.invoking import Invoker
from choreo.runtime.routing import Router
from choreo.runtime.timers import POLL_S
from choreo.runtime.worker import Ports, Worker
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from choreo.transports.embedded import EmbeddedTransport


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
            changelog = self.settings.store == "changelog"
            await check_rights(self.transport, self._plans, self._topic, changelog=changelog)
            self._plans = await check_topics(self.transport, self._plans, self._topic, self.settings)
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
                draining.pop_all()  # not one after the other, but at once
                stopped = asyncio.gather(*(worker.stop() for worker in self.workers.values()), return_exceptions=True)
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
            await check_changelog(self.transport, plan, self._topic, create=settings.create_topics)
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
