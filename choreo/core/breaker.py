"""Circuit breakers: a handler whose dependency is down is left alone for a while instead of using attempts up.

The state is of one process: each finds out for itself, and nobody has to be asked before a handler is invoked.

Source: Nygard, "Release It!", 2007, ch. 5 (Circuit Breaker).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from choreo.core.partition import Lane
from choreo.core.units import Unit
from choreo.errors import ChoreoError, DeclarationError

PAUSE_S_MAX = 3_600.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a handler is left alone, and for how long. Its lanes wait, as their partitions do once enough waits.

    Attributes:
        failures: Failed attempts in a row, of whichever events, that open it; >= 1.
        pause_s: Seconds until one attempt is made, to see; in (0, 3600].
        on: Exceptions that count; any other, as well as success, ends the row. Those of choreo, such as `RetryLater`,
            count where they are named.

    Raises:
        DeclarationError: The message says what to write instead.
    """

    failures: int = 5
    pause_s: float = 30.0
    on: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        given: Any = self.on
        on = given if isinstance(given, tuple) else (given,)
        if self.failures < 1 or not 0 < self.pause_s <= PAUSE_S_MAX:
            raise DeclarationError(f"{self}: failures must be 1 or more, and 0 < pause_s <= {PAUSE_S_MAX:g}")
        if not on or not all(isinstance(each, type) and issubclass(each, Exception) for each in on):
            raise DeclarationError(f"{self}: on= names Exception classes, such as (ConnectionError, TimeoutError)")
        object.__setattr__(self, "on", on)

    def counts(self, error: type[BaseException]) -> bool:
        """Whether an exception of this type counts as a failure of what the handler depends on."""
        own = issubclass(error, ChoreoError)
        return any(issubclass(error, each) and (not own or issubclass(each, ChoreoError)) for each in self.on)


class Position(StrEnum):
    """Where a circuit stands."""

    CLOSED = "closed"  # attempts are made
    OPEN = "open"  # none is, until a time
    PROBING = "probing"  # one is, to see


class Circuit:
    """The breaker of one handler in one process.

    Attributes:
        until_s: While it is open: when the next attempt may be made.
        opened: How often it has opened, a probe that failed included.
    """

    __slots__ = ("_failures", "breaker", "opened", "position", "until_s")

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.position = Position.CLOSED
        self.until_s = 0.0
        self.opened = 0
        self._failures = 0

    @property
    def closed(self) -> bool:
        """Whether attempts are made."""
        return self.position is Position.CLOSED

    def begin(self, now_s: float) -> bool:
        """Whether an attempt may begin now; the first one after the pause is the probe."""
        if self.position is Position.OPEN and now_s >= self.until_s:
            self.position = Position.PROBING
            return True
        return self.closed

    def failed(self, now_s: float, *, probe: bool) -> None:
        """An attempt failed in a way that counts. Those that began before it opened tell nothing new."""
        if not probe and self.position is not Position.CLOSED:
            return
        self._failures += 1
        if probe or self._failures >= self.breaker.failures:
            self.position, self.until_s = Position.OPEN, now_s + self.breaker.pause_s
            self.opened += 1

    def succeeded(self, *, probe: bool) -> None:
        """An attempt came to an end, whatever it was."""
        if probe or self.position is Position.CLOSED:
            self.position, self._failures = Position.CLOSED, 0

    def unknown(self, now_s: float, *, probe: bool) -> None:
        """An attempt was given up before its end: if it was the probe, the next one is."""
        if probe:
            self.position, self.until_s = Position.OPEN, now_s


class Circuits:
    """The circuits of one engine, the lanes they hold, and the attempts under way."""

    def __init__(self) -> None:
        self._circuits: dict[str, Circuit] = {}
        self._held: dict[str, list[Lane]] = {}
        self._under_way: dict[Unit, bool] = {}  # and whether it is the probe

    def admits(self, unit: Unit, now_s: float) -> bool:
        """Whether the unit's handler may be invoked now; if not, and it is its lane's turn, the lane is held."""
        if unit.breaker is None or unit.poison is not None:
            return True
        circuit = self._circuits.get(unit.handler)
        if circuit is None:
            circuit = self._circuits[unit.handler] = Circuit(unit.breaker)
        if circuit.begin(now_s):
            self._under_way[unit] = circuit.position is Position.PROBING
            return True
        lane: Lane = unit.lane
        if lane.head() is unit:
            lane.queued = True
            self._held.setdefault(unit.handler, []).append(lane)
        return False

    def ended(self, unit: Unit, now_s: float, *, trips: bool | None) -> tuple[Circuit | None, list[Lane]]:
        """An attempt is over: with a failure that counts, otherwise, or (None) nobody knows.

        Returns the circuit if it has opened or closed by it, and lanes that may go on.
        """
        probe = self._under_way.pop(unit, None)
        if probe is None:
            return None, []
        circuit = self._circuits[unit.handler]
        before = circuit.position
        if trips is None:
            circuit.unknown(now_s, probe=probe)
        elif trips:
            circuit.failed(now_s, probe=probe)
        else:
            circuit.succeeded(probe=probe)
        if circuit.position is before:
            return None, []
        lanes = self._held.pop(unit.handler, []) if circuit.closed else []
        return (None if trips is None else circuit), lanes

    def due(self, now_s: float) -> Iterable[Lane]:
        """Lanes whose circuit may be probed now: the first of them to have its turn does."""
        for handler, circuit in self._circuits.items():
            if circuit.position is Position.OPEN and circuit.until_s <= now_s and handler in self._held:
                yield from self._held.pop(handler)

    def times(self) -> Iterator[float]:
        """When lanes that are held may go on."""
        for handler in self._held:
            if self._circuits[handler].position is Position.OPEN:
                yield self._circuits[handler].until_s
