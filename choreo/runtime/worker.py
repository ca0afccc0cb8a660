"""One service in one process: fetches, steps the core, performs its effects on the ports."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from choreo.core import messages as m
from choreo.core.engine import Engine
from choreo.core.units import State, Unit
from choreo.errors import ChoreoError
from choreo.ports import Clock, Consumer, IdempotencyStore, Instrument, Lease, Transport, UnitInfo
from choreo.record import Record, TopicPartition, new
from choreo.runtime.claiming import Claimer
from choreo.runtime.emitting import Emitter
from choreo.runtime.flushing import Flusher
from choreo.runtime.invoking import Invoker, describe, raised
from choreo.runtime.keeping import Keeper
from choreo.runtime.parking import TOO_LARGE, Parker
from choreo.runtime.routing import Router
from choreo.runtime.runners import Runners
from choreo.runtime.timers import TimerPoller
from choreo.runtime.unsaid import unsaid
from choreo.runtime.work import Work
from choreo.service import Service

log = logging.getLogger("choreo.worker")

FETCH_RECORDS_MAX = 500
FETCH_WAIT_S = 1.0
FETCH_AGAIN_S = 0.002
"""Between fetches while the store is at work: a fetch of two records costs what one of fifty does."""
AGAIN_S = 1.0
AGAIN_S_MAX = 60.0
_BY_PARTITION = itemgetter(0, 1)


@dataclass(slots=True)
class Ports:
    """What a worker runs on.

    `retention_s`: how long instances of its process are kept when they have ended; None: for ever, or there is none.
    """

    transport: Transport
    store: IdempotencyStore
    instrument: Instrument
    clock: Clock
    lease_s: float = 30.0
    drain_s: float = 20.0
    key_ttl_s: float = 7 * 86_400.0
    retention_s: float | None = None
    limits: m.Limits = field(default_factory=m.Limits)


class Worker:
    """Runs one service; it is its own `Assignment`."""

    def __init__(
        self,
        service: Service,
        topics: Sequence[str],
        ports: Ports,
        router: Router,
        emitter: Emitter,
        invoker: Invoker,
        timers: TimerPoller[Any] | None = None,
    ) -> None:
        self.service = service
        self.counts: Counter[str] = Counter()
        self.engine = Engine(replace(ports.limits, transactions_max=ports.store.transactions_max))
        self.leases: dict[TopicPartition, Lease] = {}
        self.beats: dict[str, float] = {}  # when each loop began its last round, by `monotonic_s`
        self.draining = False
        self.looked_s = 0.0  # when the last fetch that came back was begun: what `drained` is true of
        self.ports = ports
        self.emitter = emitter
        self.invoker = invoker
        self.topics = topics
        self._router = router
        self._consumer: Consumer | None = None
        self._assigned: dict[TopicPartition, int] = {}  # which assignment of it this is, counted from 1
        self._assignments = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runners = Runners(self._invoke, self._steps, self._spawn)
        self._timer: asyncio.Task[Any] | None = None
        self._loops: list[asyncio.Task[Any]] = []
        self._progress = asyncio.Event()
        self.parker = Parker(emitter)
        self.flusher = Flusher(self, self._spawn)
        self._keeper = Keeper(self)
        self._claimer = Claimer(self, self._steps, self._spawn, self._keeper.renew)
        self.timers = timers
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- life

    async def start(self) -> None:
        """Create the service's tables, join its group and begin."""
        for function in self.service.on_start_functions:
            await self.ports.store.run(function)
        self._consumer = await self.ports.transport.consumer(self.service.group, self.topics, self)
        self._loops = [asyncio.create_task(self._fetch_loop()), asyncio.create_task(self._keeper.loop())]
        if self.timers is not None:
            self._loops.append(asyncio.create_task(self.timers.run()))
        for task in self._loops:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Fetch no more, finish what is running within `drain_s`, commit it, leave the group."""
        self.draining = True
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        try:
            if self._consumer is not None:
                await self._consumer.close()
        finally:
            for task in [*self._tasks, *([self._timer] if self._timer else [])]:
                task.cancel()
            self._failure.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def failure(self) -> BaseException | None:
        """The bug that stopped the worker, if one did."""
        failure = self._failure
        return failure.exception() if failure.done() and not failure.cancelled() else None

    async def failed_for_good(self) -> None:
        """Return never, or raise the bug that stopped the worker."""
        await self._failure

    @property
    def consumer(self) -> Consumer:
        """The member of the group; there is one once started."""
        assert self._consumer is not None
        return self._consumer

    # ---- the core

    def step(self, message: m.Input) -> None:
        """Give the core an input and set its effects going."""
        self._steps((message,))

    def _steps(self, messages: Sequence[m.Input]) -> None:
        for effect in self.engine.steps(messages, self.ports.clock.monotonic_s()):
            if type(effect) is m.Invoke:
                self._runners.add(effect.unit)
            else:
                self._perform(effect)
        self._progress.set()

    def _perform(self, effect: m.Effect) -> None:
        match effect:
            case m.Claim():
                self._claimer.add(effect)
            case m.Transact():
                self._spawn(self.flusher.transact(effect))
            case m.Commit():
                self._spawn(self.flusher.commit(effect))
            case m.DeadLetter(unit, reason):
                self._spawn(self._dead_letter(unit, reason))
            case m.Delay(unit, reason):
                self._spawn(self._delay(unit, reason))
            case m.Park(unit, reason):
                self._spawn(self._park(unit, reason))
            case m.Duplicate(unit):
                self.counts["duplicates"] += 1
                self.span(unit).finish("duplicate", attempts=0)
            case m.Broken(handler, pause_s):
                self._say_broken(handler, pause_s)
            case m.Pause(partition):
                self.consumer.pause(partition)
            case m.Resume(partition):
                self.consumer.resume(partition)
            case m.Wait(until_s):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = asyncio.create_task(self._tick(until_s))
                self._timer.add_done_callback(self._ended)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: a bug in choreo stopped a task", self.service.name, exc_info=unsaid(error))
            if not self._failure.done():
                self._failure.set_exception(error)

    async def _tick(self, until_s: float) -> None:
        await self.ports.clock.sleep(max(0.0, until_s - self.ports.clock.monotonic_s()))
        self._timer = None
        self.step(m.Tick())

    # ---- loops

    async def _fetch_loop(self) -> None:
        while True:
            self.beats["fetch"] = self.ports.clock.monotonic_s()
            await self._while(self._enough_ready, FETCH_WAIT_S)  # who fetches no more counts as dead
            try:
                asked_s = self.ports.clock.now_s()
                records = await self.consumer.fetch(records_max=FETCH_RECORDS_MAX, wait_s=FETCH_WAIT_S)
                self.looked_s = asked_s
            except ChoreoError as error:
                log.warning("%s: fetching failed, trying again: %s", self.service.name, error)
                await asyncio.sleep(AGAIN_S)
                continue
            self._take_in(records)
            del records  # nobody is to hold them but their units, while the next ones are waited for
            await asyncio.sleep(0)
            await self._while(self._at_store, FETCH_AGAIN_S)

    def _take_in(self, records: Sequence[Record]) -> None:
        """Tell the core of all at once, so that the store is asked once."""
        now_ms = int(self.ports.clock.now_s() * 1000)
        fetched: list[m.Input] = []
        for id_, group in groupby(records, key=_BY_PARTITION):
            partition = TopicPartition(*id_)
            deliveries, skips = self._router.deliveries(partition, list(group))
            for skipped in skips:
                self.counts["skipped"] += 1
                self.counts[f"skipped_{skipped}"] += 1
            fetched.append(m.Fetched(partition, deliveries, now_ms))
        if fetched:
            self._steps(fetched)

    def _enough_ready(self) -> bool:
        """What is fetched only to wait is out of the processor's cache when its turn comes."""
        return self.engine.ready >= self.engine.limits.concurrency

    def _at_store(self) -> bool:
        """What comes waits until the store has answered anyway."""
        return self.engine.at_store

    async def _while(self, holds: Callable[[], bool], within_s: float) -> None:
        """Return as soon as it does not hold any more, or after a while."""
        if not holds():
            return
        try:
            async with asyncio.timeout(within_s):
                while holds():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            pass

    # ---- partitions come and go

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Take the epoch; only then read offsets, resend what was left unsent; then let it flow."""
        self._assignments += 1
        assignment = self._assignments  # another may begin while this one is under way
        self._assigned.update(dict.fromkeys(partitions, assignment))
        try:
            await self._take(
                [id_ for id_ in partitions if id_ not in self.leases]
            )  # together: the store is asked once
        except ChoreoError:
            for id_ in partitions:  # one that cannot be taken, e.g. whose offset is out of range, holds up no other
                self._spawn(self._take_in_time(id_, assignment))

    async def _take_in_time(self, partition: TopicPartition, assignment: int) -> None:
        again_s = AGAIN_S
        while self._assigned.get(partition) == assignment and partition not in self.leases:
            try:
                await self._take([partition])
            except ChoreoError as error:
                log.warning("%s: %s cannot be taken, trying again: %s", self.service.name, partition, error)
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, AGAIN_S_MAX)

    async def _take(self, partitions: Sequence[TopicPartition]) -> None:
        store, assigned = self.ports.store, {id_: self._assigned.get(id_) for id_ in partitions}

        def still(id_: TopicPartition) -> bool:
            """Else it was revoked meanwhile: more of it may be committed, and if assigned again it is taken anew."""
            return assigned[id_] is not None and self._assigned.get(id_) == assigned[id_]

        leases = await store.acquire(self.service.group, partitions, self.consumer.member)
        offsets: dict[TopicPartition, int] = {}
        for lease in leases:
            if "outbox" in store.carries:
                await self.flusher.resend(lease)
            # A replay is read from the first on: it was ordered, before this process or after it began.
            start = "earliest" if self._router.own(lease.partition.topic) else self.service.start
            offsets[lease.partition] = await self.consumer.position(lease.partition, start)
        # Said at once: a group that starts at "latest" must not lose what comes before its first commit.
        if current := {id_: offset for id_, offset in offsets.items() if still(id_)}:
            await self.consumer.commit(current)
        for lease in leases:
            if still(lease.partition):
                self.leases[lease.partition] = lease
                self.step(m.Assigned(lease.partition, offsets[lease.partition]))
                self.consumer.seek(lease.partition, offsets[lease.partition])

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Finish what is running, give up the rest, then the epoch."""
        for id_ in partitions:
            self._assigned.pop(id_, None)
        if not lost:
            self.step(m.Draining(tuple(partitions)))
            try:
                async with asyncio.timeout(self.ports.drain_s):
                    while self.engine.unflushed(partitions):
                        self._progress.clear()
                        await self._progress.wait()
                    await self.flusher.tell()
            except TimeoutError:
                log.warning("%s: %s did not drain in time", self.service.name, ", ".join(map(str, partitions)))
        self.step(m.Revoked(tuple(partitions)))
        self._runners.cancel_dropped()
        leases = [self.leases.pop(id_) for id_ in partitions if id_ in self.leases]
        try:
            await self.ports.store.release(leases)
        except ChoreoError as error:
            log.warning("%s: leases could not be released, they will run out: %s", self.service.name, error)

    def still(
        self, leases: Mapping[TopicPartition, Lease], partitions: Iterable[TopicPartition]
    ) -> frozenset[TopicPartition]:
        """Those of `partitions` that were not assigned anew since an answer that speaks of `leases` was asked for."""
        return frozenset(id_ for id_ in partitions if self.leases.get(id_) in (None, leases[id_]))

    def fenced(self, partitions: Iterable[TopicPartition]) -> None:
        """A newer owner was met. If the partitions are still assigned a while later, they are taken anew."""
        for id_ in sorted(partitions):
            self.leases.pop(id_, None)
            if id_ in self._assigned:
                self.consumer.pause(id_)
                self._spawn(self._take_again(id_))
        self._runners.cancel_dropped()

    async def _take_again(self, partition: TopicPartition) -> None:
        # Longer than a heartbeat: a member that was cut off has learnt by then that the partition is gone.
        await asyncio.sleep(4 * AGAIN_S)
        if partition in self._assigned:
            await self.assigned([partition])

    # ---- effects

    async def _invoke(self, unit: Unit) -> m.Input:
        work: Work = unit.work
        now_s, sending = self.ports.clock.now_s, None
        if not work.started_s:
            work.started_s = now_s()
        try:
            if not self.ports.instrument.silent:
                span = self.span(unit)
                span.attach()
                if not span.silent:
                    sending = span.sending
            result = await self.invoker.invoke(unit)
            assert work.bound is not None
            events, ended_s = work.bound.emitted(result), now_s()
            emits = self.emitter.emits(work, unit.handler, events, ended_s, sending)
        except asyncio.CancelledError:
            if unit.state is State.DROPPED:
                raise
            return self._failed(unit, asyncio.CancelledError("the handler cancelled itself"))
        except Exception as error:
            return self._failed(unit, error)
        return new(m.Returned, (unit, self.flusher.finished(unit, emits, "handled", ended_s=ended_s)))

    def _failed(self, unit: Unit, error: BaseException) -> m.Input:
        """A handler raised: the core decides whether it is tried again."""
        self.note_failure(unit, error)
        return raised(unit, error)

    def note_failure(self, unit: Unit, error: BaseException) -> None:
        """Remember why, for the log line and the dead letter."""
        unit.result = error
        self.counts["failed_attempts"] += 1
        self.span(unit).attempt_failed(unit.attempts, error)
        name, attempt = self.service.name, unit.attempts
        log.info(
            "%s.%s failed, attempt %d: %s", name, unit.handler, attempt, describe(error), extra=self._about(unit)
        )

    async def _dead_letter(self, unit: Unit, reason: str) -> None:
        work: Work = unit.work
        error, detail = _why(unit, reason)
        span, now_s = self.span(unit), self.ports.clock.now_s()
        letter = self.emitter.dead_letter(work, unit.handler, reason, detail, unit.attempts, now_s, span.sending)
        bug = error if work.error is None and reason == "handler_failed" else None
        log.warning(
            "dead letter: %s@%d for %s.%s: %s",
            unit.partition,
            unit.offset,
            self.service.name,
            unit.handler,
            detail,
            exc_info=None if bug is None else unsaid(bug),
            extra=self._about(unit),
        )
        self.step(m.Returned(unit, self.flusher.finished(unit, (letter,), f"dead_letter:{reason}")))

    def _about(self, unit: Unit) -> dict[str, str]:
        """What the unit's log records say beside their message, as those of its handler do."""
        return {"service": self.service.name, "handler": unit.handler, "correlation_id": unit.correlation_id}

    @property
    def joined(self) -> bool:
        """Whether it is a member of its group."""
        return self._consumer is not None and self._consumer.joined

    def _say_broken(self, handler: str, pause_s: float | None) -> None:
        name = f"{self.service.name}.{handler}"
        self.ports.instrument.breaker(handler, is_open=pause_s is not None)
        if pause_s is None:
            log.warning("%s: its breaker is closed, what waited goes on", name)
            return
        self.counts["breaker_opened"] += 1
        log.warning("%s: its breaker is open: no attempt for %g s, then one", name, pause_s)

    async def _delay(self, unit: Unit, reason: str) -> None:
        span = self.span(unit)
        record = self.emitter.delayed(unit.work, unit.handler, unit.attempts, span.sending)
        if record is None:
            await self._dead_letter(unit, reason)
            return
        log.info(
            "%s.%s: %s@%d goes to %s",
            self.service.name,
            unit.handler,
            unit.partition,
            unit.offset,
            record.topic,
            extra=self._about(unit),
        )
        self.step(m.Returned(unit, self.flusher.finished(unit, (record,), "delayed")))

    async def _park(self, unit: Unit, reason: str) -> None:
        if unit.redriven and unit.work.replay.parked != "head":  # there is nothing to be done but to leave the queue
            outcome = "unparked:drop" if unit.work.replay.parked == "drop" else "unparked"
            self.step(m.Returned(unit, self.flusher.finished(unit, (), outcome)))
            return
        error, detail = _why(unit, reason)
        waits = self.parker.waits(unit, reason, detail)
        if waits is None:
            await self._dead_letter(unit, reason or TOO_LARGE)
            return
        if reason:
            bug = error if unit.work.error is None else None
            name, where = f"{self.service.name}.{unit.handler}", f"{unit.partition}@{unit.offset}"
            log.warning(
                "parked: %s for %s, and what comes of its key waits behind it: %s",
                where,
                name,
                detail,
                exc_info=None if bug is None else unsaid(bug),
                extra=self._about(unit),
            )
        self.step(m.Returned(unit, self.flusher.finished(unit, (), f"parked:{reason}", waits)))

    def span(self, unit: Unit) -> Any:
        """The unit's process span, begun when first asked for."""
        work: Work = unit.work
        if work.span is None:
            service, new_trace = self.service, work.replay is not None and work.retried is None
            info = new(UnitInfo, (service.name, service.group, unit.handler, work.record, work.envelope, new_trace))
            now_s = work.started_s or self.ports.clock.now_s()
            work.span = self.ports.instrument.process(info, now_s=now_s)
        return work.span


def _why(unit: Unit, reason: str) -> tuple[BaseException | None, str]:
    """What a unit was given up for, and how that is told."""
    work: Work = unit.work
    error = work.error or (unit.result if isinstance(unit.result, BaseException) else None)
    return error, describe(error) if error is not None else reason
