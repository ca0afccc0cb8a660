"""Units that transact, and findings about the engine, by hand: suspects, timers that ring early, late answers."""

import pytest

from choreo.core import messages as m
from choreo.core.units import State
from choreo.ports import Claimed as Verdict
from tests.unit.driven_engine import FRESH, Drive, P, Q, ended, invoked, make, of, transacts


def test_transacting_units_wait_until_what_is_before_them_in_their_lane_is_durable() -> None:
    """Or their emits could overtake its; a run of one lane goes into one transaction, in order."""
    drive = Drive()
    before, first, second = make(0), make(1, transacts=True), make(2, transacts=True)
    assert invoked(drive.take(before, first, second)) == [0]
    effects = drive.back(before)
    assert [list(each.units) for each in of(m.Commit, effects)] == [[before]]
    assert transacts(effects) == []
    assert transacts(drive.step(m.Committed(1))) == [[first, second]]
    effects = drive.step(ended(m.Outcome(first, "rows"), m.Outcome(second)))
    assert (first.state, transacts(effects)) == (State.FINISHED, [[second]])
    effects = drive.step(ended(m.Outcome(second, "rows")))
    assert (second.state, second.attempts) == (State.FINISHED, 1)
    assert of(m.Commit, effects)[0].offsets == {P: 3}


def test_what_follows_a_transacting_unit_in_its_lane_waits_for_its_transaction() -> None:
    """Other lanes do not, and flushes go on beside it."""
    drive = Drive()
    first, behind, other = make(0, "a", transacts=True), make(1, "a"), make(2, "b")
    effects = drive.take(first, behind, other)
    assert (transacts(effects), invoked(effects)) == ([[first]], [2])
    assert of(m.Commit, drive.back(other) + drive.tick(1.0))[0].units == [other]
    assert invoked(drive.step(ended(m.Outcome(first, "rows")))) == [1]


def test_lanes_are_dealt_out_to_as_many_transactions_as_there_may_be() -> None:
    """A slow handler holds up those of its own transaction only."""
    drive = Drive(m.Limits(transactions_max=2))
    units = [make(offset, f"lane {offset}", transacts=True) for offset in range(5)]
    assert transacts(drive.take(*units[:3])) == [[units[0], units[1]], [units[2]]]
    assert transacts(drive.take(*units[3:])) == []
    assert transacts(drive.step(ended(m.Outcome(units[2], "rows")))) == [[units[3], units[4]]]
    assert not drive.engine.waiting()


def test_a_transacting_unit_that_raises_holds_back_its_lane_only() -> None:
    """Its retry waits at the head of its lane, while another lane's unit is done in the same transaction."""
    drive = Drive()
    failing, behind, other = make(0, "a", transacts=True), make(1, "a", transacts=True), make(2, "b", transacts=True)
    assert transacts(drive.take(failing, behind, other)) == [[failing, behind, other]]
    raised = m.Raised(failing, "retry", "boom", 1.0)
    effects = drive.step(ended(m.Outcome(failing, raised=raised), m.Outcome(behind), m.Outcome(other, "rows")))
    assert transacts(effects) == []
    assert (failing.state, behind.state, other.state) == (State.BACKOFF, State.READY, State.FINISHED)
    assert transacts(drive.tick(1.0)) == [[failing, behind]]


def test_a_transacting_unit_that_is_rejected_is_dead_lettered_outside() -> None:
    """Its dead letter is a result like any other, flushed with the next commit, and its lane goes on behind it."""
    drive = Drive()
    rejected, behind = make(0, transacts=True), make(1, transacts=True)
    drive.take(rejected, behind)
    raised = m.Raised(rejected, "dead_letter", "no such sku")
    effects = drive.step(ended(m.Outcome(rejected, raised=raised), m.Outcome(behind)))
    assert of(m.DeadLetter, effects) == [m.DeadLetter(rejected, "no such sku")]
    assert (of(m.Commit, effects), transacts(effects)) == ([], [])
    assert list(of(m.Commit, drive.back(rejected))[0].units) == [rejected]
    assert transacts(drive.step(m.Committed(1))) == [[behind]]
    assert drive.engine.running == 0


def test_transacting_units_of_a_failed_transaction_are_invoked_again() -> None:
    """Nothing of them was durable, so it does not count as an attempt; the store is given a pause."""
    drive = Drive(m.Limits(failure_s=0.5))
    unit = make(0, transacts=True)
    drive.take(unit)
    effects = drive.step(m.Transacted([m.Outcome(unit)], failed=True))
    assert (transacts(effects), of(m.Wait, effects)) == ([], [m.Wait(0.5)])
    assert transacts(drive.tick(0.5)) == [[unit]]
    assert unit.attempts == 1


def test_a_refused_transaction_gives_the_partition_up() -> None:
    """Another partition's units of it were written."""
    drive = Drive()
    lost, kept = make(0, transacts=True), make(0, transacts=True, partition=Q)
    drive.take(lost)
    drive.step(m.Transacted([m.Outcome(lost)], failed=True))
    drive.take(kept)
    (both,) = transacts(drive.tick(1.0))
    assert set(both) == {lost, kept}
    drive.step(m.Transacted([m.Outcome(lost), m.Outcome(kept, "rows")], frozenset({P})))
    assert (lost.state, kept.state, list(drive.engine.partitions)) == (State.DROPPED, State.FINISHED, [Q])


def test_a_transaction_has_no_more_than_transact_units() -> None:
    """The database's write lock is held briefly; the rest follows in the next one."""
    drive = Drive(m.Limits(transact_units=2))
    units = [make(offset, transacts=True) for offset in range(3)]
    assert transacts(drive.take(*units)) == [units[:2]]
    assert transacts(drive.step(ended(*(m.Outcome(unit, "rows") for unit in units[:2])))) == [units[2:]]


