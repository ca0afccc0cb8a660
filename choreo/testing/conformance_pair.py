"""What every pair of broker and store must do, whenever the process dies: as a test that its author inherits."""

from pathlib import Path
from typing import ClassVar

from choreo.testing.crash_points import both_moments
from choreo.testing.crashing import Pair, crash


class PairConformance:
    """Inherit it in a class `Test...` and write `pair`.

    Attributes:
        crashes: Times a process is killed at each point.
        seed: Of when in a life it is killed.
    """

    crashes: ClassVar[int] = 2
    seed: ClassVar[int] = 1

    def pair(self) -> Pair:
        """The pair, with its promise and its crash points."""
        raise NotImplementedError

    def test_no_crash_breaks_a_promise(self, tmp_path: Path) -> None:
        """Killed before and after each durable sub-step, again and again; then what is there is counted."""
        pair = self.pair()
        lives = crash(pair, list(both_moments(pair.points)), tmp_path, crashes=self.crashes, seed=self.seed)
        outcomes = list(lives)[-1]
        broken = [each for outcome in outcomes for each in outcome.broken(pair)]
        assert not broken, "\n".join(broken)
