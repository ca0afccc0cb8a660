"""The engine driven by hand: each input is written here, and time is a number."""

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from choreo.core import messages as m
from choreo.core.engine import Engine
from choreo.core.retry import RetryPolicy
from choreo.core.units import Delivery, State, Unit, mermaid
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


def test_a_lane_runs_in_log_order_and_one_at_a_time() -> None:
    """The second event of a key is invoked when the first returned, other keys meanwhile."""
    drive = Drive()
    first, second, other = make(0, "a"), make(1, "a"), make(2, "b")
    assert invoked(drive.take(first, second, other)) == [0, 2]
    assert invoked(drive.back(first)) == [1]
    assert invoked(drive.back(other)) == []


def test_no_more_than_concurrency_run_at_once() -> None:
    """With two places the third lane waits until one is free."""
    drive = Drive(m.Limits(concurrency=2))
    units = [make(offset, f"lane {offset}") for offset in range(4)]
    assert invoked(drive.take(*units)) == [0, 1]
    assert drive.engine.running == 2
    assert invoked(drive.back(units[1])) == [2]
    assert invoked(drive.back(units[0])) == [3]


def test_a_lane_in_backoff_holds_up_no_other() -> None:
    """While one event waits for its retry, another key is handled and committed, and its own key stays behind it."""
    drive = Drive()
    failing, behind, other = make(0, "a"), make(1, "a"), make(2, "b")
    drive.take(failing, behind, other)
    assert invoked(drive.fail(failing, delay_s=100.0)) == []
    effects = drive.back(other)
    assert [list(commit.units) for commit in of(m.Commit, effects)] == [[other]]
    assert of(m.Commit, effects)[0].offsets == {}
    drive.step(m.Committed(1))
    assert other.state is State.FINISHED
    assert behind.state is State.READY
    assert invoked(drive.tick(99.0)) == []
    assert invoked(drive.tick(1.0)) == [0]


def test_a_handler_that_names_no_delay_waits_by_its_policy() -> None:
    """Without a delay of the handler's own the wait is within the policy's bound."""
    drive = Drive()
    unit = make(0)
    drive.take(unit)
    waits = of(m.Wait, drive.fail(unit))
    assert len(waits) == 1
    assert 0.0 <= waits[0].until_s <= 1.0
    assert drive.engine.wake_at_s == waits[0].until_s
    assert invoked(drive.tick(1.0)) == [0]
    assert unit.attempts == 2


def test_dead_letter_after_attempts_max() -> None:
    """The last attempt that fails makes a dead letter, which is committed like a result."""
    drive = Drive()
    unit, behind = make(0, attempts_max=2), make(1)
    drive.take(unit, behind)
    assert of(m.DeadLetter, drive.fail(unit, delay_s=1.0)) == []
    assert invoked(drive.tick(1.0)) == [0]
    assert of(m.DeadLetter, drive.fail(unit)) == [m.DeadLetter(unit, "boom")]
    assert invoked(drive.back(unit)) == [1]
    assert of(m.Commit, drive.back(behind))[0].offsets == {P: 2}


def test_what_can_never_succeed_is_dead_lettered_at_once() -> None:
    """A handler that rejects its event is not invoked again."""
    drive = Drive()
    unit = make(0)
    drive.take(unit)
    assert of(m.DeadLetter, drive.step(m.Raised(unit, "dead_letter", "no such sku"))) == [
        m.DeadLetter(unit, "no such sku")
    ]
    assert drive.engine.running == 1
    assert len(of(m.Commit, drive.back(unit))) == 1
    assert drive.engine.running == 0


def test_a_record_without_handlers_moves_the_watermark() -> None:
    """What nobody handles is committed as read."""
    drive = Drive()
    effects = drive.step(m.Fetched(P, [Delivery(0, 10, 0, ()), Delivery(1, 10, 0, ())], 0))
    assert of(m.Claim, effects) == []
    assert [commit.offsets for commit in of(m.Commit, effects)] == [{P: 2}]


