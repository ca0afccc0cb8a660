"""The engine's claims, driven by hand: who leads a key and who follows, and what the store's answers mean."""

from choreo.core import messages as m
from choreo.ports import Claimed as Verdict
from tests.unit.driven_engine import FRESH, Drive, P, Q, invoked, make, of


def test_followers_of_the_same_key_become_duplicates() -> None:
    """A second record of one key, in another lane or partition, is not invoked and is done when the first is."""
    drive = Drive()
    leader, same_lane = make(0, "a", key="k"), make(1, "a", key="k")
    elsewhere = make(0, "z", partition=Q, key="k")
    assert [list(claim.units) for claim in of(m.Claim, drive.take(leader, same_lane))] == [[leader]]
    assert of(m.Claim, drive.take(elsewhere)) == []
    assert of(m.Commit, drive.back(leader))[0].offsets == {P: 1}
    effects = drive.step(m.Committed(1))
    assert of(m.Duplicate, effects) == [m.Duplicate(same_lane), m.Duplicate(elsewhere)]
    assert of(m.Invoke, effects) == []
    assert of(m.Commit, effects)[0].offsets == {P: 2, Q: 1}


def test_a_follower_takes_the_place_of_a_leader_that_is_gone() -> None:
    """When the leader's partition is revoked, its follower elsewhere is claimed and invoked."""
    drive = Drive()
    leader, heir, last = make(0, key="k"), make(0, partition=Q, key="k"), make(1, partition=Q, key="k")
    drive.take(leader)
    drive.take(heir, last)
    claims = of(m.Claim, drive.step(m.Revoked([P])))
    assert [list(claim.units) for claim in claims] == [[heir]]
    assert invoked(drive.claimed([heir], FRESH)) == [0]
    drive.back(heir)
    assert of(m.Duplicate, drive.step(m.Committed(1))) == [m.Duplicate(last)]


def test_what_was_handled_before_is_a_duplicate() -> None:
    """The store knows the key as done: nothing is invoked and the offset goes on."""
    drive = Drive()
    unit, behind = make(0), make(1)
    drive.fetch(unit, behind)
    effects = drive.claimed([unit, behind], Verdict("done"), FRESH)
    assert of(m.Duplicate, effects) == [m.Duplicate(unit)]
    assert invoked(effects) == [1]
    assert of(m.Commit, drive.back(behind))[0].offsets == {P: 2}


def test_another_payload_under_one_id_is_a_collision_unless_the_id_was_derived() -> None:
    """Two events of a foreign producer with one id are told apart; a re-run of ours is a duplicate."""
    drive = Drive()
    foreign, ours = make(0, "a"), make(1, "b", derived=True)
    drive.fetch(foreign, ours)
    key = foreign.digest
    effects = drive.claimed([foreign, ours], Verdict("conflict"))
    assert of(m.Duplicate, effects) == [m.Duplicate(ours)]
    assert of(m.Claim, effects) == [m.Claim([foreign])]
    assert foreign.digest != key
    assert of(m.DeadLetter, drive.claimed([foreign], FRESH)) == [m.DeadLetter(foreign, "id_collision")]
    assert foreign.attempts == 0


def test_busy_claims_are_asked_again() -> None:
    """A key whose owner lives elsewhere is asked for after a while, and other lanes go on."""
    drive = Drive(m.Limits(busy_s=0.2))
    unit, other = make(0, "a"), make(1, "b")
    drive.fetch(unit, other)
    effects = drive.claimed([unit, other], Verdict("busy"), FRESH)
    assert invoked(effects) == [1]
    assert of(m.Wait, effects) == [m.Wait(0.2)]
    assert of(m.Claim, drive.tick(0.1)) == []
    claims = of(m.Claim, drive.tick(0.1))
    assert [list(claim.units) for claim in claims] == [[unit]]
    assert invoked(drive.claimed([unit], FRESH)) == [0]


def test_a_store_that_did_not_answer_is_asked_again() -> None:
    """A failed claim invokes nothing and is repeated after `failure_s`."""
    drive = Drive(m.Limits(failure_s=0.5))
    unit = make(0)
    drive.fetch(unit)
    assert invoked(drive.step(m.ClaimFailed([unit]))) == []
    assert drive.engine.waiting()
    assert [list(claim.units) for claim in of(m.Claim, drive.tick(0.5))] == [[unit]]
    assert not drive.engine.waiting()


def test_suspects_run_alone() -> None:
    """A unit somebody died with waits until nothing runs, is counted, and nothing runs beside it."""
    drive = Drive()
    busy, suspect, later = make(0, "a"), make(1, "b"), make(2, "c")
    drive.take(busy)
    drive.fetch(suspect, later)
    effects = drive.claimed([suspect, later], Verdict("fresh", 3), FRESH)
    assert invoked(effects) == []
    assert of(m.Claim, effects) == []
    effects = drive.back(busy)
    assert of(m.Claim, effects) == [m.Claim([suspect], solo=True)]
    assert invoked(effects) == []
    assert invoked(drive.claimed([suspect], Verdict("fresh", 3))) == [1]
    assert drive.engine.running == 1
    assert invoked(drive.back(suspect)) == [2]


def test_a_second_suspect_waits_for_the_first() -> None:
    """Suspects are claimed one after the other, since each could take the process with it."""
    drive = Drive()
    first, second = make(0, "a"), make(1, "b")
    drive.fetch(first, second)
    assert of(m.Claim, drive.claimed([first, second], Verdict("fresh", 3))) == [m.Claim([first], solo=True)]
    drive.claimed([first], Verdict("fresh", 3))
    assert of(m.Claim, drive.back(first)) == [m.Claim([second], solo=True)]


def test_units_whose_process_died_once_run_together() -> None:
    """One death is most often the process's own: what was claimed with it need not go one by one."""
    drive = Drive()
    units = make(0, "a"), make(1, "b")
    drive.fetch(*units)
    assert invoked(drive.claimed(list(units), Verdict("fresh", 2), Verdict("fresh", 2))) == [0, 1]


def test_crashed_above_deliveries_max() -> None:
    """A unit that took too many processes with it is dead-lettered without being invoked."""
    drive = Drive(m.Limits(deliveries_max=3))
    unit = make(0)
    drive.fetch(unit)
    effects = drive.claimed([unit], Verdict("fresh", 4))
    assert of(m.DeadLetter, effects) == [m.DeadLetter(unit, "crashed")]
    assert invoked(effects) == []
    assert of(m.Commit, drive.back(unit))[0].offsets == {P: 1}
