"""The engine of one service in one process: `step(input, now_s) -> effects`.

It owns what is in flight and in which order things happen. It must not know brokers, stores, handlers or time:
`now_s` comes with every input, and what a handler returned is an opaque value that goes into the commit.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from choreo.core import messages as m
from choreo.core import parking
from choreo.core.alarms import Alarms
from choreo.core.breaker import Circuits
from choreo.core.commit import Commits
from choreo.core.emission import collision_digest
from choreo.core.partition import Lane, Partition, settle
from choreo.core.pressure import Pressure
from choreo.core.retry import delay_s, due_in_s
from choreo.core.turns import Turns, counted
from choreo.core.units import (
    CLAIM,
    CLAIMING,
    DROPPED,
    FINISHED,
    FRESH,
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
        self._keys: dict[bytes, Unit] = {}
        self._claiming = 0
        self._commits = Commits(self.limits, self.partitions)
        self._transact_after_s = 0.0
        self._alarms = Alarms()
        self._wait_until_s: float | None = None
        self._now_s = 0.0
        self._out: list[m.Effect] = []
        self._on: dict[type, Callable[[Any], None]] = {
            m.Assigned: self._assigned,
            m.Fetched: self._fetched,
            m.Claimed: self._claimed,
            m.ClaimFailed: self._claim_failed,
            m.Returned: self._handler_returned,
            m.Raised: self._raised,
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
        self._now_s = now_s
        self._out = []
        on = self._on
        for message in messages:
            on[type(message)](message)
        self._wake()
        self._schedule()
        self._flush_if_due()
        if self._pressure:
            self._out.extend(self._pressure.balance())
        self._wait()
        return self._out

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
        return not (self._turns.running or self._turns.transactions or self._claiming or self._commits.flight)

    @property
    def running(self) -> int:
        """Handlers at work outside of a transaction."""
        return self._turns.running

    @property
    def at_store(self) -> bool:
        """Whether a claim or a flush is under way."""
        return bool(self._claiming) or self._commits.flight is not None

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
            self._attempted(unit, trips=None)
            unit.advance(Signal.REVOKED)
            dropped.append(unit)
        heirs: list[Unit] = []
        for unit in dropped:
            heirs += self._heir(unit)
        self._claim(heirs)

    def _heir(self, unit: Unit) -> list[Unit]:
        """Whoever takes the place of a leader that gives its key up: one of its followers, or nobody."""
        if self._keys.get(unit.digest) is not unit:
            return []
        del self._keys[unit.digest]
        followers = [follower for follower in unit.followers if follower.state is State.FOLLOWING]
        unit.followers = ()
        if not followers:
            return []
        heir, heir.followers = followers[0], followers[1:]
        self._keys[heir.digest] = heir
        heir.advance(CLAIM)
        return [heir]

    # ---- fetch and claim

    def _fetched(self, message: m.Fetched) -> None:
        partition = self.partitions.get(message.partition)
        if partition is None or partition.draining:
            return
        self._pressure.grew([partition])
        led: list[Unit] = []
        now_s, now_ms, take_in, leads = self._now_s, message.now_ms, partition.take_in, self._leads
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
        self._claim(led)
        self._note_progress(partition)

    def _leads(self, unit: Unit) -> bool:
        """Whether the unit is to be claimed; else it follows one in flight that has the same key."""
        leader = self._keys.setdefault(unit.digest, unit)
        if leader is unit:
            return True
        unit.follow(leader)
        return False

    def _claim(self, units: Sequence[Unit], *, solo: bool = False) -> None:
        if units:
            self._claiming += 1
            self._out.append(m.Claim(units, solo))

    def _claimed(self, message: m.Claimed) -> None:
        self._claiming -= 1
        enqueue = self._turns.enqueue
        for unit, verdict in zip(message.units, message.verdicts, strict=True):
            if unit.state is not CLAIMING:
                continue
            said, deliveries, parked = verdict
            if said == "fresh":
                unit.deliveries = deliveries
                if deliveries == 1 and not parked:
                    unit.advance(FRESH)
                else:
                    self._again(unit, parked)
            elif said == "done" or (said == "conflict" and unit.derived):
                self._duplicate(unit)
            elif said == "busy":
                self._ask_again(unit, self.limits.busy_s)
            else:
                self._collided(unit)
            if not unit.lane.queued:
                enqueue(unit.lane)

    def _collided(self, unit: Unit) -> None:
        """Its key is another event's and done: it gets one of its own, in which its dead letter commits."""
        heirs = self._heir(unit)
        unit.digest = collision_digest(unit.digest, unit.fingerprint)
        unit.poison = "id_collision"
        if self._keys.setdefault(unit.digest, unit) is unit:
            self._claim([unit], solo=unit.solo)
        else:
            self._ask_again(unit, self.limits.busy_s)
        self._claim(heirs)

    def _again(self, unit: Unit, parked: bool) -> None:
        """Delivered before, by an owner that died, or its key is parked."""
        if parked and unit.poison is None:
            unit.poison = parking.WAITS
        elif unit.deliveries > self.limits.deliveries_max:
            unit.poison = "crashed"
        suspect = unit.deliveries > self.limits.together_max and not unit.solo and unit.poison is None
        unit.advance(Signal.DIED if suspect else FRESH)

    def _claim_failed(self, message: m.ClaimFailed) -> None:
        self._claiming -= 1
        for unit in message.units:
            if unit.state is CLAIMING:
                self._ask_again(unit, self.limits.failure_s)

    def _ask_again(self, unit: Unit, delay_s: float) -> None:
        self._turns.end(unit, began=False)
        unit.solo = False
        unit.advance(Signal.BUSY)
        self._alarms.set(unit, self._now_s + delay_s)

    def _duplicate(self, unit: Unit) -> None:
        """Handled before, by whomever: it and what follows it here are done, unless its data is another event's."""
        if self._keys.get(unit.digest) is unit:
            del self._keys[unit.digest]
        strangers: list[Unit] = []
        for each in (unit, *unit.followers):
            if each.state is State.FOLLOWING and each.fingerprint != unit.fingerprint and not each.derived:
                each.advance(CLAIM)
                strangers.append(each)
            elif each.state in (CLAIMING, State.FOLLOWING):
                each.advance(Signal.DONE)
                self._out.append(m.Duplicate(each))
                settle((each,))
                self._note_progress(each.lane.partition)
                self._turns.enqueue(each.lane)
        self._turns.end(unit, began=False)
        self._claim(strangers)

    # ---- turns

    def _schedule(self) -> None:
        """Give turns: a suspect alone, everybody else up to the bound on concurrency."""
        suspect = self._turns.suspect()
        if suspect is not None:
            self._claim([suspect], solo=True)
        out = self._out
        for unit in self._turns.take(self._now_s):
            out.append(new(m.Invoke, (unit,)) if unit.poison is None else parking.aside(unit, unit.poison))
        if self._now_s >= self._transact_after_s:
            self._out.extend(map(m.Transact, self._turns.take_transactable(self._now_s)))

    def _handler_returned(self, message: m.Returned) -> None:
        unit, result = message
        if unit.state is not RUNNING:
            return
        if unit.breaker is not None:
            self._attempted(unit, trips=False)
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
            commits.note(self._now_s)
        if lane.units:
            self._turns.enqueue(lane)

    def _raised(self, message: m.Raised) -> None:
        unit = message.unit
        if unit.state is not RUNNING:
            return
        self._attempted(unit, trips=message.trips)
        policy = message.retry or unit.retry
        tried, hopeless = unit.attempts - unit.attempts_before, message.disposition == "dead_letter"
        if message.disposition == "wait":
            unit.attempts -= 1  # nothing was tried, and another build may take over meanwhile
        elif hopeless or tried >= policy.attempts_max:
            if unit.queue is not None:
                self._give_up(unit, message.reason)
                return
            if not counted(unit):
                self._turns.running += 1
                unit.poison = message.reason
            given_up = m.Delay if unit.delayable and not hopeless else m.DeadLetter
            self._out.append(given_up(unit, message.reason))
            return
        self._turns.end(unit)
        unit.advance(Signal.RAISED)
        if self.partitions[unit.partition].draining:
            self._drop([unit])
            return
        wait_s = message.delay_s
        if wait_s is None:
            wait_s = delay_s(policy, attempt=tried, seed=unit.digest)
        self._alarms.set(unit, self._now_s + wait_s)

    def _give_up(self, unit: Unit, reason: str) -> None:
        """To be parked in its turn, which is when all before it is durable."""
        self._turns.end(unit)
        unit.poison = reason
        self._ready_again(unit)

    def _ready_again(self, unit: Unit) -> None:
        unit.advance(Signal.SKIPPED)
        if self.partitions[unit.partition].draining:
            self._drop([unit])
        else:
            self._turns.enqueue(unit.lane)

    def _attempted(self, unit: Unit, *, trips: bool | None) -> None:
        """An attempt is over: its handler's breaker may open or close by it."""
        if unit.breaker is None:
            return
        circuit, lanes = self._circuits.ended(unit, self._now_s, trips=trips)
        if circuit is not None:
            self._out.append(m.Broken(unit.handler, None if circuit.closed else circuit.breaker.pause_s))
        self._let_go(lanes)

    def _let_go(self, lanes: Iterable[Lane]) -> None:
        """Queue lanes that a breaker has held."""
        for lane in lanes:
            lane.queued = False
            self._turns.enqueue(lane)

    # ---- commits

    def _flush_if_due(self) -> None:
        commits = self._commits
        if commits.flight is not None or self._now_s < commits.after_s:
            return
        turns = self._turns
        idle = not (turns.running or turns.waiting or turns.transactions or turns.transactable or self._claiming)
        if commits.due(self._now_s, idle=idle):
            effect = commits.begin()
            if effect is not None:
                self._out.append(effect)

    def _committed(self, message: m.Committed) -> None:
        flush = self._commits.land(message.flush, message.refused)
        for unit in flush.units:
            if unit.state is FINISHED:
                self._finished(unit)
        if message.refused:
            self._drop([unit for unit in flush.units if unit.partition in message.refused])
            self._revoked(m.Revoked(tuple(sorted(message.refused))))
        for partition in self.partitions.values():
            self._note_progress(partition)

    def _transacted(self, message: m.Transacted) -> None:
        self._turns.transactions -= 1
        if message.failed:
            self._transact_after_s = self._now_s + self.limits.failure_s
        if message.refused:
            self._revoked(m.Revoked(tuple(sorted(message.refused))))
        for each in message.outcomes:
            self._came_of(each)
        for id_ in dict.fromkeys(each.unit.partition for each in message.outcomes):
            if id_ in self.partitions:
                self._note_progress(self.partitions[id_])

    def _came_of(self, outcome: m.Outcome) -> None:
        unit = outcome.unit
        if unit.state is not RUNNING:
            return
        if outcome.raised is not None:
            self._raised(outcome.raised)
            return
        self._turns.end(unit)
        self._attempted(unit, trips=None if outcome.result is None else False)
        if outcome.result is None:
            unit.attempts -= 1
            self._ready_again(unit)
            return
        unit.result = outcome.result
        unit.advance(Signal.COMMITTED)
        settle((unit,))
        self._finished(unit)

    def _finished(self, unit: Unit) -> None:
        """Durable: whatever followed it with the same key is a duplicate."""
        if unit.queue is not None:
            parking.landed(unit)
        if unit.followers:
            self._duplicate(unit)
        elif self._keys.get(unit.digest) is unit:
            del self._keys[unit.digest]
        if not unit.lane.queued:
            self._turns.enqueue(unit.lane)

    def _commit_failed(self, message: m.CommitFailed) -> None:
        self._commits.fail(message.flush, self._now_s)
        self._pressure.grew(self.partitions.values())

    def _note_progress(self, partition: Partition) -> None:
        if partition.watermark() > partition.committed:
            self._commits.note(self._now_s)

    # ---- time

    def _ticked(self, _: m.Tick) -> None:
        """The runtime's timer has rung: early, if the clock was set back meanwhile, and then it is to be set anew."""
        self._wait_until_s = None

    def _wake(self) -> None:
        """Let go on whatever waited for a time that has come."""
        again: list[Unit] = []
        for unit in self._alarms.ring(self._now_s):
            if unit.state is State.BACKOFF:
                unit.advance(Signal.DUE)
                self._turns.enqueue(unit.lane)
            elif unit.state is State.WAITING:
                unit.advance(Signal.DUE)
                if self._leads(unit):
                    again.append(unit)
            elif unit.state is State.BUSY:
                if self._keys.setdefault(unit.digest, unit) is unit:
                    again.append(unit)
                else:  # one that collided with the same event before it is on its way: as it ends, so does this one
                    self._alarms.set(unit, self._now_s + self.limits.busy_s)
        advance(again, CLAIM)
        self._claim(again)
        self._let_go(self._circuits.due(self._now_s))

    def _wait(self) -> None:
        commits = self._commits
        times = [] if self._alarms.next_s is None else [self._alarms.next_s]
        if commits.flight is None and commits.due_s is not None:
            times.append(max(commits.due_s, commits.after_s))
        if self._turns.transactable and self._transact_after_s > self._now_s:
            times.append(self._transact_after_s)
        times.extend(self._circuits.times())
        until_s = min(times, default=None)
        if until_s is not None and until_s != self._wait_until_s:
            self._out.append(m.Wait(until_s))
        self._wait_until_s = until_s