def test_a_suspect_that_transacts_waits_for_the_flush_of_what_was_before_it_in_its_lane() -> None:
    """It has the process to itself, and still its emits must not overtake those of its predecessor."""
    drive = Drive()
    before, suspect, other = make(0), make(1, transacts=True), make(2, "b")
    drive.take(before)
    drive.fetch(suspect)
    drive.claimed([suspect], Verdict("fresh", 3))
    effects = drive.back(before)
    assert of(m.Claim, effects) == [m.Claim([suspect], solo=True)]
    assert invoked(drive.take(other)) == []
    effects = drive.claimed([suspect], Verdict("fresh", 3))
    assert transacts(effects) == []
    (commit,) = of(m.Commit, effects + drive.tick(0.005))
    assert list(commit.units) == [before]
    effects = drive.step(m.Committed(commit.flush))
    assert (transacts(effects), invoked(effects)) == ([[suspect]], [])
    assert invoked(drive.step(ended(m.Outcome(suspect, "rows")))) == [2]


def test_what_is_given_up_in_a_transaction_of_a_drain_comes_after_what_ended_in_it() -> None:
    """They stand in one lane, which is not looked at any more when its partition drains."""
    drive = Drive()
    done, hopeless = make(0, transacts=True), make(1, transacts=True)
    assert transacts(drive.take(done, hopeless)) == [[done, hopeless]]
    drive.step(m.Draining([P]))
    raised = m.Raised(hopeless, "dead_letter", "no such sku")
    effects = drive.step(ended(m.Outcome(done, "rows"), m.Outcome(hopeless, raised=raised)))
    assert of(m.DeadLetter, effects) == [m.DeadLetter(hopeless, "no such sku")]
    (commit,) = of(m.Commit, drive.back(hopeless) + drive.tick(0.005))
    assert (list(commit.units), dict(commit.offsets)) == ([hopeless], {P: 2})


def test_a_timer_that_rings_early_is_set_again() -> None:
    """The wall clock was set back while the runtime slept: without another input nothing else would wake the unit."""
    drive = Drive()
    unit = make(0)
    drive.take(unit)
    assert of(m.Wait, drive.fail(unit, delay_s=10.0)) == [m.Wait(10.0)]
    assert of(m.Wait, drive.tick(9.5)) == [m.Wait(10.0)]
    assert invoked(drive.tick(0.5)) == [0]


def test_of_two_that_collide_with_the_same_event_one_is_dead_lettered() -> None:
    """They are duplicates of each other: the second waits for the first, and is done when it is."""
    drive = Drive(m.Limits(busy_s=0.2))
    first, second = make(0, "a", key="k"), make(1, "b", key="k")
    drive.fetch(first, second)
    (again,) = of(m.Claim, drive.claimed([first], Verdict("conflict")))[:1]
    assert list(again.units) == [first]
    drive.claimed([second], Verdict("conflict"))
    assert second.digest == first.digest
    assert of(m.DeadLetter, drive.claimed([first], FRESH)) == [m.DeadLetter(first, "id_collision")]
    assert of(m.Claim, drive.tick(0.2)) == []
    (commit,) = of(m.Commit, drive.back(first))
    drive.step(m.Committed(commit.flush))
    claims = of(m.Claim, drive.tick(0.2))
    assert [list(claim.units) for claim in claims] == [[second]]
    assert of(m.Duplicate, drive.claimed([second], Verdict("done"))) == [m.Duplicate(second)]


def test_a_late_answer_to_a_flush_of_a_former_assignment_moves_nothing_of_the_new_one() -> None:
    """Its offset was not committed for the new one, and had it counted, the new one's own would never be."""
    drive = Drive(m.Limits(flush_units=1))
    old = make(0)
    drive.take(old)
    (flush,) = of(m.Commit, drive.back(old))
    assert flush.offsets == {P: 1}
    drive.step(m.Revoked([P]))
    drive.step(m.Assigned(P, 0))
    drive.step(m.Committed(flush.flush))
    assert drive.engine.partitions[P].committed == 0
    new = make(0)
    drive.take(new)
    assert of(m.Commit, drive.back(new))[0].offsets == {P: 1}


def test_a_flush_that_has_not_begun_yet_commits_nothing_of_a_partition_revoked_meanwhile() -> None:
    """Its results are dropped, so the offset above them must not be committed in the name of a new assignment."""
    drive = Drive()
    gone, kept = make(0), make(0, partition=Q)
    drive.take(gone)
    drive.take(kept)
    drive.back(gone)
    (flush,) = of(m.Commit, drive.back(kept))
    drive.step(m.Revoked([P]))
    assert flush.offsets == {Q: 1}


@pytest.mark.parametrize("transacts", [False, True])
def test_what_waits_for_a_time_is_forgotten_with_its_partition(transacts: bool) -> None:
    """A handler asks to be called in a day; partitions that come and go meanwhile leave nothing behind."""
    drive = Drive()
    for _ in range(10):
        unit, asked = make(0, transacts=transacts), make(1, "b")
        drive.take(unit)
        drive.fetch(asked)
        drive.claimed([asked], Verdict("busy"))
        raised = m.Raised(unit, "retry", "later", 86_400.0)
        drive.step(ended(m.Outcome(unit, raised=raised)) if transacts else raised)
        assert unit.state is State.BACKOFF
        drive.step(m.Revoked([P]))
        drive.step(m.Assigned(P, 0))
    assert drive.engine.wake_at_s is None
    assert drive.engine.unfinished() == 0
