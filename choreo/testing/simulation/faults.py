"""Which faults happen in a simulation: how likely each kind is, and the dice that decide, the same for a seed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b

KINDS: Mapping[str, str] = {
    "crash": "a process is killed before a call is done, or at any time; another is started a while later",
    "crash_after": "a process is killed when a call was done, before it is answered",
    "pause": "a process stands still longer than its session, loses its partitions, and goes on: a zombie",
    "ack_lost": "a call is done, and its answer never comes",
    "write_lost": "a write is not done, and no answer comes",
    "write_late": "a write to the log is done after its sender has given up waiting",
    "hang": "a process stands still for good, and nobody starts another",
    "cut": "a process cannot reach the broker for a while",
    "store_down": "a process cannot reach its store for a while",
    "store_slow": "a call of the store takes seconds",
    "duplicate": "a record that was published is on the log twice",
    "delay": "records of a partition come late",
    "rebalance": "the partitions of a group are dealt out anew",
    "handler_fails": "a handler raises, before or after its work",
    "handler_slow": "a handler takes seconds",
    "clock_skew": "the clock of a process jumps by up to ten minutes",
    "poison": "a record that is no event appears on an input topic",
    "transaction_timeout": "the broker aborts an open transaction",
    "deploy": "the members of a service are replaced, one after the other",
}
"""Every kind, in the words of whoever reads about one."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How likely each kind is at each opportunity, 0 to 1; 0 switches it off.

    Opportunities of the first lines are single calls of a process, of the last ones virtual seconds of a process.
    """

    crash: float = 0.003
    crash_after: float = 0.003
    ack_lost: float = 0.01
    write_lost: float = 0.01
    write_late: float = 0.005
    store_slow: float = 0.01
    duplicate: float = 0.05
    delay: float = 0.02
    handler_fails: float = 0.03
    handler_slow: float = 0.02
    pause: float = 0.01
    hang: float = 0.0005
    cut: float = 0.01
    store_down: float = 0.01
    rebalance: float = 0.02
    clock_skew: float = 0.01
    poison: float = 0.02
    transaction_timeout: float = 0.01
    deploy: float = 0.005

    @classmethod
    def only(cls, *kinds: str, chance: float | None = None) -> "Faults":
        """These kinds and no other, as likely as by default or by `chance`.

        Raises:
            ValueError: There is no such kind.
        """
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"there is no fault {unknown[0]!r}; there are: {', '.join(KINDS)}")
        default = cls()
        return cls(
            **{
                kind: (getattr(default, kind) if chance is None else chance) if kind in kinds else 0.0
                for kind in KINDS
            }
        )

    @classmethod
    def none(cls) -> "Faults":
        """A good day."""
        return cls.only()


assert {each.name for each in fields(Faults)} == set(KINDS)
_ROUNDED = 1e-9


class Dice:
    """Decides by seed and place, not by turn: to leave one fault out does not change where the others fall.

    Args:
        allowed: A schedule: these faults, by id, and no others happen, whatever their chances. This is how one is
            replayed and shrunk. None: the dice decide.

    Attributes:
        visits: Every visit at which a fault could have happened, `place#number`, with the kinds, in order.
    """

    def __init__(self, seed: int, faults: Faults, *, allowed: frozenset[str] | None = None) -> None:
        self.fired: list[str] = []
        self.visits: list[tuple[str, Sequence[str]]] = []
        self.counts: Counter[str] = Counter()
        self.enabled = True
        self._seed = seed.to_bytes(8, "big", signed=True)
        self._faults = faults
        self._allowed = allowed
        self._scheduled = {visit for _, _, visit in (each.partition("@") for each in allowed or ())}
        self._asked: Counter[str] = Counter()
        self._chances: dict[tuple[str, ...], tuple[list[tuple[str, float]], float]] = {}

    def number(self, place: str) -> float:
        """A number in [0, 1) for this visit of the place."""
        self._asked[place] += 1
        return self._hashed(f"{place}#{self._asked[place]}")

    def between(self, place: str, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.number(place)

    def fault(self, place: str, kinds: Sequence[str]) -> str | None:
        """Which of the kinds, if any, happens at this visit of the place."""
        self._asked[place] += 1
        if not self.enabled:
            return None
        visit = f"{place}#{self._asked[place]}"
        self.visits.append((visit, kinds))
        kind = self._drawn(visit, kinds) if self._allowed is None else self._planned(visit, kinds, self._allowed)
        if kind is not None:
            self.fired.append(f"{kind}@{visit}")
            self.counts[kind] += 1
        return kind

    def _drawn(self, visit: str, kinds: Sequence[str]) -> str | None:
        left = self._hashed(visit)
        chances, most = self._of(tuple(kinds))
        for kind, chance in chances if left < most else ():
            if left < chance:
                return kind
            left -= chance
        return None

    def _planned(self, visit: str, kinds: Sequence[str], allowed: frozenset[str]) -> str | None:
        if visit not in self._scheduled:
            return None
        return next((kind for kind in kinds if f"{kind}@{visit}" in allowed), None)

    def _of(self, kinds: tuple[str, ...]) -> tuple[list[tuple[str, float]], float]:
        """Their chances, and what is not below all of them together."""
        found = self._chances.get(kinds)
        if found is None:
            chances = [(kind, chance) for kind in kinds if (chance := getattr(self._faults, kind))]
            self._chances[kinds] = found = chances, sum(chance for _, chance in chances) + _ROUNDED
        return found

    def _hashed(self, text: str) -> float:
        return int.from_bytes(blake2b(text.encode(), digest_size=8, key=self._seed).digest(), "big") / 2**64
