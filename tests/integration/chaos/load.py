"""What is published all the while: orders and entries, each until the brokers have it, some of them twice."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID, uuid5

from choreo.errors import TransportError
from choreo.event import Event
from choreo.publisher import Publisher
from choreo.runtime.clock import SystemClock
from choreo.telemetry.silent import NoInstrument
from choreo.transports.kafka import KafkaTransport
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.orders import read, shipped_lines
from tests.integration.chaos.entries import EntryMade

ACCOUNTS = 8
AGAIN_SHARE = 0.05
"""Of entries, published once more under their id, behind later ones."""
ORDER_LANES = 4

Made = tuple[str, int]
"""Account and number of an entry."""


class Load:
    """Publishes, and remembers what and when.

    Attributes:
        placed, made: Orders and entries, with the monotonic time at which they were first tried.
        repeated: How many events were published once more, on purpose or since no acknowledgement came.
    """

    def __init__(self, servers: str, *, orders_per_s: float, entries_per_s: float, chance: random.Random) -> None:
        self.placed: dict[str, float] = {}
        self.made: dict[Made, float] = {}
        self.repeated = 0
        self._order_s = ORDER_LANES / orders_per_s
        self._entry_s = ACCOUNTS / entries_per_s
        self._chance = chance
        self._stop = asyncio.Event()
        self._transport = KafkaTransport(servers, send_s=10.0)
        self._publisher = Publisher(self._transport, NoInstrument(), SystemClock(), source="/shop")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish until the end of the block; then everything that was tried is on the log."""
        orders = shop_orders()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(ORDER_LANES):
                    tasks.create_task(self._place(orders))
                for number in range(ACCOUNTS):
                    tasks.create_task(self._enter(f"account-{number}"))
                try:
                    yield
                finally:
                    self._stop.set()
        finally:
            await self._transport.close()

    async def _place(self, orders: Iterator[tuple[str, OrderPlaced]]) -> None:
        for id_, order in orders:
            if await self._stopped(self._order_s):
                return
            # A customer may press the button twice: another event of the same order.
            self.repeated += str(order.order_id) in self.placed
            self.placed.setdefault(str(order.order_id), time.monotonic())
            await self._publish(order, id_)

    async def _enter(self, account: str) -> None:
        for number in itertools.count():
            if await self._stopped(self._entry_s):
                return
            self.made[account, number] = time.monotonic()
            await self._publish(EntryMade(account=account, number=number), f"{account}-{number}")
            if self._chance.random() < AGAIN_SHARE:
                earlier = max(0, number - self._chance.randint(0, 20))
                self.repeated += 1
                await self._publish(EntryMade(account=account, number=earlier), f"{account}-{earlier}")

    async def _stopped(self, pause_s: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), pause_s * self._chance.uniform(0.5, 1.5))
        return self._stop.is_set()

    async def _publish(self, event: Event, id_: str) -> None:
        while True:
            try:
                await self._publisher.publish(event, id=id_)
                return
            except TransportError:
                self.repeated += 1
                await asyncio.sleep(0.2)


def shop_orders() -> Iterator[tuple[str, OrderPlaced]]:
    """The shipped file's orders with ids for their events, and the same again and again as orders of other ids."""
    shipped = [order for _, order in read(shipped_lines()) if isinstance(order, OrderPlaced)]
    for cycle in itertools.count():
        for line, order in enumerate(shipped):
            id_ = uuid5(UUID(int=cycle), str(order.order_id)) if cycle else order.order_id
            yield f"order-{cycle}-{line}", order.model_copy(update={"order_id": id_})