def test_a_record_is_finished_when_each_of_its_handlers_is() -> None:
    """Two handlers of one record: its offset is passed after the slower one."""
    drive = Drive(m.Limits(flush_units=1))
    fast, slow = make(0, "a", key="fast"), make(0, "b", key="slow")
    drive.take(fast, slow)
    assert of(m.Commit, drive.back(fast))[0].offsets == {}
    drive.step(m.Committed(1))
    assert of(m.Commit, drive.back(slow))[0].offsets == {P: 1}


@given(lanes=st.lists(st.integers(0, 3), min_size=1, max_size=25), random=st.randoms(use_true_random=False))
def test_the_watermark_never_passes_an_unfinished_record(lanes: list[int], random: Random) -> None:
    """In whatever order handlers end, fail and commits fail, no offset above an unfinished record is committed."""
    drive = Drive(m.Limits(concurrency=6, flush_units=3))
    units = [make(offset, str(lane), attempts_max=1_000) for offset, lane in enumerate(lanes)]
    running: list[Unit] = []
    commits: list[m.Commit] = []
    order: dict[object, list[int]] = {}
    failures = 40  # so that every example ends

    def fails() -> bool:
        nonlocal failures
        failures -= 1
        return failures > 0 and random.random() > 0.8

    def perform(effects: list[m.Effect]) -> None:
        for invoke in of(m.Invoke, effects):
            running.append(invoke.unit)
            if invoke.unit.attempts == 1:
                order.setdefault(invoke.unit.lane.key, []).append(invoke.unit.offset)
        for commit in of(m.Commit, effects):
            held = {unit.offset for unit in units} - {
                unit.offset for unit in units if unit.state in (State.COMMITTING, State.FINISHED)
            }
            assert commit.offsets.get(P, 0) <= min(held, default=len(units))
            commits.append(commit)

    perform(drive.take(*units))
    for _ in range(2_000):
        if not running and not commits:
            if drive.engine.wake_at_s is None:
                break
            perform(drive.tick(max(0.0, drive.engine.wake_at_s - drive.now_s)))
        elif commits and (not running or random.random() < 0.3):
            flush = commits.pop().flush
            perform(drive.step(m.CommitFailed(flush) if fails() else m.Committed(flush)))
        else:
            unit = running.pop(random.randrange(len(running)))
            perform(drive.fail(unit) if fails() else drive.back(unit))
    assert all(unit.state is State.FINISHED for unit in units)
    assert drive.engine.partitions[P].committed == len(units)
    assert drive.engine.unfinished() == 0
    assert all(offsets == sorted(offsets) for offsets in order.values())


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


def test_a_refused_partition_drops_its_units_and_no_others() -> None:
    """A newer owner has one partition: what it had is dropped, the other partition's results are durable."""
    drive = Drive()
    lost, queued, kept = make(0), make(1), make(0, partition=Q)
    drive.take(lost, queued)
    drive.take(kept)
    drive.back(kept)
    effects = drive.back(lost) + drive.tick(0.005)
    assert of(m.Commit, effects)[0].offsets == {P: 1, Q: 1}
    drive.step(m.Committed(1, frozenset({P})))
    assert kept.state is State.FINISHED
    assert queued.state is State.DROPPED
    assert set(drive.engine.partitions) == {Q}
    assert drive.engine.unfinished() == 0
    assert drive.engine.running == 0
    assert drive.step(m.Returned(queued, "late")) == []


def test_a_refused_partition_that_comes_back_is_handled_again() -> None:
    """After a refusal the same record, delivered once more to us, is claimed and not left behind a dead leader."""
    drive = Drive()
    lost = make(0)
    drive.take(lost)
    assert len(of(m.Commit, drive.back(lost))) == 1
    drive.step(m.Committed(1, frozenset({P})))
    drive.step(m.Assigned(P, 0))
    again = make(0)
    assert [list(claim.units) for claim in of(m.Claim, drive.fetch(again))] == [[again]]


