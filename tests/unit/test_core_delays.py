"""The engine and records of delay topics: held until they are due, and what becomes of attempts that are used up."""

from collections.abc import Iterable

from choreo.core import messages as m
from choreo.core.units import Delivery, State, Unit
from choreo.errors import Disposition
from tests.unit.driven_engine import FRESH, Drive, P, invoked, make, of


def claims(effects: Iterable[m.Effect]) -> list[list[Unit]]:
    """The units of each claim."""
    return [list(effect.units) for effect in of(m.Claim, effects)]


def delayed(drive: Drive, *units: Unit, delay_s: float = 60, age_s: float = 0) -> list[m.Effect]:
    """Records of a delay topic, a unit each, that have lain there for `age_s`."""
    appended_ms = int((drive.now_s - age_s) * 1000)
    deliveries = [Delivery(unit.offset, 10, appended_ms, [unit], delay_s) for unit in units]
    return drive.step(m.Fetched(P, deliveries, int(drive.now_s * 1000)))


def test_record_of_a_delay_topic_is_not_claimed_before_it_is_due() -> None:
    """A claim counts as a delivery, and a process that dies while events wait was not killed by them."""
    drive = Drive()
    drive.now_s = 20.0
    unit = make(0)
    effects = delayed(drive, unit, age_s=20)
    assert not claims(effects)
    assert [effect.until_s for effect in of(m.Wait, effects)] == [60]
    assert drive.engine.waiting()
    assert unit.state is State.WAITING
    assert drive.engine.partitions[P].oldest_ms() == 60_000  # not late before
    assert not claims(drive.tick(39))
    assert claims(drive.tick(1)) == [[unit]]
    assert invoked(drive.claimed([unit], FRESH)) == [0]


def test_record_of_a_delay_topic_that_is_due_is_claimed_at_once() -> None:
    """As after a night without the service: all that waited is taken together."""
    drive = Drive()
    first, second = make(0, "a"), make(1, "b")
    assert claims(delayed(drive, first, second, age_s=61)) == [[first, second]]


def test_equal_records_that_become_due_together_are_claimed_once() -> None:
    """A delayed retry may be on the log twice; the second follows the first and ends with it."""
    drive = Drive()
    first, again = make(0, "a", key="k"), make(1, "a", key="k")
    delayed(drive, first, again)
    assert claims(drive.tick(60)) == [[first]]
    drive.claimed([first], FRESH)
    effects = drive.back(first)
    [commit] = of(m.Commit, effects)
    effects = drive.step(m.Committed(commit.flush))
    assert [effect.unit for effect in of(m.Duplicate, effects)] == [again]
    assert again.state is State.FINISHED


def test_waiting_record_holds_the_offset_and_is_given_back() -> None:
    """Nothing is lost while it waits: after a revocation whoever has the partition reads it again."""
    drive = Drive()
    waiting = make(0)
    delayed(drive, waiting)
    drive.step(m.Draining([P]))
    assert drive.engine.unflushed([P]) == 0
    assert waiting.state is State.DROPPED
    drive.step(m.Revoked([P]))
    assert not drive.tick(100)


def test_waiting_records_pause_their_partition() -> None:
    """What waits is bounded, as everything unfinished; the partition flows again as they end."""
    drive = Drive(m.Limits(unfinished_max=4))
    units = [make(offset, str(offset)) for offset in range(4)]
    assert of(m.Pause, delayed(drive, *units)) == [m.Pause(P)]
    effects = drive.tick(60)
    effects += drive.claimed(claims(effects)[0], FRESH)
    effects += drive.back(*units)
    assert of(m.Resume, effects) == [m.Resume(P)]


def test_attempts_used_up_go_to_the_next_delay_or_to_the_dead_letters() -> None:
    """Those of former places do not count here; what can never succeed does not wait."""
    cases: list[tuple[bool, Disposition, type[m.Effect]]] = [
        (True, "retry", m.Delay),
        (False, "retry", m.DeadLetter),
        (True, "dead_letter", m.DeadLetter),
    ]
    for delayable, disposition, effect in cases:
        drive = Drive()
        unit = make(0, attempts_max=2)
        unit.attempts = unit.attempts_before = 7
        unit.delayable = delayable
        drive.take(unit)
        if disposition == "retry":
            effects = drive.fail(unit)
            assert not [each for each in effects if isinstance(each, m.Delay | m.DeadLetter)]
            drive.tick(1)
            assert unit.attempts == 9
        effects = drive.step(m.Raised(unit, disposition, "boom"))
        assert [type(each) for each in effects if isinstance(each, m.Delay | m.DeadLetter)] == [effect]
