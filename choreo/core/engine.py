"""The engine of one service in one process: `step(input, now_s) -> effects`.

It owns what is in flight and in which order things happen. It must not know brokers, stores, handlers or time:
`now_s` comes with every input, and what a handler returned is an opaque value that goes into the commit.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from choreo.core import messages as m
from choreo.core import parking
from choreo.core.alarms import Alarms
from choreo.core.attempts import Attempts
from choreo.core.breaker import Circuits
from choreo.core.claims import Claims
from choreo.core.commit import Commits
from choreo.core.moment import Moment
from choreo.core.partition import Lane, Partition, settle
from choreo.core.pressure import Pressure
from choreo.core.retry import due_in_s
from choreo.core.turns import Turns
from choreo.core.units import (
    CLAIM,
    DROPPED,
    FINISHED,
    RETURNED,
    RUNNING,
    UNFLUSHED,
    Signal,
    State,
    Unit,
    advance,
)
from choreo.record import TopicPartition, new


class Engine:
    """State of everything in flight; `step` is deterministic in its inputs."""

    def __init__(self, limits: m.Limits | None = None) -> None:
        self.limits = limits or m.Limits()
        self.partitions: dict[TopicPartition, Partition] = {}
        self._pressure = Pressure(self.limits)
        self._circuits = Circuits()
        self._turns = Turns(self.limits, self._circuits)
        self._commits = Commits(self.limits, self.partitions)
        self._alarms = Alarms()
        self._moment = Moment()
        self._claims = Claims(self.limits, self._turns, self._alarms, self._commits, self._moment)
        self._attempts = Attempts(self._turns, self._circuits, self._alarms, self._moment, self._drop)
        self._transact_after_s = 0.0
        self._wait_until_s: float | None = None
        self._on: dict[type, Callable[[Any], None]] = {
            m.Assigned: self._assigned,
            m.Fetched: self._fetched,
            m.Claimed: self._claims.claimed,
            m.ClaimFailed: self._claims.failed,
            m.Returned: self._handler_returned,
            m.Raised: self._attempts.raised,
            m.Transacted: self._transacted,
            m.Committed: self._committed,
            m.CommitFailed: self._commit_failed,
            m.Tick: self._ticked,
            m.Draining: self._draining,
            m.Revoked: self._revoked,
        }

    def step(self, message: m.Input, now_s: float) -> list[m.Effect]:
        """Take one input in; returns what is to be done, in order."""
        return self.steps((message,), now_s)

    def steps(self, messages: Iterable[m.Input], now_s: float) -> list[m.Effect]:
        """Take in what has come at once, before anything that follows from it is decided."""
        moment, on = self._moment, self._on
        moment.now_s, moment.out = now_s, []
        for message in messages:
            on[type(message)](message)
        self._wake()
        self._schedule()
        self._flush_if_due()
        if self._pressure:
            moment.out.extend(self._pressure.balance())
        self._wait()
        return moment.out

    # ---- what the runtime asks

    def unflushed(self, partitions: Iterable[TopicPartition]) -> int:
        """Units of `partitions` a drain has to wait for."""
        wanted = set(partitions)
        held = [self.partitions[p] for p in wanted if p in self.partitions]
        queued = sum(unit.state in UNFLUSHED for partition in held for unit in partition.units())
        return queued + sum(unit.partition in wanted and unit.state in UNFLUSHED for unit in self._commits.units())

    def unfinished(self, correlation_id: str | None = None) -> int:
        """Units of one flow, or of all, that are not durable yet."""
        units = [unit for partition in self.partitions.values() for unit in partition.units()]
        units += self._commits.units()
        open_ = {id(u): u for u in units if u.state not in (FINISHED, DROPPED)}
        return sum(correlation_id in (None, unit.correlation_id) for unit in open_.values())

    def waiting(self) -> bool:
        """Whether nothing goes on but waiting for a time: no handler, store or broker is at work."""
        return not (self._turns.running or self._turns.transactions or self._claims.pending or self._commits.flight)

    @property
    def running(self) -> int:
        """Handlers at work outside of a transaction."""
        return self._turns.running

    @property
    def at_store(self) -> bool:
        """Whether a claim or a flush is under way."""
        return bool(self._claims.pending) or self._commits.flight is not None

    @property
    def ready(self) -> int:
        """Lanes that wait for nothing but their turn."""
        return self._turns.ready

    def progress_ms(self, partition: TopicPartition, *, drained_ms: int | None) -> int | None:
        """The log time the committed offset has come to; `drained_ms`, now, if the log holds nothing more of it."""
        found = self.partitions.get(partition)
        return None if found is None else found.progress_ms(drained_ms)

    @property
    def wake_at_s(self) -> float | None:
        """When the next `Tick` is due, if ever."""
        return self._wait_until_s

    # ---- partitions come and go

    def _assigned(self, message: m.Assigned) -> None:
        self.partitions[message.partition] = Partition(message.partition, message.offset)

    def _draining(self, message: m.Draining) -> None:
        for id_ in message.partitions:
            partition = self.partitions.get(id_)
            if partition is not None:
                partition.draining = True
                self._drop([unit for unit in partition.units() if unit.state not in UNFLUSHED])

    def _revoked(self, message: m.Revoked) -> None:
        for id_ in message.partitions:
            partition = self.partitions.pop(id_, None)
            if partition is None:
                continue
            self._pressure.forget(id_)
            flushing = [unit for unit in self._commits.units() if unit.partition == id_]
            self._drop([*partition.units(), *flushing])
            self._commits.forget(id_)
            for lane in partition.lanes.values():
                lane.units.clear()
        self._alarms.forget_dropped()

    def _drop(self, units: Sequence[Unit]) -> None:
        """Give units up, and let a follower elsewhere take a dropped leader's place."""
        dropped: list[Unit] = []
        for unit in units:
            if unit.state in (FINISHED, DROPPED):
                continue
            self._turns.end(unit, began=unit.state is RUNNING)
            self._attempts.ended(unit, trips=None)
            unit.advance(Signal.REVOKED)
            dropped.append(unit)
        self._claims.dropped(dropped)

    # ---- fetches

    def _fetched(self, message: m.Fetched) -> None:
        partition = self.partitions.get(message.partition)
        if partition is None or partition.draining:
            return
        self._pressure.grew([partition])
        led: list[Unit] = []
        now_s, now_ms, take_in, leads = self._moment.now_s, message.now_ms, partition.take_in, self._claims.leads
        for delivery in message.deliveries:
            due_s = now_s
            if delivery.delay_s:
                due_s += due_in_s(delivery.delay_s, timestamp_ms=delivery.timestamp_ms, now_ms=now_ms)
            for unit in take_in(delivery, now_ms):
                lane: Lane = unit.lane
                if due_s > now_s or lane.due_s > now_s:
                    # Not before those that wait ahead of it: one that led them would wait for them, and they for it.
                    lane.due_s = max(lane.due_s, due_s)
                    unit.advance(Signal.EARLY)
                    self._alarms.set(unit, lane.due_s)
                elif leads(unit):
                    led.append(unit)
        advance(led, CLAIM)
        self._claims.claim(led)
        self._commits.progressed(partition, now_s)

    # ---- turns

    def _schedule(self) -> None:
        """Give turns: a suspect alone, everybody else up to the bound on concurrency."""
        suspect = self._turns.suspect()
        if suspect is not None:
            self._claims.claim([suspect], solo=True)
        now_s, out = self._moment.now_s, self._moment.out
        for unit in self._turns.take(now_s):
            out.append(new(m.Invoke, (unit,)) if unit.poison is None else parking.aside(unit, unit.poison))
        if now_s >= self._transact_after_s:
            out.extend(map(m.Transact, self._turns.take_transactable(now_s)))

    def _handler_returned(self, message: m.Returned) -> None:
        unit, result = message
        if unit.state is not RUNNING:
            return
        if unit.breaker is not None:
            self._attempts.ended(unit, trips=False)
        unit.advance(RETURNED)
        unit.result = result
        self._turns.end(unit)
        lane: Lane = unit.lane
        while (head := lane.units.popleft()) is not unit:  # it is given up, and in its transaction others ended
            assert head.state in (FINISHED, DROPPED)
        lane.unflushed += 1
        commits = self._commits
        commits.returned.append(unit)
        if commits.due_s is None:
            commits.note(self._moment.now_s)
        if lane.units:
            self._turns.enqueue(lane)

    # ---- commits

    def _flush_if_due(self) -> None:
        commits, now_s = self._commits, self._moment.now_s
        if commits.flight is not None or now_s < commits.after_s:
            return
        turns, asked = self._turns, self._claims.pending
        idle = not (turns.running or turns.waiting or turns.transactions or turns.transactable or asked)
        if commits.due(now_s, idle=idle):
            effect = commits.begin()
            if effect is not None:
                self._moment.out.append(effect)

    def _committed(self, message: m.Committed) -> None:
        flush = self._commits.land(message.flush, message.refused)
        finished = self._claims.finished
        for unit in flush.units:
            if unit.state is FINISHED:
                finished(unit)
        if message.refused:
            self._drop([unit for unit in flush.units if unit.partition in message.refused])
            self._revoked(m.Revoked(tuple(sorted(message.refused))))
        for partition in self.partitions.values():
            self._commits.progressed(partition, self._moment.now_s)

    def _transacted(self, message: m.Transacted) -> None:
        self._turns.transactions -= 1
        if message.failed:
            self._transact_after_s = self._moment.now_s + self.limits.failure_s
        if message.refused:
            self._revoked(m.Revoked(tuple(sorted(message.refused))))
        for each in message.outcomes:
            self._came_of(each)
        for id_ in dict.fromkeys(each.unit.partition for each in message.outcomes):
            if id_ in self.partitions:
                self._commits.progressed(self.partitions[id_], self._moment.now_s)

    def _came_of(self, outcome: m.Outcome) -> None:
        unit = outcome.unit
        if unit.state is not RUNNING:
            return
        if outcome.raised is not None:
            self._attempts.raised(outcome.raised)
            return
        self._turns.end(unit)
        if unit.breaker is not None:
            self._attempts.ended(unit, trips=None if outcome.result is None else False)
        if outcome.result is None:
            self._attempts.undone(unit)
            return
        unit.result = outcome.result
        unit.advance(Signal.COMMITTED)
        settle((unit,))
        self._claims.finished(unit)

    def _commit_failed(self, message: m.CommitFailed) -> None:
        self._commits.fail(message.flush, self._moment.now_s)
        self._pressure.grew(self.partitions.values())

    # ---- time

    def _ticked(self, _: m.Tick) -> None:
        """The runtime's timer has rung: early, if the clock was set back meanwhile, and then it is to be set anew."""
        self._wait_until_s = None

    def _wake(self) -> None:
        """Let go on whatever waited for a time that has come."""
        again: list[Unit] = []
        now_s, claims = self._moment.now_s, self._claims
        for unit in self._alarms.ring(now_s):
            if unit.state is State.BACKOFF:
                unit.advance(Signal.DUE)
                self._turns.enqueue(unit.lane)
            elif unit.state is State.WAITING:
                unit.advance(Signal.DUE)
                if claims.leads(unit):
                    again.append(unit)
            elif unit.state is State.BUSY and claims.leads_still(unit):
                again.append(unit)
        advance(again, CLAIM)
        claims.claim(again)
        self._turns.let_go(self._circuits.due(now_s))

    def _wait(self) -> None:
        commits = self._commits
        times = [] if self._alarms.next_s is None else [self._alarms.next_s]
        if commits.flight is None and commits.due_s is not None:
            times.append(max(commits.due_s, commits.after_s))
        if self._turns.transactable and self._transact_after_s > self._moment.now_s:
            times.append(self._transact_after_s)
        times.extend(self._circuits.times())
        until_s = min(times, default=None)
        if until_s is not None and until_s != self._wait_until_s:
            self._moment.out.append(m.Wait(until_s))
        self._wait_until_s = until_s
