"""What a world remembers: its history and the calls of handlers; and how it looks at clocks and stores."""

import asyncio
from typing import NamedTuple, Protocol

from choreo.record import Record
from choreo.testing.simulation.loop import SimulationLoop


class Keys(Protocol):
    """What a service's store holds, as the world sees it."""

    def done(self) -> set[bytes]:
        """Keys of handled units."""

    def is_done(self, key: bytes) -> bool:
        """Whether it is one of them."""


class WorldClock:
    """The clock of the databases: that of the host they run on."""

    def __init__(self, loop: SimulationLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        """Virtual seconds since the epoch."""
        return self._loop.now_s

    def monotonic_s(self) -> float:
        """The same."""
        return self._loop.now_s

    async def sleep(self, delay_s: float) -> None:
        """Return so much later."""
        await asyncio.sleep(delay_s)


class Happening(NamedTuple):
    """One line of the history: when, to which process, what kind of thing, and the particulars."""

    at_s: float
    who: str
    kind: str
    what: str


class Invocation(NamedTuple):
    """A handler was called; `attempt` from 1."""

    at_s: float
    who: str
    handler: str
    digest: bytes
    key: bytes | None
    attempt: int
    record: Record
