"""The engine and parked keys: what is parked instead of invoked, and when it may be."""

from collections.abc import Iterable

import pytest

from choreo.core import messages as m
from choreo.core.units import State, Unit
from choreo.errors import Disposition
from choreo.ports import Claimed as Verdict
from tests.unit.driven_engine import FRESH, Drive, P, invoked, make, of

QUEUE = b"sixteen bytes of"
PARKED = Verdict("fresh", parked=True)


def ordered(
    offset: int, lane: str = "a", *, attempts_max: int = 1, transacts: bool = False, handler: str = "reserve"
) -> Unit:
    """A unit of a handler with `order="key"`."""
    unit = make(offset, lane, attempts_max=attempts_max, transacts=transacts, key=f"{handler} {offset}")
    unit.queue, unit.handler = QUEUE, handler
    return unit


def parked(effects: Iterable[m.Effect]) -> list[tuple[int, str]]:
    """Offsets of the units to be parked, and why."""
    return [(effect.unit.offset, effect.reason) for effect in of(m.Park, effects)]


def landed(drive: Drive, effects: Iterable[m.Effect]) -> list[m.Effect]:
    """What returned is durable: by the flush among the effects, or the one that is due soon."""
    (commit,) = of(m.Commit, effects) or of(m.Commit, drive.tick(0.01))
    return drive.step(m.Committed(commit.flush))


def test_unit_that_is_given_up_is_parked_and_those_behind_it_follow() -> None:
    """They were claimed before, and are not invoked; what comes after the commit is as its claim says."""
    drive = Drive()
    first, second, third = ordered(0), ordered(1), ordered(2)
    assert invoked(drive.take(first, second)) == [0]
    assert parked(drive.fail(first)) == [(0, "boom")]
    drive.fetch(third)  # its claim is asked before the commit has landed, and answered after it
    effects = drive.back(first)
    assert not invoked(effects)
    assert not parked(effects)
    assert parked(landed(drive, effects)) == [(1, "")]
    assert invoked(drive.claimed([third], FRESH)) == []
    effects = landed(drive, drive.back(second))
    assert parked(effects) == [(2, "")]
    landed(drive, drive.back(third))
    assert invoked(drive.take(ordered(3))) == [3]
    assert drive.engine.partitions[P].watermark() == 3


def test_unit_whose_key_is_parked_is_not_invoked() -> None:
    """Nor are attempts counted, also where it was to be invoked inside a transaction."""
    for transacts in (False, True):
        drive = Drive()
        unit = ordered(0, transacts=transacts)
        drive.fetch(unit)
        effects = drive.claimed([unit], PARKED)
        assert parked(effects) == [(0, "")]
        assert not of(m.Transact, effects)
        assert unit.attempts == 0


@pytest.mark.parametrize("transacts", [False, True])
def test_unit_is_parked_only_when_all_before_it_is_on_the_log(transacts: bool) -> None:
    """Once it is in its queue others may handle it, and what they emit must not overtake."""
    drive = Drive()
    before, unit = make(0), ordered(1, transacts=transacts)
    drive.fetch(before, unit)
    drive.claimed([before, unit], FRESH, PARKED)
    effects = drive.back(before)
    assert parked(effects) == []
    assert parked(landed(drive, effects)) == [(1, "")]


def test_unit_that_failed_is_parked_only_when_all_before_it_is_on_the_log() -> None:
    """The same for one that was tried meanwhile; a commit that fails is waited for."""
    drive = Drive()
    before, unit = make(0), ordered(1)
    drive.take(before, unit)
    drive.back(before)
    effects = drive.fail(unit)
    assert parked(effects) == []
    (commit,) = of(m.Commit, effects)
    assert parked(drive.step(m.CommitFailed(commit.flush))) == []
    assert parked(landed(drive, drive.tick(1))) == [(1, "boom")]


