"""Runs a process: one handler that loads an instance, takes the steps its definition says, and stores the outcome.

All of it happens in the transaction that the event's key commits in. What wakes an instance when a timer is due comes
as an event of the process's own topic, and is dropped as a duplicate like any other.
"""

from collections.abc import Sequence
from typing import Any, cast

import orjson

from choreo.context import Context
from choreo.core import process as core
from choreo.core.definition import DEFERRED_MAX, State
from choreo.core.emission import key_digest
from choreo.errors import Reject, UndeclaredEmission, UnknownVersion
from choreo.event import Event
from choreo.instances import Instance, Instances, Timer
from choreo.process.declaring import ProcessManager
from choreo.process.states import Action
from choreo.process.timing import TimerDue, due_class
from choreo.process.versions import Versions
from choreo.service import Service

STEPS_MAX = 1_000
"""Of one event with the deferred ones it lets go on: more is a definition that goes round in a circle."""


class Process(Versions):
    """Every version of one process that this build knows, and the service that runs them.

    Attributes:
        due: The event that comes when a timer of its instances is due.
        service: Its one handler takes every event that some version takes.
    """

    def __init__(self, newest: type[ProcessManager]) -> None:
        super().__init__(newest)
        self.due = due_class(self.name)
        self.service = Service(self.name)
        versions = self.versions.values()
        events = tuple(dict.fromkeys(event for each in versions for event in each.classes.values()))
        emits = tuple(dict.fromkeys(event for each in versions for event in each.made.emits()))
        self.service.handler(*events, self.due, name="process", emits=emits)(self._handler(events))

    def _handler(self, events: Sequence[type[Event]]) -> Any:
        def handle(event: Event, instances: Instances, ctx: Context) -> list[Event]:
            return Turn(self, instances, ctx).take(event)

        return handle


