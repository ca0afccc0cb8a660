"""Random interleavings of everything the engine can be told, against a model of the store and the log.

Where the other tests of the engine write each input, here a seed does. The model says what a real store and a real
group would answer; nothing in it knows how the engine works.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import pytest

from choreo.core import messages as m
from choreo.core.breaker import Breaker
from choreo.core.emission import collision_digest
from choreo.core.engine import Engine
from choreo.core.retry import RetryPolicy
from choreo.core.units import Delivery, State, Unit
from choreo.ports import Claimed as Verdict
from choreo.record import TopicPartition

PARTITIONS = tuple(TopicPartition("orders", number) for number in range(3))
SEEDS_A_TEST, TESTS = 40, 10
STEPS_MAX = 400
LONG_RUN = 20_000
BREAKER = Breaker(2, pause_s=1.0)
PARKED = "parked"
"""Result of a unit that went to the queue of its key."""
RETRY = RetryPolicy(3, base_s=0.5, cap_s=2.0)
LIMITS = m.Limits(
    concurrency=3,
    flush_units=3,
    flush_s=0.01,
    transact_units=3,
    transactions_max=2,
    unfinished_max=8,
    unfinished_span_max=20,
    deliveries_max=5,
)


@dataclass(frozen=True)
class Event:
    """One handler's part of one record, as it is on the log."""

    lane: str
    digest: bytes
    fingerprint: bytes
    derived: bool
    transacts: bool
    deliveries: int


@dataclass
class Claim:
    """A key in the model of the store: whose claim it is, or done."""

    owner: tuple[TopicPartition, int]
    fingerprint: bytes
    done: bool = False