def test_a_failed_commit_flushes_the_same_values_again() -> None:
    """What is not known to be durable is committed again as it was, after a pause, and nothing is invoked anew."""
    drive = Drive(m.Limits(failure_s=0.5))
    unit = make(0)
    drive.take(unit)
    first = of(m.Commit, drive.back(unit))[0]
    effects = drive.step(m.CommitFailed(first.flush))
    assert of(m.Commit, effects) == []
    assert drive.engine.wake_at_s == 0.5
    assert of(m.Commit, drive.tick(0.4)) == []
    effects = drive.tick(0.1)
    second = of(m.Commit, effects)[0]
    assert list(second.units) == [unit]
    assert unit.result == "result 0"
    assert second.offsets == first.offsets == {P: 1}
    assert second.flush != first.flush
    assert of(m.Invoke, effects) == []
    drive.step(m.Committed(second.flush))
    assert unit.state is State.FINISHED


def test_one_flush_is_in_flight_at_a_time() -> None:
    """Results that come during a flush wait for the next one."""
    drive = Drive(m.Limits(flush_units=1))
    first, second = make(0), make(1)
    drive.take(first, second)
    assert len(of(m.Commit, drive.back(first))) == 1
    assert of(m.Commit, drive.back(second)) == []
    assert [list(each.units) for each in of(m.Commit, drive.step(m.Committed(1)))] == [[second]]


def test_a_flush_is_due_by_number_and_by_time() -> None:
    """While a handler is at work results are flushed when there are enough, or when the first has waited."""
    drive = Drive(m.Limits(flush_units=2, flush_s=0.005))
    units = [make(offset, str(offset)) for offset in range(5)]
    drive.take(*units)
    assert of(m.Commit, drive.back(units[0])) == []
    assert len(of(m.Commit, drive.back(units[1]))) == 1
    drive.step(m.Committed(1))
    assert of(m.Commit, drive.back(units[2])) == []
    assert of(m.Commit, drive.tick(0.004)) == []
    assert len(of(m.Commit, drive.tick(0.002))) == 1


def test_a_revocation_during_a_flush_drops_its_units() -> None:
    """The flush may land; what it held of the revoked partition is not ours to finish, nor what it failed to hold."""
    for answer in (m.Committed(1), m.CommitFailed(1)):
        drive = Drive()
        unit = make(0)
        drive.take(unit)
        drive.back(unit)
        drive.step(m.Revoked([P]))
        assert unit.state is State.DROPPED
        assert of(m.Commit, drive.step(answer)) == []
        assert of(m.Commit, drive.tick(1.0)) == []


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


def test_a_partition_is_paused_at_unfinished_max_and_flows_again_at_half() -> None:
    """Back-pressure by number of records: only the full partition is paused."""
    drive = Drive(m.Limits(unfinished_max=4, flush_units=1))
    units = [make(offset, str(offset)) for offset in range(4)]
    assert of(m.Pause, drive.take(*units)) == [m.Pause(P)]
    assert of(m.Resume, drive.back(units[0])) == []
    assert of(m.Resume, drive.step(m.Committed(1)) + drive.back(units[1])) == [m.Resume(P)]


def test_a_partition_is_paused_by_bytes() -> None:
    """Few large records pause a partition as many small ones do."""
    drive = Drive(m.Limits(unfinished_bytes_max=1_000))
    assert of(m.Pause, drive.take(make(0), payload_bytes=999)) == []
    assert of(m.Pause, drive.take(make(1), payload_bytes=1)) == [m.Pause(P)]


def test_a_partition_is_paused_when_it_is_far_ahead_of_its_watermark() -> None:
    """One slow event bounds how many records would come again after a crash."""
    drive = Drive(m.Limits(unfinished_span_max=10))
    slow = make(0)
    drive.take(slow)
    skipped = [Delivery(offset, 1, 0, ()) for offset in range(1, 10)]
    assert of(m.Pause, drive.step(m.Fetched(P, skipped, 0))) == [m.Pause(P)]
    assert of(m.Resume, drive.back(slow)) == [m.Resume(P)]


