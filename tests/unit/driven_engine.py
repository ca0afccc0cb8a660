"""An engine driven by hand: what its tests put in, and what they look for in what it says."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from choreo.core import messages as m
from choreo.core.engine import Engine
from choreo.core.retry import RetryPolicy
from choreo.core.units import Delivery, Unit
from choreo.ports import Claimed as Verdict
from choreo.record import TopicPartition

P = TopicPartition("orders", 0)
Q = TopicPartition("orders", 1)
FRESH = Verdict("fresh")
_Effect = TypeVar("_Effect", bound=m.Effect)


def make(
    offset: int,
    lane: str = "a",
    *,
    partition: TopicPartition = P,
    key: str | None = None,
    attempts_max: int = 5,
    derived: bool = False,
    transacts: bool = False,
    flow: str = "flow",
) -> Unit:
    """A unit; without `key` its idempotency key is its own."""
    return Unit(
        partition,
        offset,
        lane,
        "reserve",
        (key or f"{partition}@{offset}").encode(),
        b"12345678",
        correlation_id=flow,
        derived=derived,
        transacts=transacts,
        retry=RetryPolicy(attempts_max, base_s=1.0, cap_s=1.0),
    )


def of(kind: type[_Effect], effects: Iterable[m.Effect]) -> list[_Effect]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def invoked(effects: Iterable[m.Effect]) -> list[int]:
    """Offsets of the units to be invoked."""
    return [effect.unit.offset for effect in of(m.Invoke, effects)]


def transacts(effects: Iterable[m.Effect]) -> list[list[Unit]]:
    """The units of each transaction that is to begin."""
    return [list(each.units) for each in of(m.Transact, effects)]


def ended(*outcomes: m.Outcome) -> m.Transacted:
    """A transaction came to its end."""
    return m.Transacted(outcomes)


class Drive:
    """An engine with partitions P and Q assigned, and its clock."""

    def __init__(self, limits: m.Limits | None = None) -> None:
        self.engine = Engine(limits)
        self.now_s = 0.0
        for partition in (P, Q):
            self.step(m.Assigned(partition, 0))

    def step(self, message: m.Input, *, after_s: float = 0.0) -> list[m.Effect]:
        """One input, `after_s` later."""
        self.now_s += after_s
        return self.engine.step(message, self.now_s)

    def fetch(self, *units: Unit, payload_bytes: int = 10) -> list[m.Effect]:
        """Records of one partition, one for each offset."""
        by_offset: dict[int, list[Unit]] = {}
        for unit in units:
            by_offset.setdefault(unit.offset, []).append(unit)
        deliveries = [Delivery(offset, payload_bytes, 0, each) for offset, each in by_offset.items()]
        return self.step(m.Fetched(units[0].partition, deliveries, int(self.now_s * 1000)))

    def take(self, *units: Unit, payload_bytes: int = 10) -> list[m.Effect]:
        """Fetched, and every claim of it answered as fresh; the effects of all that."""
        effects = self.fetch(*units, payload_bytes=payload_bytes)
        for claim in of(m.Claim, effects):
            effects = effects + self.claimed(claim.units, FRESH)
        return effects

    def claimed(self, units: Sequence[Unit], *verdicts: Verdict) -> list[m.Effect]:
        """The store's answer; one verdict stands for all."""
        every = verdicts if len(verdicts) == len(units) else verdicts * len(units)
        return self.step(m.Claimed(units, every))

    def back(self, *units: Unit) -> list[m.Effect]:
        """Handlers return, one after the other; the effects of all."""
        return [effect for unit in units for effect in self.step(m.Returned(unit, f"result {unit.offset}"))]

    def fail(self, unit: Unit, delay_s: float | None = None) -> list[m.Effect]:
        """A handler raises something that can be tried again."""
        return self.step(m.Raised(unit, "retry", "boom", delay_s))

    def tick(self, after_s: float) -> list[m.Effect]:
        """Time passes."""
        return self.step(m.Tick(), after_s=after_s)
