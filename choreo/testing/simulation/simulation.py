"""Runs an app in a simulated world from one seed: workload, faults, then peace, then the checkers."""

import asyncio
import contextvars
import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from choreo import envelope as cloudevents
from choreo.app import App
from choreo.envelope import Envelope
from choreo.errors import ChoreoError
from choreo.event import Event
from choreo.testing.clock import START_S
from choreo.testing.simulation.checkers import CHECKERS, Checker, OffsetCheck
from choreo.testing.simulation.determinism import deterministic
from choreo.testing.simulation.errors import Stalled, Unsimulated
from choreo.testing.simulation.faults import Dice, Faults
from choreo.testing.simulation.happenings import Happening
from choreo.testing.simulation.journal import watch
from choreo.testing.simulation.loop import SimulationLoop
from choreo.testing.simulation.member import Member
from choreo.testing.simulation.nemesis import Nemesis
from choreo.testing.simulation.operators import ROUNDS, SimulatedOperator
from choreo.testing.simulation.pairs import PAIRS
from choreo.testing.simulation.process import Process
from choreo.testing.simulation.world import World
from choreo.topic import wire_record, wire_value

PUBLISH_S, FAULTS_S, SETTLE_S = 20.0, 30.0, 300.0

Workload = Callable[[random.Random], Sequence[Event]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed.

    Attributes:
        violations: What the checkers found, `checker: what`; nothing is good.
        faults: Ids of the faults that happened, in order: what `allowed` takes.
    """

    seed: int
    violations: tuple[str, ...]
    faults: tuple[str, ...]
    history: tuple[Happening, ...]
    virtual_s: float
    events: int
    counts: Mapping[str, int]
    transitions: Mapping[tuple[str, str], int]

    @property
    def text(self) -> str:
        """The history, a line each: the same bytes for the same seed."""
        start_s = self.history[0].at_s if self.history else 0.0
        return "".join(f"{each.at_s - start_s:11.6f} {each.who} {each.kind} {each.what}\n" for each in self.history)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.violations


@dataclass(frozen=True)
class Simulation:
    """An app, a workload and what must hold, to be run from any number of seeds.

    Args:
        app: The app, unchanged.
        publish: Makes the events of one run from the randomness it is given.
        resources: Instead of the app's own; an instance is copied for each run and shared by its processes.
        pair: `outbox` or `changelog`, see `PAIRS`.
        members: Processes a service.
        partitions: Of each topic.
        checkers: What must hold at the end beside choreo's own promises; each returns what is wrong.
        upgrade: The app of the next version. A `deploy` brings it, the next one takes it back; it is everywhere once
            nothing goes wrong any more. By default the same again.
        metadata: SQLAlchemy's; its tables are in the database of every service.
        hasten: Delays of process managers and sagas are so many times shorter: a world at rest has no timers left.
        replays: Two operators replay all dead letters, again and again, and are interrupted.
    """

    app: App
    publish: Workload
    resources: Mapping[Any, Any] | None = None
    pair: str = "outbox"
    members: int = 2
    partitions: int = 2
    faults: Faults = field(default_factory=Faults)
    checkers: Sequence[Checker] = ()
    upgrade: App | None = None
    metadata: Any = None
    hasten: float = 1.0
    replays: bool = False

    def run(self, seed: int, *, allowed: Iterable[str] | None = None) -> Outcome:
        """Run one seed; with `allowed` only these faults of it.

        Raises:
            Unsimulated: A handler reached for the real world.
        """
        loop = SimulationLoop(START_S)
        dice = Dice(seed, self.faults, allowed=None if allowed is None else frozenset(allowed))
        cooperative = dice.number("protocol") < 0.5
        world = World(self.app, loop, dice, self.partitions, cooperative, self.upgrade or self.app)
        world.replays = self.replays
        world.resources = {type_: _fresh(each, world) for type_, each in (self.resources or {}).items()}
        for process in world.processes:
            process.hasten(self.hasten)
        with deterministic(world, seed):
            try:
                problems = loop.run_until_complete(self._run(world, random.Random(f"publish {seed}")))
            except Stalled as error:
                problems = [f"liveness: {error}"]
            finally:
                world.close()
                for process in world.processes:
                    process.hasten(1.0)
        if isinstance(world.failure, Unsimulated):
            raise world.failure
        if world.failure is not None:
            problems.append(f"bug: {type(world.failure).__name__}: {world.failure}")
        return Outcome(
            seed,
            tuple(problems),
            tuple(dice.fired),
            tuple(world.history),
            loop.now_s - START_S,
            world.log.appended,
            dice.counts,
            world.transitions,
        )

    async def _run(self, world: World, chance: random.Random) -> list[str]:
        world.context = contextvars.copy_context()
        world.create_topics()
        pair = await PAIRS[self.pair](world)
        if self.metadata is not None:
            from choreo.testing.simulation.sessions import create_tables

            for database in world.databases.values():
                create_tables(self.metadata, database)
        if world.processes:
            for database in world.databases.values():
                watch(database)
        world.cluster.check_offset = OffsetCheck(world)
        for service in self.app.services:
            for number in range(1, self.members + 1):
                name = f"{service}-{number}"
                world.members[name] = Member(world, self.app, name, service, pair)
                world.members[name].start()
        background = [asyncio.create_task(world.cluster.coordinate())]
        nemesis = Nemesis(world)
        faulting = asyncio.create_task(nemesis.run())
        publishing = asyncio.create_task(self._publish(world, list(self.publish(chance)), chance))
        parks = any(service.parks for service in self.app.services.values())
        operators = [
            SimulatedOperator(world, f"operator-{number}", pair) for number in (1, 2) if self.replays or parks
        ]
        replaying = [asyncio.create_task(operator.run()) for operator in operators]
        await asyncio.sleep(FAULTS_S)
        for task in (faulting, *replaying):
            task.cancel()
        world.dice.enabled = False
        nemesis.heal()
        await publishing
        problems = await self._settle(world)
        for operator in operators[:1] if self.replays else ():
            await operator.replay()
            problems += await self._settle(world)
        for operator in operators[:1] * ROUNDS:
            if not world.parked():
                break
            await operator.release()
            problems += await self._settle(world)
        world.over = True
        nemesis.stop()
        for task in background:
            task.cancel()
        for checker in (*CHECKERS, *self.checkers):
            problems += [f"{checker.__name__}: {each}" for each in checker(world) or ()]
        return problems

    async def _publish(self, world: World, events: Sequence[Event], chance: random.Random) -> None:
        """As an application does it: the same id again until it is acknowledged."""
        client = Process(world, "publisher", "publisher")
        for number, event in enumerate(events):
            await asyncio.sleep(chance.uniform(0, 2 * PUBLISH_S / len(events)))
            id_ = f"published-{number}"
            envelope = Envelope(
                id_,
                "/simulation",
                event.event_type,
                version=event.event_version,
                time=cloudevents.rfc3339(world.loop.now_s),
                correlationid=id_,
            )
            topic = self.app.topic(event.event_topic)
            record = wire_record(topic, envelope, event.record_key(), wire_value(topic, envelope, event.payload()))
            world.published[id_] = event
            world.note(client, "publishes", f"{event.event_type} {id_}")
            while True:
                try:
                    send = partial(world.cluster.append, client, [record])
                    await client.call("publish", send, to="broker", writes=True, mortal=False)
                    break
                except ChoreoError:
                    continue
            if world.dice.fault("publisher/again", ("duplicate",)):
                world.note(client, "duplicate", id_)
                world.cluster.append(client, [record])

    async def _settle(self, world: World) -> list[str]:
        """Wait until all that was published has been dealt with; it must be, once nothing goes wrong any more."""
        until_s = world.loop.now_s + SETTLE_S
        while world.loop.now_s < until_s:
            await asyncio.sleep(1.0)
            if world.failure is not None:
                return []
            if world.settled():
                return []
        stuck = [*(f"{count} records unread by {group}" for group, count in world.cluster.unread().items())]
        return [f"liveness: not at rest {SETTLE_S:g} s after the last fault: {'; '.join(stuck) or 'work in flight'}"]


def _fresh(resource: Any, world: World) -> Any:
    """An instance of its own for each run: an `async` generator function is opened by each process."""
    if callable(resource) and not isinstance(resource, type):
        return resource
    return copy.deepcopy(resource)
