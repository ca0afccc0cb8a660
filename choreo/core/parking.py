"""Parked keys in the engine: which units go to the queue of their key, and which of their lane wait for that.

A claim says whether something is in the queue. That is true of what is claimed after an event was parked; what its
lane had taken in before is sent after it when the commit has landed, and is held until then. To park an event too
many is no harm: it comes back in its turn.
"""

from choreo.core import messages as m
from choreo.core.units import State, Unit

WAITS = "waits"
"""Poison of a unit whose key is parked: it is not invoked, and waits in the queue."""
NEVER = "id_collision"
"""A reason to be given up for which no event is parked: it is no event in its own right, and nothing waits for it."""


def aside(unit: Unit, reason: str) -> m.Park | m.DeadLetter:
    """Where a unit goes that is not invoked, or not any more."""
    if unit.queue is None or reason == NEVER:
        return m.DeadLetter(unit, reason)
    unit.lane.parking = unit
    return m.Park(unit, "" if reason == WAITS else reason)


def held(unit: Unit) -> bool:
    """Whether the head of a lane has to wait for a commit, since its place among others of its key depends on it.

    An event is parked when all before it is on the log: from then on others may handle it.
    """
    lane = unit.lane
    if unit.queue is None:
        return False
    if lane.parking is not None and lane.parking.handler == unit.handler:
        return True
    return unit.poison is not None and lane.unflushed > 0


def landed(unit: Unit) -> None:
    """The unit is durable: if it was parked, so are those behind it, whatever their claims said."""
    lane = unit.lane
    if lane.parking is not unit:
        return
    lane.parking = None
    for each in lane.units:
        if each.handler == unit.handler and follows(each) and each.poison is None and each.state in _WAITING:
            each.poison = WAITS


def follows(unit: Unit) -> bool:
    """Whether it is to be parked where its key is: it is of a queue, and was not sent by one."""
    return unit.queue is not None and not unit.redriven


_WAITING = frozenset(State) - {State.RUNNING, State.FINISHED, State.DROPPED}
