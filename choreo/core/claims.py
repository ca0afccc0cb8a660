"""Who may handle what came: keys in flight, what the store is asked about them, and what its answers mean.

Of the units in flight that have one key the first leads: it is claimed, and the others follow it. As it ends, so do
they; if it is given up, one of them takes its place.
"""

from collections.abc import Iterable, Sequence

from choreo.core import messages as m
from choreo.core import parking
from choreo.core.alarms import Alarms
from choreo.core.commit import Commits
from choreo.core.emission import collision_digest
from choreo.core.moment import Moment
from choreo.core.partition import settle
from choreo.core.turns import Turns
from choreo.core.units import CLAIM, CLAIMING, FRESH, Signal, State, Unit


class Claims:
    """Claims of one engine.

    Attributes:
        pending: Effects `Claim` that are not answered yet.
    """

    def __init__(self, limits: m.Limits, turns: Turns, alarms: Alarms, commits: Commits, moment: Moment) -> None:
        self.pending = 0
        self._limits = limits
        self._turns = turns
        self._alarms = alarms
        self._commits = commits
        self._moment = moment
        self._keys: dict[bytes, Unit] = {}  # who leads

    # ---- asking

    def leads(self, unit: Unit) -> bool:
        """Whether the unit is to be claimed; else it follows one in flight that has the same key."""
        leader = self._keys.setdefault(unit.digest, unit)
        if leader is unit:
            return True
        unit.follow(leader)
        return False

    def leads_still(self, unit: Unit) -> bool:
        """Whether a busy one is to be claimed again; else it waits some more.

        One that collided with the same event before it is on its way: as that ends, so does this one.
        """
        if self._keys.setdefault(unit.digest, unit) is unit:
            return True
        self._alarms.set(unit, self._moment.now_s + self._limits.busy_s)
        return False

    def claim(self, units: Sequence[Unit], *, solo: bool = False) -> None:
        """Ask the store for units, if there are any."""
        if units:
            self.pending += 1
            self._moment.out.append(m.Claim(units, solo))

    # ---- answers

    def claimed(self, message: m.Claimed) -> None:
        """The store has answered."""
        self.pending -= 1
        enqueue = self._turns.enqueue
        for unit, verdict in zip(message.units, message.verdicts, strict=True):
            if unit.state is not CLAIMING:
                continue
            said, deliveries, parked = verdict
            if said == "fresh":
                unit.deliveries = deliveries
                if deliveries == 1 and not parked:
                    unit.advance(FRESH)
                else:
                    self._again(unit, parked)
            elif said == "done" or (said == "conflict" and unit.derived):
                self._duplicate(unit)
            elif said == "busy":
                self._ask_again(unit, self._limits.busy_s)
            else:
                self._collided(unit)
            if not unit.lane.queued:
                enqueue(unit.lane)

    def failed(self, message: m.ClaimFailed) -> None:
        """The store has not."""
        self.pending -= 1
        for unit in message.units:
            if unit.state is CLAIMING:
                self._ask_again(unit, self._limits.failure_s)

    def _again(self, unit: Unit, parked: bool) -> None:
        """Delivered before, by an owner that died, or its key is parked."""
        if parked and unit.poison is None:
            unit.poison = parking.WAITS
        elif unit.deliveries > self._limits.deliveries_max:
            unit.poison = "crashed"
        suspect = unit.deliveries > self._limits.together_max and not unit.solo and unit.poison is None
        unit.advance(Signal.DIED if suspect else FRESH)

    def _collided(self, unit: Unit) -> None:
        """Its key is another event's and done: it gets one of its own, in which its dead letter commits."""
        heirs = self._heir(unit)
        unit.digest = collision_digest(unit.digest, unit.fingerprint)
        unit.poison = "id_collision"
        if self._keys.setdefault(unit.digest, unit) is unit:
            self.claim([unit], solo=unit.solo)
        else:
            self._ask_again(unit, self._limits.busy_s)
        self.claim(heirs)

    def _ask_again(self, unit: Unit, delay_s: float) -> None:
        self._turns.end(unit, began=False)
        unit.solo = False
        unit.advance(Signal.BUSY)
        self._alarms.set(unit, self._moment.now_s + delay_s)

    # ---- the end of a unit

    def finished(self, unit: Unit) -> None:
        """Durable: whatever followed it with the same key is a duplicate."""
        if unit.queue is not None:
            parking.landed(unit)
        if unit.followers:
            self._duplicate(unit)
        elif self._keys.get(unit.digest) is unit:
            del self._keys[unit.digest]
        if not unit.lane.queued:
            self._turns.enqueue(unit.lane)

    def dropped(self, units: Iterable[Unit]) -> None:
        """Given up: of those that followed one elsewhere, one takes its place."""
        self.claim([heir for unit in units for heir in self._heir(unit)])

    def _heir(self, unit: Unit) -> list[Unit]:
        """Whoever takes the place of a leader that gives its key up: one of its followers, or nobody."""
        if self._keys.get(unit.digest) is not unit:
            return []
        del self._keys[unit.digest]
        followers = [follower for follower in unit.followers if follower.state is State.FOLLOWING]
        unit.followers = ()
        if not followers:
            return []
        heir, heir.followers = followers[0], followers[1:]
        self._keys[heir.digest] = heir
        heir.advance(CLAIM)
        return [heir]

    def _duplicate(self, unit: Unit) -> None:
        """Handled before, by whomever: it and what follows it here are done, unless its data is another event's."""
        if self._keys.get(unit.digest) is unit:
            del self._keys[unit.digest]
        strangers: list[Unit] = []
        for each in (unit, *unit.followers):
            if each.state is State.FOLLOWING and each.fingerprint != unit.fingerprint and not each.derived:
                each.advance(CLAIM)
                strangers.append(each)
            elif each.state in (CLAIMING, State.FOLLOWING):
                each.advance(Signal.DONE)
                self._moment.out.append(m.Duplicate(each))
                settle((each,))
                self._commits.progressed(each.lane.partition, self._moment.now_s)
                self._turns.enqueue(each.lane)
        self._turns.end(unit, began=False)
        self.claim(strangers)