def test_draining_gives_back_what_has_not_begun() -> None:
    """A drain waits for what runs, drops the rest, and commits below the first record given back."""
    drive = Drive()
    running, waiting, failed = make(0, "a"), make(1, "a"), make(2, "b")
    drive.take(running, waiting, failed)
    drive.fail(failed, delay_s=60.0)
    assert drive.engine.unflushed([P]) == 1
    drive.step(m.Draining([P]))
    assert (waiting.state, failed.state) == (State.DROPPED, State.DROPPED)
    effects = drive.back(running)
    assert invoked(effects) == []
    assert of(m.Commit, effects)[0].offsets == {P: 1}
    assert drive.engine.unflushed([P]) == 1
    drive.step(m.Committed(1))
    assert drive.engine.unflushed([P]) == 0
    assert invoked(drive.take(make(3, "c"))) == []
    assert invoked(drive.tick(60.0)) == []


def test_a_drain_touches_no_other_partition() -> None:
    """The partition that stays goes on as before."""
    drive = Drive()
    drive.step(m.Draining([P]))
    assert invoked(drive.take(make(0, partition=Q))) == [0]


def test_what_fails_during_a_drain_is_given_back() -> None:
    """There is no time for a retry: whoever gets the partition does it."""
    drive = Drive()
    unit = make(0)
    drive.take(unit)
    drive.step(m.Draining([P]))
    drive.fail(unit)
    assert unit.state is State.DROPPED
    assert drive.engine.unflushed([P]) == 0
    assert drive.engine.running == 0


def test_a_late_result_of_a_revoked_partition_is_dropped() -> None:
    """A handler that returns after its partition has gone changes nothing."""
    drive = Drive()
    unit = make(0)
    drive.take(unit)
    drive.step(m.Revoked([P]))
    assert drive.engine.running == 0
    assert drive.back(unit) == []
    assert drive.fail(unit) == []


def transacts(effects: Iterable[m.Effect]) -> list[list[Unit]]:
    """The units of each transaction that is to begin."""
    return [list(each.units) for each in of(m.Transact, effects)]


def ended(*outcomes: m.Outcome) -> m.Transacted:
    """A transaction came to its end."""
    return m.Transacted(outcomes)


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


def test_log_time_runs_forward_and_not_ahead_of_the_clock() -> None:
    """A key is kept by it: a forged timestamp makes neither that key nor others look old."""
    drive = Drive()
    stamps = (50_000, 10, 900_000, 60_000)
    units = [make(offset, f"lane {offset}") for offset in range(4)]
    drive.step(m.Fetched(P, [Delivery(n, 1, at, [units[n]]) for n, at in enumerate(stamps)], 100_000))
    assert [unit.entry.timestamp_ms for unit in units] == [50_000, 50_000, 100_000, 60_000]
    assert drive.engine.progress_ms(P, drained_ms=None) == 50_000
    drive.claimed(units, Verdict("done"))
    drive.step(m.Committed(1))
    assert drive.engine.progress_ms(P, drained_ms=None) == 60_000
    assert drive.engine.progress_ms(P, drained_ms=100_000) == 100_000
    assert drive.engine.progress_ms(Q, drained_ms=None) is None


def test_unfinished_counts_one_flow() -> None:
    """What a test waits for is the work of its own flow until it is durable."""
    drive = Drive()
    ours, theirs = make(0, "a", flow="ours"), make(1, "b", flow="theirs")
    drive.take(ours, theirs)
    assert (drive.engine.unfinished("ours"), drive.engine.unfinished()) == (1, 2)
    drive.back(ours, theirs)
    assert drive.engine.unfinished("ours") == 1
    drive.step(m.Committed(1))
    assert drive.engine.unfinished() == 0


def test_lanes_are_forgotten_when_they_are_empty() -> None:
    """A million keys in turn leave nothing behind."""
    drive = Drive()
    for offset in range(50):
        unit = make(offset, f"key {offset}")
        drive.take(unit)
        for commit in of(m.Commit, drive.back(unit)):
            drive.step(m.Committed(commit.flush))
    assert drive.engine.partitions[P].lanes == {}


def test_the_diagram_is_drawn_from_the_table() -> None:
    """The picture in the docs names every state the code can be in."""
    drawn = mermaid()
    assert drawn.startswith("stateDiagram-v2\n")
    assert all(str(state) in drawn for state in State)
