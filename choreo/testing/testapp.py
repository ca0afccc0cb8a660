"""A whole app in one test: the in-memory broker, virtual time, and a count of what is in flight."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from choreo import envelope as cloudevents
from choreo.app import App
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.event import Event
from choreo.parked import Parked, ParkedStore
from choreo.publisher import Reference
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.running import Running
from choreo.runtime.emitting import original
from choreo.runtime.ordering import Operator
from choreo.runtime.releasing import orders_for
from choreo.runtime.unsaid import say_words
from choreo.service import Service
from choreo.sqlite import log
from choreo.testing.clock import VirtualClock
from choreo.transports.embedded import EmbeddedTransport

STEPS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter: who gave up on which record, and why."""

    service: str
    handler: str
    reason: str
    detail: str
    attempts: int
    record: Record


class TestFlow:
    """One flow begun by `TestApp.publish`."""

    __test__ = False

    def __init__(self, app: "TestApp", reference: Reference) -> None:
        self._app = app
        self.reference = reference

    async def settled(self) -> None:
        """Return when nothing of the flow is in flight: counted, never waited for."""
        await self._app.settle(self.reference.correlation_id)

    @property
    def envelopes(self) -> list[Envelope]:
        """Envelopes of the flow's events, in the order they reached the log."""
        return [envelope for envelope, _ in self._app.flow_records(self.reference.correlation_id)]

    @property
    def types(self) -> list[str]:
        """Types of the flow's events, in the order they reached the log."""
        return [envelope.type for envelope in self.envelopes]