@dataclass
class World:
    """An engine, the log it reads, the store and the group, and what is under way between them."""

    random: Random
    guarded: bool = False  # its handler has a breaker, and some records are of a delay topic
    ordered: bool = False  # its handler parks keys, and somebody else handles what is in the queues
    queues: set[bytes] = field(default_factory=set)  # that hold something
    asked: dict[int, frozenset[bytes]] = field(default_factory=dict)  # what a claim under way may have seen of them
    engine: Engine = field(default_factory=lambda: Engine(LIMITS))
    now_s: float = 1_000.0
    epochs: dict[TopicPartition, int] = field(default_factory=dict)
    leases: dict[TopicPartition, int] = field(default_factory=dict)
    draining: set[TopicPartition] = field(default_factory=set)
    paused: set[TopicPartition] = field(default_factory=set)
    offsets: dict[TopicPartition, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS, 0))
    fetched: dict[TopicPartition, int] = field(default_factory=dict)
    keys: dict[bytes, Claim] = field(default_factory=dict)
    under_way: list[tuple[m.Effect, dict[TopicPartition, int]]] = field(default_factory=list)
    durable: dict[tuple[TopicPartition, str], list[int]] = field(default_factory=dict)
    unknown: set[bytes] = field(default_factory=set)  # durable, and the engine was told that the commit failed
    timer_s: float | None = None  # the one timer of the runtime
    well: bool = False  # from now on everything is answered, and well

    def __post_init__(self) -> None:
        self.log = {id_: [self._record() for _ in range(self.random.randint(0, 14))] for id_ in PARTITIONS}

    def _record(self) -> list[Event]:
        random = self.random
        events = []
        lane = random.choice("abc")
        for _ in range(random.choice((0, 1, 1, 1, 1, 2))):
            shared = random.randrange(12) if random.random() < 0.3 else None
            digest = f"own {random.getrandbits(60)}" if shared is None else f"k{shared}"
            events.append(
                Event(
                    lane,
                    digest.encode(),
                    b"other" if random.random() < 0.15 else b"same",
                    shared is not None and shared % 2 == 0,
                    random.random() < 0.4,
                    random.choice((1,) * 12 + (2, 3, 4, 9)),
                )
            )
        return events

    # ---- the world goes on

    def step(self, message: m.Input) -> None:
        """Tell the engine; remember what is to be done."""
        for effect in self.engine.step(message, self.now_s):
            if isinstance(effect, m.Pause):
                self.paused.add(effect.partition)
            elif isinstance(effect, m.Resume):
                self.paused.discard(effect.partition)
            elif isinstance(effect, m.Wait):
                self.timer_s = effect.until_s
            elif isinstance(effect, (m.Claim, m.Invoke, m.DeadLetter, m.Delay, m.Park, m.Transact, m.Commit)):
                self.under_way.append((effect, dict(self.leases)))
            if isinstance(effect, m.Claim):
                self.asked[id(effect)] = frozenset(self.queues)
            if isinstance(effect, m.Park):
                self._check_before(effect.unit)

    def _check_before(self, unit: Unit) -> None:
        """Once it is parked others may handle it: all before it in its lane is durable by then."""
        for at in range(unit.offset):
            for event in self.log[unit.partition][at]:
                assert event.lane != unit.lane.key or self._settled(event), f"{unit} is parked, and @{at} is not done"

    def chance(self, probability: float) -> bool:
        """Whether something bad happens; never once all is well."""
        return not self.well and self.random.random() < probability

    def go_on(self) -> bool:
        """Let one thing happen, whichever; whether there was anything."""
        moves = [self._answer] * (2 * bool(self.under_way)) + [self._fetch] * bool(self._fetchable())
        if self.timer_s is not None:
            moves.append(self._tick)
        missing = [id_ for id_ in PARTITIONS if id_ not in self.leases]
        if missing:
            moves.append(lambda: self._assign(self.random.choice(missing)))
        if self.queues and self.chance(0.05):
            moves = [lambda: self.queues.discard(self.random.choice(sorted(self.queues)))]
        if self.chance(0.04) and self.leases:
            moves = [self._rebalance]
        if not moves:
            return False
        self.random.choice(moves)()
        return True

    def _tick(self) -> None:
        timer_s, self.timer_s = self.timer_s, None
        assert timer_s is not None
        self.now_s = max(self.now_s, timer_s - (0.001 if self.chance(0.2) else 0.0))  # clocks drift apart
        self.step(m.Tick())

    def _fetchable(self) -> list[TopicPartition]:
        held = [id_ for id_ in self.leases if id_ not in self.paused and id_ not in self.draining]
        return [id_ for id_ in held if self.fetched[id_] < len(self.log[id_])]

    def _fetch(self) -> None:
        id_ = self.random.choice(self._fetchable())
        begin = self.fetched[id_]
        end = min(len(self.log[id_]), begin + self.random.randint(1, 5))
        self.fetched[id_] = end
        self.step(
            m.Fetched(
                id_,
                [Delivery(at, 10, 1_000, self._units(id_, at), self._delay_s()) for at in range(begin, end)],
                1_000,
            )
        )

    def _delay_s(self) -> float:
        return self.random.choice((0.0, 0.0, 2.0)) if self.guarded else 0.0

    def _units(self, partition: TopicPartition, offset: int) -> list[Unit]:
        return [
            Unit(
                partition,
                offset,
                event.lane,
                "reserve",
                event.digest,
                event.fingerprint,
                correlation_id="flow",
                derived=event.derived,
                transacts=event.transacts,
                retry=RETRY,
                delayable=self.guarded and event.derived,
                breaker=BREAKER if self.guarded else None,
                queue=f"{partition} {event.lane}".encode() if self.ordered else None,
                work=event,
            )
            for event in self.log[partition][offset]
        ]

    # ---- partitions come and go

    def _assign(self, id_: TopicPartition) -> None:
        self.epochs[id_] = self.leases[id_] = self.epochs.get(id_, 0) + 1
        self.fetched[id_] = self.offsets[id_]
        self.paused.discard(id_)
        self.step(m.Assigned(id_, self.offsets[id_]))

    def _rebalance(self) -> None:
        id_ = self.random.choice(list(self.leases))
        if id_ not in self.draining and self.random.random() < 0.6:
            self.draining.add(id_)
            self.step(m.Draining([id_]))
        elif id_ not in self.draining or not self.engine.unflushed([id_]) or self.random.random() < 0.3:
            self.step(m.Revoked([id_]))
            self._give_up([id_])

    def _give_up(self, partitions: Iterable[TopicPartition]) -> None:
        for id_ in partitions:
            epoch = self.leases.pop(id_, None)
            self.draining.discard(id_)
            for digest in [d for d, claim in self.keys.items() if claim.owner == (id_, epoch) and not claim.done]:
                del self.keys[digest]

    # ---- what the store and the handlers say

    def _answer(self) -> None:
        effect, leases = self.under_way.pop(self.random.randrange(len(self.under_way)))
        match effect:
            case m.Claim():
                self._claim(effect, leases)
            case m.Invoke(unit) | m.DeadLetter(unit, _) | m.Delay(unit, _) | m.Park(unit, _) if self.leases.get(
                unit.partition
            ) != leases.get(unit.partition):
                self.step(m.Returned(unit, "late"))
            case m.Invoke(unit):
                self._handle(unit)
            case m.DeadLetter(unit, _) | m.Delay(unit, _):
                self.step(m.Returned(unit, "dead letter"))
            case m.Park(unit, _):
                self.step(m.Returned(unit, PARKED))
            case m.Transact():
                self._transact(effect, leases)
            case m.Commit():
                self._commit(effect, leases)

    def _claim(self, claim: m.Claim, leases: dict[TopicPartition, int]) -> None:
        ours = [leases.get(unit.partition) == self.leases.get(unit.partition, -1) for unit in claim.units]
        if not all(ours) or self.chance(0.1):
            self.step(m.ClaimFailed(claim.units))
            return
        seen = self.asked.pop(id(claim))
        if self.ordered and self.random.random() < 0.5:
            seen = frozenset(self.queues)  # it was answered late
        self.step(
            m.Claimed(claim.units, [self._verdict(unit)._replace(parked=unit.queue in seen) for unit in claim.units])
        )

    def _verdict(self, unit: Unit) -> Verdict:
        owner = (unit.partition, self.leases[unit.partition])
        known = self.keys.get(unit.digest)
        if known is not None and known.done:
            return Verdict("done" if known.fingerprint == unit.fingerprint else "conflict")
        if (known is not None and known.owner != owner) or (known is None and self.chance(0.1)):
            return Verdict("busy")
        self.keys[unit.digest] = Claim(owner, unit.fingerprint)
        event: Event = unit.work
        return Verdict("fresh", event.deliveries)

    def _handle(self, unit: Unit) -> None:
        if self.chance(0.3):
            self.step(self._raised(unit))
        else:
            self.step(m.Returned(unit, "result"))

    def _raised(self, unit: Unit) -> m.Raised:
        delay_s = self.random.choice((None, 0.001, 3.0))
        return m.Raised(
            unit, self.random.choice(("retry", "retry", "dead_letter")), "boom", delay_s, trips=self.guarded
        )

    def _held(self, partitions: Iterable[TopicPartition], leases: dict[TopicPartition, int]) -> set[TopicPartition]:
        return {id_ for id_ in partitions if id_ in leases and self.leases.get(id_) == leases[id_]}

    def _fenced(self, held: set[TopicPartition]) -> frozenset[TopicPartition]:
        """Partitions that a newer owner is met in; they come back later."""
        return frozenset(id_ for id_ in sorted(held) if self.chance(0.03))

    def _commit(self, commit: m.Commit, leases: dict[TopicPartition, int]) -> None:
        units = [unit for unit in commit.units if unit.state is State.COMMITTING]
        wanted = {unit.partition for unit in units} | set(commit.offsets)
        held = self._held(wanted, leases)
        refused = self._fenced(held)
        failed = self.chance(0.15)
        if not failed or self.chance(0.5):
            for unit in units:
                if unit.partition in held - refused:
                    self._write(unit, unknown=failed)
            for id_ in sorted(held - refused):
                if id_ in commit.offsets:
                    self._move(id_, commit.offsets[id_])
        if failed:
            self.step(m.CommitFailed(commit.flush))
            return
        self.step(m.Committed(commit.flush, refused))
        self._give_up(refused)

    def _transact(self, effect: m.Transact, leases: dict[TopicPartition, int]) -> None:
        units = [unit for unit in effect.units if unit.state is State.RUNNING]
        held = self._held({unit.partition for unit in units}, leases)
        refused = self._fenced(held)
        failed = self.chance(0.15)
        blocked: set[int] = set()
        outcomes = []
        for unit in effect.units:
            outcome = m.Outcome(unit)
            if unit in units and unit.partition in held - refused and id(unit.lane) not in blocked:
                if unit.digest not in self.unknown and self.chance(0.3):
                    raised = self._raised(unit) if self.chance(0.7) else None
                    outcome = m.Outcome(unit, raised=raised)
                    blocked.add(id(unit.lane))
                elif not failed or self.chance(0.5):
                    self._write(unit, unknown=failed)
                    outcome = m.Outcome(unit, "rows")
                else:
                    blocked.add(id(unit.lane))
            outcomes.append(outcome)
        if failed:
            self.step(m.Transacted([m.Outcome(unit) for unit in effect.units], failed=True))
            return
        self.step(m.Transacted(outcomes, refused))
        self._give_up(refused)

    def _write(self, unit: Unit, *, unknown: bool) -> None:
        """A unit becomes durable: by its claim, once, and after those before it in its lane."""
        claim = self.keys.get(unit.digest)
        assert claim is not None, f"{unit} is committed without a claim"
        if claim.done:
            assert unit.digest in self.unknown, f"{unit} is committed twice"
            if not unknown:
                self.unknown.discard(unit.digest)
            return
        assert claim.owner == (unit.partition, self.leases[unit.partition]), f"{unit} is committed by another's claim"
        claim.done = True
        if unknown:
            self.unknown.add(unit.digest)
        if unit.result == PARKED:
            self.queues.add(unit.queue or b"")
        else:
            assert unit.poison or unit.queue not in self.queues, f"{unit} is handled, and its key is parked"
        order = self.durable.setdefault((unit.partition, unit.lane.key), [])
        assert not order or order[-1] <= unit.offset, f"{unit} is durable after {order[-1]}"
        order.append(unit.offset)

    def _move(self, id_: TopicPartition, offset: int) -> None:
        """An offset is committed: everything below it is done."""
        for at in range(offset):
            for event in self.log[id_][at]:
                assert self._settled(event), f"{id_} is committed as {offset}, and {event} at {at} is not done"
        self.offsets[id_] = offset

    def _settled(self, event: Event) -> bool:
        own = self.keys.get(event.digest)
        other = self.keys.get(collision_digest(event.digest, event.fingerprint))
        if other is not None and other.done:
            return True
        return own is not None and own.done and (event.derived or own.fingerprint == event.fingerprint)


