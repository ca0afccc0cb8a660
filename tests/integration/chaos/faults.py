"""A seeded schedule of faults on everything the services run on, one every 5 to 10 s, each named and timed."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from handlers.order_fulfilment.app import app as orders_app
from tests.integration.chaos.brokers import ProxiedKafka
from tests.integration.chaos.crew import Crew
from tests.integration.chaos.network import Proxy
from tests.integration.chaos.watching import BOTH, ENTRIES, ORDERS, Felt, Watcher
from tests.integration.cluster import in_sync
from tests.postgres_server import LocalPostgres
from tests.redis_server import LocalRedis

EVERY_S = (5.0, 10.0)
COPIES_MAX = 2
IN_SYNC_S = 60.0
START_S, HEAR_S = 15.0, 3.0
"""For a process to be up, and for the other members of its group to hear of it, by their next heartbeat."""


class World(NamedTuple):
    """What faults are done to."""

    crew: Crew
    kafka: ProxiedKafka
    proxies: list[Proxy]
    postgres: LocalPostgres
    redis: LocalRedis


class Chaos:
    """Deals faults from a deck of all kinds, shuffled anew whenever it is used up, so that none is left out.

    `only` these kinds, if any are named. A fault may begin while another one lasts, but for those on the same things.
    Choices follow from `seed`, and from what is still going on when one is made.
    """

    def __init__(
        self, world: World, watcher: Watcher, seed: int, tell: Callable[[str], None], *, only: Collection[str] = ()
    ) -> None:
        self._world, self._watcher, self._tell = world, watcher, tell
        self._chance = random.Random(seed)
        self._deck: list[str] = []
        self._busy: set[str] = set()
        self._only = only
        self._kinds: dict[str, tuple[str, Callable[[Felt], Awaitable[None]]]] = {
            "service killed": ("service", self._service_killed),
            "service frozen": ("service", self._service_frozen),
            "scaled up": ("service", self._scaled_up),
            "scaled down": ("service", self._scaled_down),
            "broker killed": ("broker", self._broker_killed),
            "broker frozen": ("broker", self._broker_frozen),
            "connections delayed": ("connections", self._delayed),
            "connections cut": ("connections", self._cut),
            "connections half-closed": ("connections", self._half_closed),
            "connections mute": ("connections", self._muted),
            "PostgreSQL killed": ("PostgreSQL", self._postgres_killed),
            "Redis killed": ("Redis", self._redis_killed),
        }
        assert not set(only) - set(self._kinds), f"there is {', '.join(self._kinds)}"

    async def run(self, for_s: float) -> None:
        """Do faults for so long; return when the last one is over."""
        until_s = time.monotonic() + for_s
        async with asyncio.TaskGroup() as tasks:
            await asyncio.sleep(self._chance.uniform(*EVERY_S))
            while time.monotonic() < until_s:
                if (kind := self._dealt()) is not None:
                    tasks.create_task(self._one(kind))
                await asyncio.sleep(self._chance.uniform(*EVERY_S))

    def _dealt(self) -> str | None:
        """The next kind that can be done now, or None."""
        if not self._deck:
            kinds = [*self._kinds, "service killed", "service killed"]
            self._deck = [kind for kind in kinds if not self._only or kind in self._only]
            self._chance.shuffle(self._deck)
        kind = next((each for each in self._deck if self._kinds[each][0] not in self._busy), None)
        if kind is None:
            return None
        self._deck.remove(kind)
        copies = len(self._world.crew.copies)
        if kind == "scaled down" and not copies:
            return "scaled up"
        return "scaled down" if kind == "scaled up" and copies >= COPIES_MAX else kind

    async def _one(self, kind: str) -> None:
        group, do = self._kinds[kind]
        self._busy.add(group)
        felt = Felt(kind, kind, time.monotonic())
        await do(felt)
        felt.ended_s = time.monotonic()
        self._tell(f"{felt.what}, {felt.ended_s - felt.began_s:.1f} s; {self._watcher.state()}")
        if group == "broker":
            # Two of three down at once stop everything until they are back: nothing that could be recovered from.
            await in_sync(self._world.kafka.bootstrap_servers, within_s=IN_SYNC_S)
        self._busy.discard(group)

    def _begin(self, felt: Felt, what: str, flows: Collection[str] = BOTH) -> None:
        felt.what, felt.flows = what, frozenset(flows)
        self._watcher.begin(felt)

    def _flow(self, name: str) -> list[str]:
        return [ORDERS if name.rstrip("+") in orders_app.services else ENTRIES]

    # ---- services

    async def _service_killed(self, felt: Felt) -> None:
        name = self._chance.choice(self._world.crew.names)
        self._begin(felt, f"{name} killed", self._flow(name))
        self._world.crew.kill(name)
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        self._world.crew.start(name)

    async def _service_frozen(self, felt: Felt) -> None:
        """For longer than its session: it is taken for dead, and wakes."""
        name = self._chance.choice(self._world.crew.names)
        self._begin(felt, f"{name} frozen", self._flow(name))
        self._world.crew.signal(name, signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(7.0, 9.0))
        self._world.crew.signal(name, signal.SIGCONT)

    async def _scaled_up(self, felt: Felt) -> None:
        crew = self._world.crew
        service = self._chance.choice([name for name in crew.jobs if f"{name}+" not in crew.copies])
        self._begin(felt, f"{service} scaled up to two", self._flow(service))
        before = crew.starts(f"{service}+")
        crew.start(f"{service}+")
        until_s = time.monotonic() + START_S
        while crew.starts(f"{service}+") == before and time.monotonic() < until_s:  # noqa: ASYNC110 - only its log says so
            await asyncio.sleep(0.1)
        await asyncio.sleep(HEAR_S)

    async def _scaled_down(self, felt: Felt) -> None:
        name = self._world.crew.copies[0]
        self._begin(felt, f"{name.rstrip('+')} scaled down to one", self._flow(name))
        await self._world.crew.drain(name)

    # ---- brokers

    async def _broker_killed(self, felt: Felt) -> None:
        node = self._node()
        self._begin(felt, f"broker {node} killed")
        await asyncio.to_thread(self._world.kafka.kill, node)
        await asyncio.sleep(self._chance.uniform(0.0, 3.0))
        await asyncio.to_thread(self._world.kafka.restart, node)

    async def _broker_frozen(self, felt: Felt) -> None:
        """Now shorter, now longer than what the controller takes for its death (3 s)."""
        node, for_s = self._node(), self._chance.uniform(2.0, 8.0)
        self._begin(felt, f"broker {node} frozen")
        self._world.kafka.freeze(node)
        await asyncio.sleep(for_s)
        self._world.kafka.thaw(node)

    def _node(self) -> int:
        return self._chance.randint(1, len(self._world.proxies))

    # ---- connections

    async def _delayed(self, felt: Felt) -> None:
        proxy, delay_s = self._chance.choice(self._world.proxies), self._chance.uniform(0.05, 0.5)
        self._begin(felt, f"connections to broker {self._behind(proxy)} delayed by {delay_s * 1000:.0f} ms")
        proxy.delay_s = delay_s
        await asyncio.sleep(self._chance.uniform(3.0, 6.0))
        proxy.delay_s = 0.0

    async def _cut(self, felt: Felt) -> None:
        """All brokers' connections, a few times in turn."""
        times = self._chance.randint(1, 4)
        self._begin(felt, f"all connections cut, {times} times")
        for _ in range(times):
            for proxy in self._world.proxies:
                proxy.cut()
            await asyncio.sleep(self._chance.uniform(0.1, 0.8))

    async def _half_closed(self, felt: Felt) -> None:
        proxy = self._chance.choice(self._world.proxies)
        self._begin(felt, f"connections to broker {self._behind(proxy)} half-closed")
        proxy.half_close()
        await asyncio.sleep(self._chance.uniform(1.0, 3.0))

    async def _muted(self, felt: Felt) -> None:
        """Nobody hears of the broker's answers; then connections are reset, as a firewall that has forgotten them."""
        proxy = self._chance.choice(self._world.proxies)
        self._begin(felt, f"connections to broker {self._behind(proxy)} mute")
        proxy.mute = True
        await asyncio.sleep(self._chance.uniform(3.0, 6.0))
        proxy.cut()
        proxy.mute = False

    def _behind(self, proxy: Proxy) -> int:
        return self._world.proxies.index(proxy) + 1

    # ---- stores

    async def _postgres_killed(self, felt: Felt) -> None:
        self._begin(felt, felt.kind, [ENTRIES])
        await asyncio.to_thread(self._world.postgres.kill)
        await asyncio.sleep(self._chance.uniform(0.0, 4.0))
        await asyncio.to_thread(self._world.postgres.start)

    async def _redis_killed(self, felt: Felt) -> None:
        self._begin(felt, felt.kind, [ENTRIES])
        self._world.redis.kill()
        await asyncio.sleep(self._chance.uniform(0.0, 4.0))
        await asyncio.to_thread(self._world.redis.start)
