"""The engine driven by hand: each input is written here, and time is a number."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from choreo.core import messages as m
from choreo.core.units import Delivery, State, Unit, mermaid
from choreo.ports import Claimed as Verdict
from tests.unit.driven_engine import Drive, P, Q, invoked, make, of


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