def play(seed: int, *, guarded: bool = False, ordered: bool = False) -> World:
    """One life of an engine: everything may happen, then nothing bad does and all is brought to its end."""
    world = World(Random(seed), guarded, ordered)
    for _ in range(STEPS_MAX):
        world.go_on()
    world.well = True
    for id_ in sorted(world.draining):
        world.step(m.Revoked([id_]))
        world._give_up([id_])
    for _ in range(20 * STEPS_MAX):
        if not world.go_on():
            return world
    raise AssertionError(f"seed {seed}: it never comes to an end")


@pytest.mark.parametrize(
    ("guarded", "ordered"), [(False, False), (True, False), (False, True)], ids=["plain", "guarded", "ordered"]
)
@pytest.mark.parametrize("block", range(TESTS))
def test_whatever_happens_everything_is_durable_once_and_in_order(block: int, guarded: bool, ordered: bool) -> None:
    """No loss, no second result, order in a lane, no offset above what is not done, and nothing left behind."""
    for seed in range(block * SEEDS_A_TEST, (block + 1) * SEEDS_A_TEST):
        nothing_left(play(seed, guarded=guarded, ordered=ordered), seed)


@pytest.mark.parametrize("seed", [560, 727])
def test_seeds_that_failed_once(seed: int) -> None:
    """A copy that was due before its original led it, from behind it in the same lane: both waited for ever."""
    nothing_left(play(seed, guarded=True), seed)


