"""One member of a service in the simulated world: started, killed, started again, replaced by the next version."""

import asyncio
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from choreo.app import App
from choreo.core.messages import Limits
from choreo.core.units import Unit
from choreo.errors import ChoreoError, ConfigurationError
from choreo.event import Event
from choreo.ports import Instrument
from choreo.running import check_pair, timers_of
from choreo.runtime.emitting import Emitter
from choreo.runtime.invoking import Invoker
from choreo.runtime.worker import Ports, Worker
from choreo.telemetry.silent import NoInstrument
from choreo.testing.simulation.errors import Unsimulated
from choreo.testing.simulation.process import Process

if TYPE_CHECKING:
    from choreo.testing.simulation.pairs import Pair
    from choreo.testing.simulation.world import World

RESTART_S = 0.5, 8.0
LEASE_S, DRAIN_S = 30.0, 20.0
SLOW_S = 0.5, 12.0
KEY_CHARS_MAX = 40


class HandlerFault(Exception):
    """The simulation made a handler fail."""


class SimulatedInvoker(Invoker):
    """Invokes the user's handlers; now and then one is slow, fails or dies with its process."""

    def __init__(self, process: Process, app: App, resources: Mapping[Any, Any]) -> None:
        super().__init__(resources, app.around, process, inline=True)
        self._process = process
        self._world = process.world

    async def _call(self, bound: Any, event: Any, arguments: Mapping[str, Any]) -> Any:
        world, process = self._world, self._process
        place = _place(bound.handler.label, event)
        fault = world.dice.fault(place, ("crash", "crash_after", "handler_fails", "handler_slow"))
        if fault is None:
            return await super()._call(bound, event, arguments)
        place += "!"
        after = fault == "crash_after" or (fault == "handler_fails" and world.dice.number(place) < 0.5)
        world.note(process, fault, f"{bound.handler.label}{', after its work' if after else ''}")
        if fault == "handler_slow":
            await asyncio.sleep(world.dice.between(place, *SLOW_S))
            return await super()._call(bound, event, arguments)
        if after:
            await super()._call(bound, event, arguments)
        if fault.startswith("crash"):
            world.crash(process)
            await world.loop.create_future()
        raise HandlerFault(bound.handler.label)

    async def invoke(self, unit: Unit, transaction: Any = None, connection: Any = None) -> Any:
        """Call it, and remember."""
        self._world.invoked(self._process, unit)
        try:
            result = await super().invoke(unit, transaction, connection)
        except Exception as error:
            self._world.came_back(self._process, unit, error)
            if isinstance(error, Unsimulated):  # a retry would hide it
                self._world.failure = self._world.failure or error
            raise
        self._world.came_back(self._process, unit)
        return result

    def call_inside(self, unit: Unit, context: Any, transaction: Any) -> Any:
        """Call a plain handler inside a transaction; what goes wrong in it rolls it back."""
        world, process = self._world, self._process
        world.invoked(process, unit)
        try:
            result = self._inside(unit, context, transaction)
        except Exception as error:
            world.came_back(process, unit, error)
            raise
        world.came_back(process, unit)
        return result

    def _inside(self, unit: Unit, context: Any, transaction: Any) -> Any:
        world, process, label = self._world, self._process, unit.work.bound.handler.label
        place = _place(label, unit.work.event)
        fault = world.dice.fault(place, ("handler_fails",))
        if fault is None:
            return super().call_inside(unit, context, transaction)
        after = world.dice.number(f"{place}!") < 0.5
        world.note(process, fault, f"{label}{', after its work' if after else ''}")
        if after:
            super().call_inside(unit, context, transaction)
        raise HandlerFault(label)


def _place(label: str, event: Event) -> str:
    """Of a call of a handler: by its event's key, so that it is met again whichever process comes to handle it."""
    key = (event.record_key() or b"").decode()
    return f"handler/{label}/{re.sub(r'[^A-Za-z0-9.-]', '_', key)[:KEY_CHARS_MAX]}"


class Member:
    """A place in the world that a process of a service fills, one after the other."""

    def __init__(self, world: "World", app: App, name: str, service: str, pair: "Pair") -> None:
        self._world = world
        self._app = app
        self._pair = pair
        self.name = name
        self.service = service
        self.process: Process | None = None
        self.worker: Worker | None = None
        self._stack = AsyncExitStack()

    def start(self) -> None:
        """Start a process; it is up some time later."""
        self.process = process = Process(self._world, self.name, self.service)
        self._world.note(process, "starts", self.service)
        process.spawn(self._run(process))

    async def _run(self, process: Process) -> None:
        while True:
            try:
                worker = await self._started(process)
                break
            except (ConfigurationError, Unsimulated) as error:  # no start will do any better
                self._world.failure = self._world.failure or error
                return
            except ChoreoError as error:  # a supervisor would start it again
                self._world.note(process, "start failed", type(error).__name__)
                await asyncio.sleep(1.0)
        self.worker = worker
        try:
            await worker.failed_for_good()
        except Exception as error:
            self._world.failure = self._world.failure or error

    async def _started(self, process: Process) -> Worker:
        app, world = self._app, self._world
        transport, store = self._pair(process, self.service)
        (plan,) = app.plans([self.service])
        await transport.open()
        await store.open()
        try:
            check_pair(plan, store)
        except ConfigurationError as error:
            raise Unsimulated(
                f"{error}. PostgreSQL is not simulated: on the pair outbox handlers have rows by sqlite3.Connection "
                "or SQLAlchemy's Session and AsyncSession, on embedded by sqlite3.Connection, on the others none"
            ) from None
        instrument: Instrument = NoInstrument()
        limits = Limits()
        ports = Ports(
            transport,
            store,
            instrument,
            process,
            lease_s=LEASE_S,
            drain_s=DRAIN_S,
            retention_s=plan.process.retention_s if plan.process is not None else None,
            limits=limits,
        )
        wanted = {type_ for bound in plan.handlers for type_ in bound.resources.values()}
        instances = await app.resources.open(world.resources, wanted, self._stack)
        worker = Worker(
            plan.service,
            world.inputs(self.service),
            ports,
            app.router(self.service, knows_keys=store.dedupe_scope == "anywhere"),
            Emitter(plan.service, app.topic, plan.propagate),
            SimulatedInvoker(process, app, instances),
            timers_of(plan, ports, app.topic),
        )
        await worker.start()
        return worker

    def died(self) -> None:
        """Its process was killed; another is started."""
        self.process, self.worker, self._stack = None, None, AsyncExitStack()
        delay_s = self._world.dice.between(f"{self.name}/restart", *RESTART_S)
        self._world.loop.call_later(delay_s, self._again, context=self._world.context)

    def _again(self) -> None:
        if self.process is None and not self._world.over:
            self.start()

    async def replace(self, app: App) -> None:
        """Stop it as SIGTERM does, and start one of `app`; nothing if it is not up."""
        process, worker = self.process, self.worker
        self._app = app
        if process is None or worker is None or process.hangs:
            return
        self._world.note(process, "stops", self.service)
        self.worker = None
        stopping = process.spawn(worker.stop())
        await asyncio.wait({stopping})  # not awaited itself, which could not be cancelled if it were killed meanwhile
        if isinstance(stopping.exception(), ChoreoError):  # it ends all the same
            self._world.note(process, "stopped with", type(stopping.exception()).__name__)
        if self.process is process:
            process.life.kill()
            self._world.dead.append(process)
            self.process = None
            self.start()
