"""Two operators who replay dead letters and release parked keys in a simulated world, while everything goes wrong."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from choreo.errors import ChoreoError, TransportError
from choreo.parked import ParkedStore
from choreo.record import ProducerRecord
from choreo.runtime.redriving import Operator, Redrive, partitions_of_replays, read, send
from choreo.runtime.releasing import What, orders_for, replay_of
from choreo.testing.simulation.process import Process
from choreo.testing.simulation.transport import SimulatedTransport

if TYPE_CHECKING:
    from choreo.testing.simulation.pairs import Pair
    from choreo.testing.simulation.world import World

EVERY_S, THINKS_S = (1.0, 6.0), (0.0, 2.0)
RATE = 50.0
DROPPED_AFTER = 8
ROUNDS = 200
"""Of releases at most, once nothing goes wrong any more, until no key is parked."""


class _Desk(SimulatedTransport):
    """As a command has it: what it sends may be lost, or late, or its answer; nobody starts it again."""

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Append, or not know."""
        append = partial(self._cluster.append, self._process, records)
        await self._process.call("replay", append, to="broker", writes=True)


class SimulatedOperator:
    """Gives `choreo dlq replay` and `release` for every service, now and then. An error ends a command in its midst.

    What came back from `DROPPED_AFTER` releases is dropped.
    """

    def __init__(self, world: "World", name: str, pair: "Pair") -> None:
        self._world = world
        self._process = Process(world, name, "operator", mortal=False)
        self._pair = pair

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._world.dice.between(f"{self._process.name}/every", *EVERY_S))
            if self._world.replays:
                await self.replay()
            await self.release()

    async def release(self) -> None:
        """Look, think, and release the head of every queue."""
        world, name = self._world, self._process.name
        for service in world.app.services.values():
            if not service.parks:
                continue
            _, store = self._pair(self._process, service.name)
            queues: ParkedStore = store  # type: ignore[assignment]
            with suppress(ChoreoError):
                await store.open()
                # One without a reason is on its way already; that it comes is not for an operator to see to.
                heads = [head for head in await queues.parked(service.group) if head.reason]
                await asyncio.sleep(world.dice.between(f"{name}/thinks", *THINKS_S))
                for what, wanted in (("head", False), ("drop", True)):
                    some = [head for head in heads if (replay_of(head).tries >= DROPPED_AFTER) == wanted]
                    topic, who = world.app.topic(service.replay_topic), Operator(name, run=name)
                    orders = orders_for(service, topic, some, cast("What", what), who, world.loop.now_s)
                    if orders.records:
                        world.note(self._process, "releases" if what == "head" else "drops", f"{len(some)} keys")
                        await send(_Desk(self._process), orders.records, self._process, rate=RATE)

    async def replay(self) -> None:
        """Look, think, and replay all that is open."""
        world, desk = self._world, _Desk(self._process)
        app = world.app
        services = list(app.services.values())
        reading = await read(desk, services, app.topic, since_ms=0)
        partitions = await partitions_of_replays(desk, services, app.topic)
        who = Operator(self._process.name, run=self._process.name)
        orders = Redrive(app.services, app.topic, partitions, who, world.loop.now_s).letters(
            reading, reading.letters, "if-not-done"
        )
        await asyncio.sleep(world.dice.between(f"{self._process.name}/thinks", *THINKS_S))
        if orders.records:
            world.note(self._process, "replays", f"{len(orders.records)} dead letters")
            with suppress(TransportError):
                await send(desk, orders.records, self._process, rate=RATE)
