"""Virtual time: it stands still until somebody moves it."""

import asyncio
import heapq

START_S = 1_767_225_600.0
"""2026-01-01T00:00:00Z: every test begins at the same moment."""


class VirtualClock:
    """A `Clock` that a test moves."""

    def __init__(self, start_s: float = START_S) -> None:
        self._now_s = start_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = 0

    def now_s(self) -> float:
        """The virtual time."""
        return self._now_s

    def monotonic_s(self) -> float:
        """The same: it is never set back."""
        return self._now_s

    async def sleep(self, delay_s: float) -> None:
        """Return when the time has been moved that far."""
        future = asyncio.get_running_loop().create_future()
        self._number += 1
        heapq.heappush(self._sleepers, (self._now_s + max(0.0, delay_s), self._number, future))
        if delay_s <= 0:
            self.move_to(self._now_s)
        await future

    def next_s(self) -> float | None:
        """When the next sleeper wakes."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def move_to(self, now_s: float) -> None:
        """Move time forward and wake who is due."""
        self._now_s = max(self._now_s, now_s)
        while (next_s := self.next_s()) is not None and next_s <= self._now_s:
            heapq.heappop(self._sleepers)[2].set_result(None)
