"""The composition root: declarations put together and checked, then run on a broker and a store."""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from choreo.binding import Around, BoundHandler, bind
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.looking import Looking
from choreo.ports import TopicSpec
from choreo.process import Join, ProcessManager, Saga, Watch
from choreo.process.interpreting import Process
from choreo.running import Plan, Resources, Running, Settings, delay_topics
from choreo.runtime.routing import Router
from choreo.service import Flow, Service
from choreo.topic import prefixed

if TYPE_CHECKING:
    from choreo.flow.model import Capability

Resource = Any
"""An instance, or an async generator function that yields one and is closed after the drain."""

Given = Service | type[ProcessManager] | Saga | Join[..., Any] | Watch[Any]
"""What an App is made of: each is a consumer group."""

DLQ_BYTES_MAX = "2097152"
"""A dead letter is its original and what is said of it: it must fit where the original just fitted."""


class App:
    """Services and flows that belong together. Building it checks all of it.

    Args:
        services: Services, process managers, sagas, joins and watches of flows, at least one; names differ.
        flows: What the business calls a process.
        resources: What handlers ask for by type: instances, or a mapping of type to instance or async generator
            function.
        around: Async context managers about each invocation, outermost first; each is called with the Context.
        topics: Logical to actual topic name, or to a `choreo.topic.Topic` that says what its records are;
            `CHOREO_TOPIC_PREFIX` is put before either.
        propagate: CloudEvents extensions copied from an event to what it causes.
        name: CloudEvents source of what `publish` sends, `/<name>`.

    Raises:
        DeclarationError: The message says what to write instead.
    """

    def __init__(
        self,
        *services: Given,
        flows: Sequence[Flow] = (),
        resources: Sequence[Resource] | Mapping[Any, Resource] = (),
        around: Sequence[Around] = (),
        topics: Mapping[str, str] | None = None,
        propagate: Sequence[str] = (),
        name: str = "app",
    ) -> None:
        if not services:
            raise DeclarationError("App(): give it at least one Service")
        self.name = name
        self.services: dict[str, Service] = {}
        self.processes: dict[str, Process] = {}
        for given in services:
            service = self._service(given)
            if service.name in self.services:
                raise DeclarationError(
                    f"App: two services are named {service.name!r}, and a name is part of their keys"
                )
            if not service.handlers:
                raise DeclarationError(f"App: the service {service.name!r} has no handler; is its module imported?")
            self.services[service.name] = service
        self.flows = tuple(flows)
        self.propagate = tuple(propagate)
        self.around = tuple(around)
        self._topics = dict(topics or {})
        self._prefix = os.environ.get("CHOREO_TOPIC_PREFIX", "")
        self._bound = {
            each.name: [bind(handler) for handler in each.handlers.values()] for each in self.services.values()
        }
        self.resources = Resources(resources)
        self._running: list[Running] = []
        self._check_resources()
        self._check_flows()

    def _service(self, given: Given) -> Service:
        if isinstance(given, Service):
            return given
        process = Process(given.manager if isinstance(given, (Saga, Join, Watch)) else given)
        return self.processes.setdefault(process.name, process).service

    def topic(self, logical: str) -> str:
        """The actual name of a logical topic."""
        return prefixed(self._prefix, self._topics.get(logical, logical))

    def bound(self, service: str) -> list[BoundHandler]:
        """The handlers of one service, ready to call."""
        return self._bound[service]

    def router(self, service: str, *, knows_keys: bool = True) -> Router:
        """What decides, for one service, what becomes of a record; see `Router`."""
        found = self.services[service]
        return Router(
            found,
            self._bound[service],
            topic=self.topic,
            replay_topic=self.topic(found.replay_topic),
            delay_topics=delay_topics(found, self.topic),
            knows_keys=knows_keys,
        )

    def event_classes(self) -> dict[str, type[Event]]:
        """Every event class handled or emitted, by type; of several versions the newest."""
        found: dict[str, type[Event]] = {}
        for event in self._events():
            known = found.get(event.event_type)
            if known is None or known.event_version < event.event_version:
                found[event.event_type] = event
        return found

    def classes_of(self, type_: str) -> list[type[Event]]:
        """Every class of an event type; all there are, of any, where none has that type."""
        found = self._events()
        return [event for event in found if event.event_type == type_] or found

    def input_topics(self, service: str) -> list[str]:
        """Actual topics one service subscribes to, beside that of replays, which it reads where it is there."""
        logical = {event.event_topic for bound in self._bound[service] for event in bound.handler.events}
        return sorted(str(self.topic(each)) for each in logical) + list(
            delay_topics(self.services[service], self.topic)
        )

    def own_topics(self) -> set[str]:
        """Actual topics that hold copies of events: dead letters, replays and delayed retries."""
        found = set[str]()
        for service in self.services.values():
            found |= {self.topic(service.dlq_topic), self.topic(service.replay_topic)}
            found |= set(delay_topics(service, self.topic))
        return found

    def topic_specs(self, partitions: int = 4, replication: int = 1) -> list[TopicSpec]:
        """Every topic the app reads or writes, by actual name; `own_topics` are among them."""
        names = sorted({str(self.topic(event.event_topic)) for event in self._events()})
        specs = [TopicSpec(name, partitions, replication) for name in names]
        for service in self.services.values():
            config = (("max.message.bytes", DLQ_BYTES_MAX),)
            for name in (self.topic(service.dlq_topic), *delay_topics(service, self.topic)):
                specs.append(TopicSpec(name, partitions, replication, config))
            # One partition: nearly always empty, and each one more is a lease for every service to keep.
            specs.append(TopicSpec(self.topic(service.replay_topic), 1, replication, config))
        return specs

    def capability(self) -> "Capability":
        """What the services declare, as data: the model that is drawn, exported and compared."""
        from choreo.flow.declared import declared  # not needed, and not imported, to run services

        pairs = [(service, self._bound[name]) for name, service in self.services.items()]
        return declared(pairs, self.flows, lambda logical: str(self._topics.get(logical, logical)))

    @asynccontextmanager
    async def running(
        self,
        services: Sequence[str] | None = None,
        *,
        broker: str,
        store: str | None = None,
        overrides: Mapping[Any, Resource] | None = None,
        **settings: Any,
    ) -> AsyncIterator[Running]:
        """Run services in this process until the block ends, then drain.

        Args:
            services: Names; all of them unless given.
            broker: `embedded:PATH`, `embedded::memory:`, `kafka://HOST:PORT[,HOST:PORT]` or `kafka+confluent://...`.
            store: `sqlite:PATH`, where `{service}` in the path stands for each service's name, `postgresql://...`,
                `redis://...` or `changelog`. The embedded broker keeps one in its own file unless given another.
            overrides: Resources by type that replace the app's own.
            settings: Fields of `choreo.running.Settings`.

        Raises:
            ConfigurationError: Broker and store do not go together, or topics are missing.
        """
        names = list(self.services) if services is None else list(services)
        running = Running(self.plans(names), self.topic, Settings(broker=broker, store=store, **settings), self.name)
        async with running.started(self.resources, overrides or {}):
            self._running.append(running)
            try:
                yield running
            finally:
                self._running.remove(running)

    def instances(
        self, process: type[ProcessManager] | Saga, *, store: str | None = None, broker: str | None = None
    ) -> Looking:
        """Instances of a process, to look at: where they stand, when their timers are due.

        Args:
            store: `postgresql://...` or `sqlite:PATH`; that of the running app unless given, then `CHOREO_STORE`.
            broker: `embedded:PATH`, whose file holds them; `CHOREO_BROKER`.

        Raises:
            DeclarationError: It is no process of the app.
        """
        name = process.name if isinstance(process, Saga) else process.process_name
        if name not in self.processes:
            there = ", ".join(self.processes) or "none"
            raise DeclarationError(f"{name!r} is no process of this app; it has: {there}")
        running = self._running[-1] if self._running and store is None and broker is None else None
        if running is not None:
            store, broker = running.settings.store, running.settings.broker
        return Looking(
            self.processes[name],
            running.stores.get(name) if running is not None else None,
            store=store,
            broker=broker,
        )

    def plans(self, names: Sequence[str]) -> list[Plan]:
        """What is needed to run the named services.

        Raises:
            DeclarationError: There is no such service.
        """
        unknown = [name for name in names if name not in self.services]
        if unknown:
            raise DeclarationError(f"there is no service {unknown[0]!r}; the app has: {', '.join(self.services)}")
        return [
            Plan(
                self.services[name],
                self._bound[name],
                self.input_topics(name),
                self.around,
                self.propagate,
                self._outputs(name),
                self.processes.get(name),
            )
            for name in names
        ]

    def _outputs(self, name: str) -> list[str]:
        emitted = {str(self.topic(event.event_topic)) for bound in self._bound[name] for event in bound.emits}
        return sorted(emitted | {self.topic(self.services[name].dlq_topic)})

    def _events(self) -> list[type[Event]]:
        handled = [event for bounds in self._bound.values() for bound in bounds for event in bound.handler.events]
        emitted = [event for bounds in self._bound.values() for bound in bounds for event in bound.emits]
        return list(dict.fromkeys([*handled, *emitted, *(flow.starts for flow in self.flows)]))

    def _check_resources(self) -> None:
        for bounds in self._bound.values():
            for bound in bounds:
                for parameter, wanted in bound.resources.items():
                    if not self.resources.offers(wanted):
                        name = getattr(wanted, "__name__", wanted)
                        raise DeclarationError(
                            f"{bound.handler.label}: nothing of type {name} is there for {parameter!r}; "
                            f"write App(..., resources={{{name}: ...}})"
                        )

    def _check_flows(self) -> None:
        handled = {event.event_type for each in self._bound.values() for b in each for event in b.handler.events}
        emitted = {event.event_type for each in self._bound.values() for b in each for event in b.emits}
        for flow in self.flows:
            if flow.starts.event_type not in handled:
                raise DeclarationError(
                    f"Flow({flow.name!r}): no handler takes {flow.starts.__name__}, so it never starts"
                )
            for end in flow.ends:
                if end.event_type not in emitted:
                    raise DeclarationError(
                        f"Flow({flow.name!r}): no handler emits {end.__name__}, so it never ends there"
                    )
