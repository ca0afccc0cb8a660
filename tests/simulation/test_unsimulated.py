"""What a simulation cannot stand for is refused by name, with what to do instead."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from choreo import App, Event, Service
from choreo.testing.simulation import Faults, Simulation, Unsimulated


class Asked(Event, type="test.asked", version=1, topic="asked", key="who"):
    """Something is asked."""

    who: str


async def by_the_clock() -> None:
    """The real time."""
    time.time()


async def by_chance() -> None:
    """Real randomness."""
    random.choice([1, 2])


async def from_afar() -> None:
    """A real socket."""
    await asyncio.open_connection("127.0.0.1", 9)


def simulated(service: Service) -> Simulation:
    """One event on a good day."""
    return Simulation(App(service), lambda chance: [Asked(who="ann")], members=1, faults=Faults.none())


@pytest.mark.parametrize(
    ("reaches", "said"),
    [
        (by_the_clock, r"by_the_clock calls time.time\(\) .*ctx.now\(\)"),
        (by_chance, r"by_chance calls random.choice\(\) .*resource"),
        (from_afar, "a socket, .* a resource that stands for it"),
    ],
)
def test_what_is_real_is_refused(reaches: Callable[[], Awaitable[None]], said: str) -> None:
    """Although a handler's errors are tried again, and might swallow it."""
    service = Service("desk")

    @service.handler(Asked)
    async def answer(asked: Asked) -> None:
        await reaches()

    with pytest.raises(Unsimulated, match=said):
        simulated(service).run(1)


def test_a_handler_with_rows_in_postgresql_is_refused_at_the_start() -> None:
    """Its SQL cannot be run; what can is said."""
    service = Service("desk")

    @service.handler(Asked)
    async def answer(asked: Asked, db: psycopg.AsyncConnection) -> None:
        await db.execute("SELECT 1")

    with pytest.raises(Unsimulated, match=r"psycopg.*PostgreSQL is not simulated.*sqlite3.Connection"):
        simulated(service).run(1)
