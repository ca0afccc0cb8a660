"""A simulated consumer group: who is in it, in which generation, and which partitions are whose. No time of its own.

Rounds go as Kafka's classic protocol has them. Eager members give everything up before they join a round;
cooperative ones join with what they have, give up what they are told to, and join again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from choreo.record import TopicPartition


@dataclass(slots=True)
class Membership:
    """One member, as the coordinator sees it."""

    name: str
    heard_s: float
    owned: tuple[TopicPartition, ...] = ()
    joined: bool = False
    assigned: tuple[TopicPartition, ...] = ()


@dataclass
class SimulatedGroup:
    """A group's coordinator."""

    name: str
    partitions: Sequence[TopicPartition]
    generation: int = 0
    members: dict[str, Membership] = field(default_factory=dict)
    round_since_s: float | None = None
    """When the round that is going on began; None between rounds."""

    def join(self, member: str, owned: Iterable[TopicPartition], now_s: float) -> None:
        """Take part in the next round; begins one."""
        known = self.members.setdefault(member, Membership(member, now_s))
        known.owned, known.joined, known.heard_s = tuple(owned), True, now_s
        self._begin(now_s)

    def leave(self, member: str, now_s: float) -> None:
        """Go, and let the others share what it had."""
        if self.members.pop(member, None) is not None and self.members:
            self._begin(now_s)

    def shuffle(self, now_s: float) -> None:
        """Begin a round for no reason, as a change of metadata does."""
        if self.members:
            self._begin(now_s)

    def heartbeat(self, member: str, generation: int, now_s: float) -> str:
        """`ok`, `round` when a round is going on, `unknown` when it was put out of the group."""
        known = self.members.get(member)
        if known is None:
            return "unknown"
        known.heard_s = now_s
        if self.round_since_s is not None:
            return "ok" if known.joined else "round"
        return "ok" if generation == self.generation else "unknown"

    def check(self, now_s: float, session_s: float, round_s: float) -> list[str]:
        """Put out who was not heard of, or did not join in time, and return them; ends the round if it can."""
        late = self.round_since_s is not None and now_s - self.round_since_s > round_s
        out = [
            name
            for name, each in self.members.items()
            if now_s - each.heard_s > session_s or (late and not each.joined)
        ]
        for name in out:
            del self.members[name]
        if out and self.members:
            self._begin(now_s)
        if self.round_since_s is not None and all(each.joined for each in self.members.values()):
            self._end()
        return out

    def current(self, member: str, generation: int) -> bool:
        """Whether a commit of that member and generation is to be taken."""
        return member in self.members and generation == self.generation

    def _begin(self, now_s: float) -> None:
        if self.round_since_s is None:
            self.round_since_s = now_s

    def _end(self) -> None:
        """Deal the partitions out: each keeps what it has up to its share, nobody gets what another still has."""
        self.round_since_s = None
        self.generation += 1
        names = sorted(self.members)
        if not names:
            return
        share, more = divmod(len(self.partitions), len(names))
        room = {name: share + (index < more) for index, name in enumerate(names)}
        target: dict[str, list[TopicPartition]] = {name: [] for name in names}
        free = []
        owner = {id_: name for name in names for id_ in self.members[name].owned}
        for id_ in self.partitions:
            name = owner.get(id_)
            if name is not None and len(target[name]) < room[name]:
                target[name].append(id_)
            else:
                free.append(id_)
        for id_ in free:
            name = max(names, key=lambda each: (room[each] - len(target[each]), each))
            target[name].append(id_)
        for name in names:
            member = self.members[name]
            member.assigned = tuple(id_ for id_ in target[name] if owner.get(id_, name) == name)
            member.joined = False
