"""Customers who press the button again and again: each time an event of its own, of which the flow must serve one."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import UUID

from choreo.publisher import Publisher
from handlers.order_fulfilment.events import OrderPlaced
from tests.integration.chaos.load import shop_orders
from tests.integration.restart_outcome import press

PRESSES = 4
PAUSE_S = (0.2, 1.0)
RUSH, RUSH_S_MAX = 50, 0.3
"""Customers that come all at once before a process is told to stop, and at most how long before."""
AGAIN_SHARE = 0.1
"""Of what is published, once more under its id."""


class Customers:
    """Come at a steady rate, and in a rush.

    Attributes:
        presses: By order, how many of its events the brokers have.
        calm_ms: When nothing else happened, since the epoch.
    """

    def __init__(self, publisher: Publisher, *, per_s: float) -> None:
        self.presses: dict[str, int] = {}
        self.calm_ms = (0, 0)
        self._publisher, self._per_s = publisher, per_s
        self._orders = each_once()
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def coming(self, *, calm_s: float) -> AsyncIterator[None]:
        """All the while; for the first seconds nothing else happens. In the end all have pressed their times."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._steadily(stop))
            try:
                await asyncio.sleep(1.0)  # first connections
                began_ms = now_ms()
                await asyncio.sleep(calm_s)
                self.calm_ms = (began_ms, now_ms())
                yield
            finally:
                stop.set()

    async def _steadily(self, stop: asyncio.Event) -> None:
        begun_s = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, begun_s + number / self._per_s - time.monotonic()))
            if stop.is_set():
                return
            self._tasks.create_task(self._customer(next(self._orders), hurries=False))

    async def rush(self) -> None:
        """So that a process has something in hand, queues of keys among it, when it is told to stop."""
        for _ in range(RUSH):
            self._tasks.create_task(self._customer(next(self._orders), hurries=True))
        await asyncio.sleep(random.uniform(0.0, RUSH_S_MAX))

    async def _customer(self, order: OrderPlaced, *, hurries: bool) -> None:
        key = str(order.order_id)
        self.presses[key] = 0
        for number in range(PRESSES):
            for _ in range(2 if random.random() < AGAIN_SHARE else 1):
                await self._publisher.publish(order, id=press(key, number))
            self.presses[key] += 1
            await asyncio.sleep(0.0 if hurries else random.uniform(*PAUSE_S))


def each_once() -> Iterator[OrderPlaced]:
    """The shop's orders, of which the file has some twice."""
    known: set[UUID] = set()
    for _, order in shop_orders():
        if order.order_id not in known:
            known.add(order.order_id)
            yield order


def now_ms() -> int:
    """Since the epoch."""
    return int(time.time() * 1000)
