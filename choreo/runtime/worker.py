"""One service in one process: steps the core, and has its effects performed on the ports."""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from choreo.core import messages as m
from choreo.core.engine import Engine
from choreo.core.units import State, Unit
from choreo.ports import Clock, Consumer, IdempotencyStore, Instrument, Transport, UnitInfo
from choreo.record import new
from choreo.runtime.claiming import Claimer
from choreo.runtime.emitting import Emitter
from choreo.runtime.fetching import Fetcher
from choreo.runtime.flushing import Flusher
from choreo.runtime.giving_up import GivingUp
from choreo.runtime.holding import Holder
from choreo.runtime.invoking import Invoker
from choreo.runtime.keeping import Keeper
from choreo.runtime.outgoing import Outgoing
from choreo.runtime.parking import Parker
from choreo.runtime.results import Results
from choreo.runtime.routing import Router
from choreo.runtime.runners import Runners
from choreo.runtime.telling import Teller
from choreo.runtime.timers import TimerPoller
from choreo.runtime.transacting import Transactor
from choreo.runtime.unsaid import unsaid
from choreo.runtime.work import Work
from choreo.service import Service

log = logging.getLogger("choreo.worker")


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
    """Runs one service. It has the core and the tasks; what there is to be done has a module of its own for each job.

    Attributes:
        counts: What became of how many events and emits, by name.
        leases: Of the partitions that are ours.
        beats: When each loop began its last round, by `monotonic_s`.
        draining: It has been told to stop.
    """

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
        self.beats: dict[str, float] = {}
        self.draining = False
        self.ports = ports
        self.emitter = emitter
        self.invoker = invoker
        self.topics = topics
        self.router = router
        self._consumer: Consumer | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runners = Runners(self._invoke, self._steps, self._spawn)
        self._timer: asyncio.Task[Any] | None = None
        self._loops: list[asyncio.Task[Any]] = []
        self._progress = asyncio.Event()
        self.parker = Parker(emitter)
        self.holder = Holder(self, self._spawn, self._progress, self._runners.cancel_dropped)
        self.leases = self.holder.leases
        self.fetcher = Fetcher(self, self._steps, self._progress)
        self.results = Results(self)
        self.teller = Teller(self, self._spawn)
        self.outgoing = Outgoing(self, self.teller)
        self.flusher = Flusher(self, self.results, self.outgoing, self.teller)
        self._transactor = Transactor(self, self.results, self.outgoing)
        self._giving_up = GivingUp(self, self.results)
        self._keeper = Keeper(self)
        self._claimer = Claimer(self, self._steps, self._spawn, self._keeper.renew)
        self.timers = timers
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- life

    async def start(self) -> None:
        """Create the service's tables, join its group and begin."""
        for function in self.service.on_start_functions:
            await self.ports.store.run(function)
        self._consumer = await self.ports.transport.consumer(self.service.group, self.topics, self.holder)
        self._loops = [asyncio.create_task(self.fetcher.loop()), asyncio.create_task(self._keeper.loop())]
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

    @property
    def joined(self) -> bool:
        """Whether it is a member of its group."""
        return self._consumer is not None and self._consumer.joined

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
                self._spawn(self._transactor.transact(effect))
            case m.Commit():
                self._spawn(self.flusher.commit(effect))
            case m.DeadLetter(unit, reason):
                self._spawn(self._giving_up.dead_letter(unit, reason))
            case m.Delay(unit, reason):
                self._spawn(self._giving_up.delay(unit, reason))
            case m.Park(unit, reason):
                self._spawn(self._giving_up.park(unit, reason))
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
            return self.results.failed(unit, asyncio.CancelledError("the handler cancelled itself"))
        except Exception as error:
            return self.results.failed(unit, error)
        return new(m.Returned, (unit, self.results.finished(unit, emits, "handled", ended_s=ended_s)))

    def _say_broken(self, handler: str, pause_s: float | None) -> None:
        name = f"{self.service.name}.{handler}"
        self.ports.instrument.breaker(handler, is_open=pause_s is not None)
        if pause_s is None:
            log.warning("%s: its breaker is closed, what waited goes on", name)
            return
        self.counts["breaker_opened"] += 1
        log.warning("%s: its breaker is open: no attempt for %g s, then one", name, pause_s)

    def span(self, unit: Unit) -> Any:
        """The unit's process span, begun when first asked for."""
        work: Work = unit.work
        if work.span is None:
            service, new_trace = self.service, work.replay is not None and work.retried is None
            info = new(UnitInfo, (service.name, service.group, unit.handler, work.record, work.envelope, new_trace))
            now_s = work.started_s or self.ports.clock.now_s()
            work.span = self.ports.instrument.process(info, now_s=now_s)
        return work.span
