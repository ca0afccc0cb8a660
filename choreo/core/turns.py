"""Whose turn it is: lanes that can go on, suspects that run alone, and the bound on concurrency."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from choreo.core.breaker import Circuits
from choreo.core.messages import Limits
from choreo.core.parking import held
from choreo.core.partition import Lane
from choreo.core.units import READY, TURN, Signal, State, Unit, advance


class Turns:
    """Queues of lanes whose head can go on.

    Attributes:
        running: Handlers at work outside of a transaction, and dead letters in the making.
        transactions: Transactions with handlers inside that are under way.
        solo: The suspect that has the process to itself, from its claim to its result.
    """

    def __init__(self, limits: Limits, circuits: Circuits) -> None:
        self.running = 0
        self.transactions = 0
        self.solo: Unit | None = None
        self._limits = limits
        self._circuits = circuits
        self._ready: deque[Lane] = deque()
        self._transactable: deque[Lane] = deque()
        self._suspects: deque[Lane] = deque()

    @property
    def waiting(self) -> bool:
        """Whether a lane waits for a place of `concurrency`."""
        return bool(self._ready)

    @property
    def ready(self) -> int:
        """Lanes that wait for a place of `concurrency`, or for a transaction."""
        return len(self._ready) + len(self._transactable)

    @property
    def transactable(self) -> bool:
        """Whether a lane waits for a transaction to be invoked in."""
        return bool(self._transactable)

    def enqueue(self, lane: Lane) -> None:
        """Queue a lane whose head can go on; forget one that is empty."""
        if lane.queued or lane.partition.draining:
            return
        head = lane.head()
        if head is None:
            if not lane.unflushed:
                lane.partition.lanes.pop(lane.key, None)
            return
        if head.queue is not None and held(head):
            return
        if head.state is READY:
            if not head.transacts or counted(head):
                queue = self._ready
            elif not lane.unflushed:  # its emits follow those of its predecessors
                queue = self._transactable
            else:
                return
        elif head.state is State.SUSPECT:
            queue = self._suspects
        else:
            return
        lane.queued = True
        queue.append(lane)

    def let_go(self, lanes: Iterable[Lane]) -> None:
        """Queue lanes that a breaker has held."""
        for lane in lanes:
            lane.queued = False
            self.enqueue(lane)

    def suspect(self) -> Unit | None:
        """The next suspect to be claimed alone, once nothing else is at work."""
        while self._suspects and self.solo is None and not self.running and not self.transactions:
            head = self._pop(self._suspects, State.SUSPECT)
            if head is not None:
                self.solo, head.solo = head, True
                head.advance(Signal.CLAIM)
                return head
        return None

    def take(self, now_s: float) -> Sequence[Unit]:
        """Units to begin now: the solo one by itself, else as many as `concurrency` allows."""
        taken: list[Unit] = []
        ready, solo = self._ready, self.solo
        if solo is not None:
            # Its lane may not be queued yet: what was before it is still to be flushed.
            if solo.state is READY and counted(solo) and solo.lane.queued:
                solo.lane.queued = False
                ready.remove(solo.lane)
                taken.append(solo)
        elif not self._suspects:
            room = self._limits.concurrency - self.running
            while ready and len(taken) < room:
                head = self._pop(ready, READY)
                if head is not None and (head.breaker is None or self._circuits.admits(head, now_s)):
                    taken.append(head)
        for unit in taken:
            if unit.poison is None:
                unit.attempts += 1
        self.running += len(taken)
        advance(taken, TURN)
        return taken

    def take_transactable(self, now_s: float) -> Iterator[list[Unit]]:
        """Units to invoke inside a transaction each, for as many as may begin; lanes are dealt out evenly."""
        solo = self.solo
        if solo is not None:
            at_work = self.running or self.transactions
            if solo.state is READY and not counted(solo) and solo.lane.queued and not at_work:
                solo.lane.queued = False
                self._transactable.remove(solo.lane)
                self.transactions += 1
                yield [_transact(solo)]
            return
        while self._transactable and not self._suspects and self.transactions < self._limits.transactions_max:
            free = self._limits.transactions_max - self.transactions
            taken = self._take_lanes(-(-len(self._transactable) // free), now_s)
            if taken:
                self.transactions += 1
                yield taken

    def _take_lanes(self, lanes: int, now_s: float) -> list[Unit]:
        """Units of some lanes: of each as many as stand in a row."""
        taken: list[Unit] = []
        room = self._limits.transact_units
        while self._transactable and lanes > 0 and len(taken) < room:
            lane = self._transactable.popleft()
            lanes -= 1
            lane.queued = False
            for unit in () if lane.partition.draining else tuple(lane.units):
                if unit.state is not READY or counted(unit) or len(taken) >= room:
                    break
                if not self._circuits.admits(unit, now_s):
                    break
                taken.append(_transact(unit))
        return taken

    def end(self, unit: Unit, *, began: bool = True) -> None:
        """The unit's turn is over, whatever came of it."""
        if began and (not unit.transacts or unit.poison is not None):  # `counted`, which is a call an event
            self.running -= 1
        if unit is self.solo:
            self.solo = None

    def _pop(self, queue: deque[Lane], state: State) -> Unit | None:
        lane = queue.popleft()
        lane.queued = False
        head = lane.head()
        return head if head is not None and head.state is state and not lane.partition.draining else None


def counted(unit: Unit) -> bool:
    """Whether the unit occupies one of the places of `concurrency`; else it is invoked inside a transaction."""
    return not unit.transacts or unit.poison is not None


def _transact(unit: Unit) -> Unit:
    unit.advance(TURN)
    unit.attempts += 1
    return unit
