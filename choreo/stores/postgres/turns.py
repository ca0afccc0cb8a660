"""Whose turn it is among the handlers inside a commit. Does no I/O."""

from collections.abc import Callable, Mapping, Sequence, Set

from choreo.errors import LeaseLost
from choreo.ports import Finished, Transacted
from choreo.record import TopicPartition

INVOKING_S_MAX = 0.05
"""Handlers are invoked in one transaction for so long at most; the rest waits for another, perhaps elsewhere."""

Result = Finished | BaseException | None
"""What became of a unit; None where it was not invoked."""
Clock = Callable[[], float]


class Turns:
    """Whose turn it is to be invoked, and what became of each.

    Args:
        units: In order; the first says of which kind those are that this transaction invokes.
        lost: Partitions that are not ours any more.
        claims: Of the claims that are ours, by digest, whether the unit is done.
        invocations_max: As many are invoked at most.
        clock: In seconds.

    Attributes:
        results: What to tell of each unit.
        invoked: What was finished, by digest.
        places: Where those are among the units.
    """

    def __init__(
        self,
        units: Sequence[Transacted],
        lost: Set[TopicPartition],
        claims: Mapping[bytes, bool],
        invocations_max: int | None,
        clock: Clock,
    ) -> None:
        self.results: list[Result] = [None] * len(units)
        self.invoked: dict[bytes, Finished] = {}
        self.places: list[int] = []
        self._done: dict[int, Result] = {}
        self._lost = lost
        self._claims = claims
        self._kind = units[0].wants
        self._blocked: set[object] = set()
        self._left = invocations_max
        self._clock = clock
        self._until_s: float | None = None

    def invokes(self, at: int, unit: Transacted) -> bool:
        """Whether to invoke it now; if not, its result is noted and its lane waits, unless it was done before."""
        if unit.partition in self._lost or unit.lane in self._blocked or unit.wants != self._kind:
            self._blocked.add(unit.lane)
            return False
        done = self._claims.get(unit.digest)
        if done is None:
            self.results[at] = LeaseLost("its claim was taken over")
            self._blocked.add(unit.lane)
            return False
        if done or unit.digest in self.invoked:  # by this very request, which is repeated
            self.results[at] = Finished(unit.partition, 0, unit.digest, (), "duplicate")
            if done:
                self._done[at] = self.results[at]
            return False
        if self._left == 0 or (self._until_s is not None and self._clock() > self._until_s):
            self._blocked.add(unit.lane)
            return False
        if self._until_s is None:
            self._until_s = self._clock() + INVOKING_S_MAX
        return True

    def note(self, at: int, unit: Transacted, outcome: Finished | BaseException) -> None:
        """What its invocation came to."""
        self.results[at] = outcome
        if self._left is not None:
            self._left -= 1
        if isinstance(outcome, Finished):
            self.invoked[unit.digest] = outcome
            self.places.append(at)
        else:
            self._blocked.add(unit.lane)

    def undone(self, blamed: Mapping[int, BaseException]) -> list[Result]:
        """What to tell when all is rolled back: whose fault it was, and what was done before."""
        told = {**self._done, **blamed}
        return [told.get(at) for at in range(len(self.results))]