def nothing_left(world: World, seed: int) -> None:
    """Everything is durable, and the engine remembers none of it."""
    engine = world.engine
    for id_, records in world.log.items():
        assert all(world._settled(event) for events in records for event in events), seed
        assert world.offsets[id_] == len(records), seed
        assert engine.partitions[id_].lanes == {}, seed
        assert (engine.partitions[id_].unfinished, engine.partitions[id_].unfinished_bytes) == (0, 0), seed
    assert (engine.unfinished(), engine.running, engine.waiting()) == (0, 0, True), seed
    assert (engine._claims._keys, engine._turns.solo) == ({}, None), seed
    assert (engine.wake_at_s, len(engine._alarms)) == (None, 0), seed
    assert (engine._circuits._held, engine._circuits._under_way) == ({}, {}), seed


def test_a_long_run_leaves_nothing_behind() -> None:
    """Events of random lanes, some of them duplicates: what is kept is bounded, and in the end none."""
    random, engine, id_ = Random(4), Engine(), PARTITIONS[0]
    engine.step(m.Assigned(id_, 0), 0.0)
    queue: list[m.Effect] = []
    for begin in range(0, LONG_RUN, 500):
        deliveries = []
        for offset in range(begin, begin + 500):
            lane, digest, transacts = (
                random.getrandbits(12),
                f"{random.randrange(10 * LONG_RUN)}".encode(),
                offset % 3 == 0,
            )
            unit = Unit(
                id_,
                offset,
                lane,
                "reserve",
                digest,
                b"same",
                correlation_id="flow",
                derived=True,
                transacts=transacts,
                retry=RETRY,
            )
            deliveries.append(Delivery(offset, 10, 0, [unit]))
        queue += engine.step(m.Fetched(id_, deliveries, 0), 0.0)
        while queue or engine.wake_at_s is not None:
            effects, queue = queue, []
            queue += [] if effects else engine.step(m.Tick(), engine.wake_at_s or 0.0)
            for effect in effects:
                queue += _well(engine, effect)
        assert len(engine._claims._keys) + len(engine._alarms) + len(engine._pressure) == 0
    partition = engine.partitions[id_]
    left = (partition.lanes, list(partition._entries), list(partition._passed), engine._commits.returned)
    assert left == ({}, [], [], [])
    assert (partition.committed, engine.unfinished(), engine.waiting()) == (LONG_RUN, 0, True)


def _well(engine: Engine, effect: m.Effect) -> list[m.Effect]:
    """What follows when an effect succeeds."""
    match effect:
        case m.Claim(units, _):
            return engine.step(m.Claimed(units, [Verdict("fresh")] * len(units)), 0.0)
        case m.Invoke(unit):
            return engine.step(m.Returned(unit, "result"), 0.0)
        case m.Transact(units):
            return engine.step(m.Transacted([m.Outcome(unit, "rows") for unit in units]), 0.0)
        case m.Commit(flush, _, _):
            return engine.step(m.Committed(flush), 0.0)
        case _:
            return []
