"""What becomes of a unit after an attempt that failed: tried again, given up, or handed back."""

from collections.abc import Callable, Sequence

from choreo.core import messages as m
from choreo.core.alarms import Alarms
from choreo.core.breaker import Circuits
from choreo.core.moment import Moment
from choreo.core.retry import delay_s
from choreo.core.turns import Turns, counted
from choreo.core.units import RUNNING, Signal, Unit


class Attempts:
    """Attempts of one engine, and the breakers of their handlers; `drop` gives up what is handed back."""

    def __init__(
        self,
        turns: Turns,
        circuits: Circuits,
        alarms: Alarms,
        moment: Moment,
        drop: Callable[[Sequence[Unit]], None],
    ) -> None:
        self._turns = turns
        self._circuits = circuits
        self._alarms = alarms
        self._moment = moment
        self._drop = drop

    def raised(self, message: m.Raised) -> None:
        """A handler has raised."""
        unit = message.unit
        if unit.state is not RUNNING:
            return
        self.ended(unit, trips=message.trips)
        policy = message.retry or unit.retry
        tried, hopeless = unit.attempts - unit.attempts_before, message.disposition == "dead_letter"
        if message.disposition == "wait":
            unit.attempts -= 1  # nothing was tried, and another build may take over meanwhile
        elif hopeless or tried >= policy.attempts_max:
            self._give_up(unit, message.reason, hopeless=hopeless)
            return
        self._turns.end(unit)
        unit.advance(Signal.RAISED)
        if unit.lane.partition.draining:
            self._drop([unit])
            return
        wait_s = message.delay_s
        if wait_s is None:
            wait_s = delay_s(policy, attempt=tried, seed=unit.digest)
        self._alarms.set(unit, self._moment.now_s + wait_s)

    def _give_up(self, unit: Unit, reason: str, *, hopeless: bool) -> None:
        """It keeps its turn for where it goes; to be parked it has another, when all before it is durable."""
        if unit.queue is not None:
            self._turns.end(unit)
            unit.poison = reason
            self._ready_again(unit)
            return
        if not counted(unit):
            self._turns.running += 1
            unit.poison = reason
        given_up = m.Delay if unit.delayable and not hopeless else m.DeadLetter
        self._moment.out.append(given_up(unit, reason))

    def undone(self, unit: Unit) -> None:
        """Its transaction came to nothing, or was not begun: as if it had not had its turn, which is over."""
        unit.attempts -= 1
        self._ready_again(unit)

    def _ready_again(self, unit: Unit) -> None:
        unit.advance(Signal.SKIPPED)
        if unit.lane.partition.draining:
            self._drop([unit])
        else:
            self._turns.enqueue(unit.lane)

    def ended(self, unit: Unit, *, trips: bool | None) -> None:
        """An attempt is over: its handler's breaker may open or close by it."""
        if unit.breaker is None:
            return
        circuit, lanes = self._circuits.ended(unit, self._moment.now_s, trips=trips)
        if circuit is not None:
            self._moment.out.append(m.Broken(unit.handler, None if circuit.closed else circuit.breaker.pause_s))
        self._turns.let_go(lanes)