class TestApp:
    """Run `app` on an in-memory broker in virtual time.

        async with TestApp(app, resources={PaymentProvider: Declines()}) as t:
            flow = await t.publish(placed)
            await flow.settled()
            assert flow.types[-1] == "stock.released" and not t.dead_letters

    Handlers that sleep with `asyncio.sleep` or do real I/O take their real time; choreo's own waits take none.
    Where they ask for a PostgreSQL transaction give `store="postgresql://...?choreo_schema=NAME"`, a schema a test.
    """

    __test__ = False

    def __init__(self, app: App, *, resources: Mapping[Any, Any] | None = None, **settings: Any) -> None:
        self.app = app
        self.clock = VirtualClock()
        self.dead_letters: list[DeadLetter] = []
        self._resources = resources or {}
        self._settings = settings
        self._stack = AsyncExitStack()
        self._running: Running | None = None

    async def __aenter__(self) -> Self:
        say_words()
        self._running = await self._stack.enter_async_context(
            self.app.running(
                broker="embedded::memory:",
                overrides=self._resources,
                clock=self.clock,
                inline=True,
                create_topics=True,
                create_schema=True,
                **self._settings,
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    @property
    def running(self) -> Running:
        """The services, their workers and counts."""
        assert self._running is not None, "use TestApp in `async with`"
        return self._running

    async def publish(self, event: Event, *, id: str | None = None) -> TestFlow:
        """Publish an event; returns its flow to wait for and look at."""
        return TestFlow(self, await self.running.publish(event, id=id))

    async def send(self, record: ProducerRecord) -> None:
        """Put a raw record on a topic, as a foreign producer would."""
        await self.running.transport.send([record])

    async def settle(self, correlation_id: str | None = None) -> None:
        """Return when nothing, or nothing of one flow, is in flight."""
        for _ in range(STEPS_MAX):
            await self._let_run()
            if not await self._in_flight(correlation_id):
                await self._read_dead_letters()
                return
            next_s = self.clock.next_s()
            if next_s is not None and await self._only_waiting():
                self.clock.move_to(next_s)
        raise AssertionError(f"the flow did not settle in {STEPS_MAX} steps: is there a loop of events?")

    async def advance(self, **duration: float) -> None:
        """Move time forward by `timedelta(**duration)`, stopping wherever something is due."""
        until_s = self.clock.now_s() + timedelta(**duration).total_seconds()
        while True:
            for _ in range(STEPS_MAX):
                await self._let_run()
                if await self._only_waiting():
                    break
            next_s = self.clock.next_s()
            if next_s is None or next_s > until_s:
                break
            self.clock.move_to(next_s)
        self.clock.move_to(until_s)
        await self._read_dead_letters()

    def now(self) -> datetime:
        """The virtual time."""
        return datetime.fromtimestamp(self.clock.now_s(), UTC)

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Rows of the services' own tables."""
        database = self.running.database
        assert database is not None
        return database.read_inline(lambda db: db.execute(query, arguments).fetchall())

    def flow_records(self, correlation_id: str) -> list[tuple[Envelope, Record]]:
        """Events of one flow with their records, in the order they reached the log; not those of `own_topics`."""
        own = self.app.own_topics()
        return self._records_of(
            correlation_id, [each.name for each in self.app.topic_specs() if each.name not in own]
        )

    def _records_of(self, correlation_id: str, topics: Sequence[str]) -> list[tuple[Envelope, Record]]:
        found = []
        database = self.running.database
        assert database is not None
        for record in database.read_inline(lambda db: log.scan(db, topics, 0, header=correlation_id.encode())):
            try:
                envelope, _ = cloudevents.read(record.headers, record.value or b"")
            except DecodeError:
                continue
            if envelope.correlationid == correlation_id:
                found.append((envelope, record))
        return found

    async def parked(self) -> list[Parked]:
        """The events that keys are parked behind, the longest parked first."""
        return [head for _, heads in await self._queues() for head in heads]

    async def release(self) -> None:
        """Give each of them to its handler once more, as `choreo dlq release` does."""
        for service, heads in await self._queues():
            topic, who = self.app.topic(service.replay_topic), Operator("test")
            orders = orders_for(service, topic, heads, "head", who, self.clock.now_s())
            await self.running.transport.send(orders.records)

    async def _queues(self) -> list[tuple[Service, Sequence[Parked]]]:
        found = []
        for service in self.app.services.values():
            if service.parks:
                queues: ParkedStore = self.running.stores[service.name]  # type: ignore[assignment]
                found.append((service, await queues.parked(service.group)))
        return found

    # ---- counting

    @property
    def _transport(self) -> EmbeddedTransport:
        transport = self.running.transport
        assert isinstance(transport, EmbeddedTransport)
        return transport

    async def _let_run(self) -> None:
        for worker in self.running.workers.values():
            if worker.failure is not None:
                raise worker.failure
        for _ in range(20):
            await asyncio.sleep(0)
        busy = any(not worker.engine.waiting() for worker in self.running.workers.values())
        if busy:  # a handler or a store may wait for something real
            await asyncio.sleep(0.001)

    async def _in_flight(self, correlation_id: str | None) -> int:
        workers = self.running.workers.values()
        unfinished = sum(worker.engine.unfinished(correlation_id) for worker in workers)
        if unfinished:
            return unfinished
        unread = await self._transport.unread() + sum(not worker.leases for worker in workers)
        if correlation_id is None or not unread:
            return unread
        topics = [each.name for each in self.app.topic_specs()]  # delayed retries and replays are of the flow, too
        return self._unfetched([record for _, record in self._records_of(correlation_id, topics)])

    def _unfetched(self, records: list[Record]) -> int:
        count = 0
        for worker in self.running.workers.values():
            inputs = set(worker.topics)
            for record in records:
                if record.topic in inputs:
                    partition = worker.engine.partitions.get(TopicPartition(record.topic, record.partition))
                    count += partition is None or partition.position <= record.offset
        return count

    async def _only_waiting(self) -> bool:
        """Whether nothing can go on before time does."""
        workers = list(self.running.workers.values())
        if not all(worker.leases and worker.engine.waiting() for worker in workers):
            return False
        ends = await self._transport.ends()
        return all(
            partition.paused or partition.position >= ends[id_]
            for worker in workers
            for id_, partition in worker.engine.partitions.items()
        )

    async def _read_dead_letters(self) -> None:
        topics = [self.app.topic(service.dlq_topic) for service in self.app.services.values()]
        records = await self.running.transport.scan(topics, since_ms=0)
        self.dead_letters = []
        for record in records:
            told = original(record)
            self.dead_letters.append(
                DeadLetter(
                    told["service"],
                    told["handler"],
                    told["reason"],
                    told["detail"],
                    int(told["attempts"]),
                    record,
                )
            )
