"""Units that wait for a time: a retry in place, a key that is busy elsewhere, a record that is not due yet."""

import heapq
from collections.abc import Iterator

from choreo.core.units import State, Unit


class Alarms:
    """When each is to be woken; in the order in which they were set where that is the same."""

    def __init__(self) -> None:
        self._alarms: list[tuple[float, int, Unit]] = []
        self._number = 0

    def __len__(self) -> int:
        """How many are set; some may be of units that wait no more."""
        return len(self._alarms)

    @property
    def next_s(self) -> float | None:
        """When the first rings."""
        return self._alarms[0][0] if self._alarms else None

    def set(self, unit: Unit, at_s: float) -> None:
        """Wake it then."""
        self._number += 1
        heapq.heappush(self._alarms, (at_s, self._number, unit))

    def ring(self, now_s: float) -> Iterator[Unit]:
        """Units whose time has come; those set meanwhile, too."""
        while self._alarms and self._alarms[0][0] <= now_s:
            yield heapq.heappop(self._alarms)[2]

    def forget_dropped(self) -> None:
        """What was given up is not woken."""
        if any(alarm[2].state is State.DROPPED for alarm in self._alarms):
            self._alarms = [alarm for alarm in self._alarms if alarm[2].state is not State.DROPPED]
            heapq.heapify(self._alarms)