def test_failure_inside_a_transaction_parks_as_well() -> None:
    """Those behind it in the same transaction were not invoked, and are parked behind it."""
    drive = Drive()
    first, second = ordered(0, transacts=True), ordered(1, transacts=True)
    (transact,) = of(m.Transact, drive.take(first, second))
    assert list(transact.units) == [first, second]
    outcomes = [m.Outcome(first, raised=m.Raised(first, "retry", "boom")), m.Outcome(second)]
    effects = drive.step(m.Transacted(outcomes))
    assert parked(effects) == [(0, "boom")]
    effects = landed(drive, drive.back(first))
    assert parked(effects) == [(1, "")]
    assert not of(m.Transact, effects)


def test_other_handlers_of_the_key_go_on() -> None:
    """Their units are in the same lane; only those of the handler that failed wait."""
    drive = Drive()
    first, other, second, another = ordered(0), make(0, key="x"), ordered(1), make(1, key="y")
    other.handler = another.handler = "greet"
    drive.take(first, other, second, another)
    drive.fail(first)
    effects = drive.back(first)
    assert invoked(effects) == [0]
    effects = drive.back(other)
    assert parked(effects) == []  # it is held until the parking is durable
    (commit,) = of(m.Commit, effects)
    effects = drive.step(m.Committed(commit.flush))
    effects += drive.tick(1)
    while of(m.Commit, effects):
        effects = landed(drive, effects)
    assert parked(effects) == [(1, "")]
    assert invoked(drive.back(second)) == [1]


@pytest.mark.parametrize(
    ("queue", "reason", "effect"),
    [(QUEUE, "unknown_version", m.Park), (QUEUE, "id_collision", m.DeadLetter), (None, "not_json", m.DeadLetter)],
)
def test_unit_that_cannot_be_invoked_is_parked_too(queue: bytes | None, reason: str, effect: type[m.Effect]) -> None:
    """What comes after it may depend on it; but what bears another event's id is none."""
    drive = Drive()
    unit = ordered(0)
    unit.queue, unit.poison = queue, reason
    (found,) = [each for each in drive.take(unit) if isinstance(each, m.Park | m.DeadLetter)]
    assert (type(found), found.unit, found.reason) == (effect, unit, reason)


def test_head_of_a_queue_is_invoked_and_keeps_its_place_when_it_fails() -> None:
    """It comes from its queue: its key is parked, by itself."""
    drive = Drive()
    head = ordered(0)
    head.redriven = True
    assert invoked(drive.take(head)) == [0]
    assert parked(drive.fail(head)) == [(0, "boom")]


def test_attempts_in_place_come_first() -> None:
    """A lane waits for a retry as ever; what can never succeed is parked at once."""
    cases: list[tuple[Disposition, list[tuple[int, str]]]] = [("retry", []), ("dead_letter", [(0, "boom")])]
    for disposition, expected in cases:
        drive = Drive()
        unit = ordered(0, attempts_max=2)
        drive.take(unit)
        assert parked(drive.step(m.Raised(unit, disposition, "boom"))) == expected


def test_drain_gives_back_what_was_to_be_parked() -> None:
    """Nothing of it is durable: whoever has the partition next does it."""
    drive = Drive()
    before, unit = make(0), ordered(1)
    drive.take(before, unit)
    effects = drive.back(before)
    drive.step(m.Draining([P]))
    effects += drive.fail(unit)
    assert unit.state is State.DROPPED
    landed(drive, effects)
    assert drive.engine.unflushed([P]) == 0


def test_suspect_of_a_parked_key_waits_for_its_turn_as_all_do() -> None:
    """It has the process to itself, and what was before it is flushed first."""
    drive = Drive(m.Limits(together_max=1))
    before, unit = make(0), ordered(1)
    drive.fetch(before, unit)
    drive.claimed([before, unit], FRESH, Verdict("fresh", 2))
    effects = drive.back(before)
    (claim,) = of(m.Claim, effects)
    assert (claim.units, claim.solo) == ([unit], True)
    effects = drive.claimed([unit], Verdict("fresh", 3, parked=True))
    assert parked(effects) == []
    assert parked(landed(drive, effects)) == [(1, "")]