class Turn:
    """One event and its instance."""

    def __init__(self, process: Versions, instances: Instances, context: Context) -> None:
        self._process = process
        self._instances = instances
        self._context = context
        self._emits: list[Event] = []
        self._steps = 0
        self._old: Instance | None = None
        self._version = process.newest
        self._state: str | None = None
        self._self: ProcessManager | None = None
        self._deferred: list[Any] = []
        self._set = 0

    def take(self, event: Event) -> list[Event]:
        """What is emitted; the instance and its timers are stored."""
        flow = self._context.envelope.correlationid
        key = event.key if isinstance(event, TimerDue) else self._process.key_of(event, flow)
        if not self._load(key):
            self._pass(event, core.Passed("late", self._version.definition.late == "reject"))
            return []
        if isinstance(event, TimerDue):
            self._fire(key, event)
        else:
            passed = self._apply(key, event)
            if isinstance(passed, core.Kept):
                self._keep(event)
            elif passed is not None:
                self._pass(event, passed)
        self._release(key)
        self._save(key)
        return self._emits

    def _load(self, key: str) -> bool:
        """False: it has ended under a version that this build need not know any more."""
        old = self._old = self._instances.load(self._process.name, key)
        if old is None:
            return True
        if old.ended and old.version not in self._process.versions:
            self._state = old.state
            return False
        try:
            self._version = self._process.version(old.version)
            if old.state and not self._version.has(old.state):
                raise UnknownVersion(
                    f"an instance of {self._process.name} v{old.version} is in the state {old.state!r}, which this "
                    "build's definition of that version does not have: deploy one that has it, or move it with "
                    "`choreo instances set-state`"
                )
        except UnknownVersion as error:
            if (old.version, old.state) not in self._process.told:  # once for all of them
                self._process.told.add((old.version, old.state))
                self._context.log.warning("events wait: %s", error)
            raise
        self._deferred = orjson.loads(old.deferred)
        if old.state:
            self._context.correlation_id = old.correlation_id  # whatever flow the event came with
            self._state = old.state
            self._self = self._version.made.model_validate_json(old.data)
        return True

    def _pass(self, event: Event, passed: core.Passed) -> None:
        """Nothing is done with it.

        Raises:
            Reject: That is not to be passed over.
        """
        if passed.reject and not isinstance(event, TimerDue):
            raise Reject(f"{passed.reason}: {event.event_type} in the state {self._state or '(none)'}")

    def _save(self, key: str) -> None:
        old = self._old
        if self._state is None and not self._deferred:
            return
        ended = self._state is not None and self._version.definition.state(self._state).final
        new = Instance(
            self._process.name,
            key,
            self._version.made.process_version,
            self._state or "",
            self._self.model_dump_json().encode() if self._self is not None else b"{}",
            ended,
            orjson.dumps([] if ended else self._deferred),
            self._context.correlation_id,
            old.revision if old is not None else 0,
            self._instances.now_ms,
        )
        if old is None or new._replace(updated_ms=old.updated_ms) != old:
            self._instances.save(new)

    # ---- steps

    def _apply(self, key: str, event: Event) -> core.Kept | core.Passed | None:
        """Take an event's steps; why not, if the state has none for it."""
        steps = core.on_event(self._version.definition, self._state, event.event_type, self._guard(event))
        for step in steps:
            if isinstance(step, core.Passed):
                self._context.log.info("passed over: %s, in the state %s", step.reason, self._state or "(none)")
            if isinstance(step, (core.Passed, core.Kept)):
                return step
            self._do(key, step, event)
        return None

    def _fire(self, key: str, due: TimerDue) -> None:
        timers = {timer.name: timer for timer in self._instances.timers(self._process.name, key)}
        timer = timers.get(due.name)
        if timer is None or (timer.token, timer.number) != (due.token, due.number):
            self._context.log.info("passed over: the timer %s was cancelled", due.name)
            return
        for step in core.on_timer(self._version.definition, self._state, due.name, due.number):
            match step:
                case core.Next(rule):
                    due_ms = timer.due_ms + round(rule.delay_s * 1000)
                    self._instances.set_timer(timer._replace(due_ms=due_ms, number=timer.number + 1))
                case core.Spent() | core.Passed():
                    self._instances.cancel_timers(self._process.name, key, [due.name])
                case _:
                    self._do(key, step, None)

    def _do(self, key: str, step: core.Step, event: Event | None) -> None:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise Reject(f"more than {STEPS_MAX} steps for one event: its states lead round in a circle")
        if isinstance(step, core.Act):
            self._act(self._version.actions[step.action], step.kind, event)
        elif isinstance(step, core.Enter):
            self._enter(key, step.state)

    def _act(self, action: Action, kind: str, event: Event | None) -> None:
        result = action.call(self._self, event, self._context)
        if kind == "start":
            if not isinstance(result, self._version.made):
                raise UndeclaredEmission(
                    f"{self._process.name}.{action.name} begins an instance, and returned {type(result).__name__}: "
                    f"return a {self._version.made.__name__}"
                )
            self._self = result
            return
        self._emits += _events(self._process.name, action, result)

    def _enter(self, key: str, state: State) -> None:
        self._state = state.name
        self._instances.cancel_timers(self._process.name, key)
        envelope, now_ms = self._context.envelope, self._instances.now_ms
        for rule in state.timers:
            # Of this event and the how manieth it is: set again by a retry, it is the same timer.
            token = key_digest(self._context.idempotency_key, rule.name, str(self._set), "").hex()
            self._set += 1
            self._instances.set_timer(
                Timer(
                    self._process.name,
                    key,
                    rule.name,
                    token,
                    now_ms + round(rule.delay_s * 1000),
                    1,
                    self._context.correlation_id,
                    envelope.traceparent or "",
                )
            )

    def _guard(self, event: Event) -> core.Guard:
        return lambda name: bool(self._version.guards[name](self._self, event))

    # ---- deferred events

    def _keep(self, event: Event) -> None:
        if len(self._deferred) >= DEFERRED_MAX:
            raise Reject(f"the instance keeps {DEFERRED_MAX} events for a later state already")
        self._deferred.append([event.event_type, event.payload().decode()])

    def _release(self, key: str) -> None:
        """Take what was kept and the state takes now, oldest first, until there is no more of it."""
        at = 0
        while self._state is not None and at < len(self._deferred):
            type_, data = self._deferred[at]
            before, class_ = self._state, self._version.classes.get(type_)
            # Of a type that only another version takes: it is kept for who moves the instance there.
            if class_ is None or isinstance(self._apply(key, class_.from_payload(data.encode())), core.Kept):
                at += 1
                continue
            del self._deferred[at]
            at = at if self._state == before else 0


def _events(process: str, action: Action, result: Any) -> list[Event]:
    found = [] if result is None else [result] if isinstance(result, Event) else list(cast(Any, result))
    for event in found:
        if event is not None and not isinstance(event, action.emits):
            declared = " | ".join(each.__name__ for each in action.emits) or "None"
            raise UndeclaredEmission(
                f"{process}.{action.name} returned {type(event).__name__}, and its annotation declares {declared}"
            )
    return [event for event in found if event is not None]
