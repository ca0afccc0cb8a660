"""A store of instances in memory, and a process driven event by event, for tests without a broker."""

from collections.abc import Collection, Sequence
from datetime import timedelta

from choreo import Command, Event
from choreo.context import Context
from choreo.envelope import Envelope
from choreo.errors import StoreError
from choreo.instances import Instance, Timer
from choreo.process import ProcessManager
from choreo.process.interpreting import Process, Turn

START_MS = 1_000_000


class ApprovalRequested(Event, type="approval.requested", version=1, topic="approvals", key="request_id"):
    """Somebody wants something."""

    request_id: str
    manager: str


class Approved(Event, type="approval.approved", version=1, topic="decisions", key="request_id"):
    """The manager says yes."""

    request_id: str


class Rejected(Event, type="approval.rejected", version=1, topic="decisions", key="request_id"):
    """The manager says no."""

    request_id: str
    reason: str = ""


class ReminderDue(Event, type="approval.reminder-due", version=1, topic="reminders", key="request_id"):
    """Somebody is to be reminded."""

    request_id: str
    reminders: int


class Escalated(Event, type="approval.escalated", version=1, topic="reminders", key="request_id"):
    """Somebody else is to decide."""

    request_id: str


class Decided(Event, type="approval.decided", version=1, topic="approvals", key="request_id"):
    """It is over."""

    request_id: str
    approved: bool


class AskManager(Command, type="approval.ask", version=1, topic="questions", key="request_id"):
    """Ask the manager."""

    request_id: str
    manager: str


class Approval(ProcessManager, version=2, by="request_id"):
    """Waits for a decision; reminds twice, then escalates."""

    request_id: str
    manager: str
    reminders: int = 0


waiting, escalated = Approval.state("waiting"), Approval.state("escalated")
done = Approval.final("done")


@Approval.starts(ApprovalRequested, to=waiting)
def opened(requested: ApprovalRequested) -> Approval:
    """It begins."""
    return Approval(request_id=requested.request_id, manager=requested.manager)


@waiting.entry
def ask(self: Approval) -> AskManager:
    """The manager is asked."""
    return AskManager(request_id=self.request_id, manager=self.manager)


@waiting.every(timedelta(days=1), at_most=2)
def remind(self: Approval) -> ReminderDue:
    """Once a day, twice."""
    self.reminders += 1
    return ReminderDue(request_id=self.request_id, reminders=self.reminders)


@waiting.after(timedelta(days=3), to=escalated)
def escalate(self: Approval) -> Escalated:
    """Nobody answered."""
    return Escalated(request_id=self.request_id)


@waiting.on(Approved, Rejected, to=done)
@escalated.on(Approved, Rejected, to=done)
def decide(self: Approval, decision: Approved | Rejected) -> Decided:
    """It is decided."""
    return Decided(request_id=self.request_id, approved=isinstance(decision, Approved))


class Memory:
    """`Instances` in memory; `fire` tells what is due."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.kept: dict[tuple[str, str], Instance] = {}
        self.set: dict[tuple[str, str, str], Timer] = {}

    def load(self, process: str, key: str) -> Instance | None:
        """See `Instances.load`."""
        return self.kept.get((process, key))

    def save(self, instance: Instance) -> None:
        """See `Instances.save`."""
        old = self.kept.get((instance.process, instance.key))
        if (old.revision if old else 0) != instance.revision:
            raise StoreError("stored by somebody else")
        self.kept[instance.process, instance.key] = instance._replace(revision=instance.revision + 1)

    def timers(self, process: str, key: str) -> Sequence[Timer]:
        """See `Instances.timers`."""
        return [timer for where, timer in sorted(self.set.items()) if where[:2] == (process, key)]

    def set_timer(self, timer: Timer) -> None:
        """See `Instances.set_timer`."""
        self.set[timer.process, timer.key, timer.name] = timer

    def cancel_timers(self, process: str, key: str, names: Collection[str] | None = None) -> None:
        """See `Instances.cancel_timers`."""
        for where in list(self.set):
            if where[:2] == (process, key) and (names is None or where[2] in names):
                del self.set[where]


class Driven:
    """A process and its store, given one event after the other."""

    def __init__(self, manager: type[ProcessManager], memory: Memory | None = None) -> None:
        self.process = Process(manager)
        self.memory = memory or Memory()
        self._number = 0

    def take(self, event: Event, *, again: str | None = None) -> list[Event]:
        """What it emits; `again`: the idempotency key of the same event before."""
        self._number += 1
        envelope = Envelope(f"e{self._number}", "/test", event.event_type, correlationid="flow")
        context = Context.fake(idempotency_key=again or f"k{self._number}", envelope=envelope)
        return Turn(self.process, self.memory, context).take(event)

    def wait(self, delay: timedelta) -> list[Event]:
        """Let time go by and fire what comes due, in its order; what is emitted."""
        until_ms = self.memory.now_ms + round(delay.total_seconds() * 1000)
        emitted: list[Event] = []
        while due := [timer for timer in self.memory.set.values() if timer.due_ms <= until_ms]:
            timer = min(due, key=lambda each: (each.due_ms, each.name))
            self.memory.now_ms = timer.due_ms
            emitted += self.take(
                self.process.due(key=timer.key, name=timer.name, token=timer.token, number=timer.number)
            )
        self.memory.now_ms = until_ms
        return emitted

    def at(self, key: str) -> str:
        """The state of an instance."""
        return self.memory.kept[self.process.name, key].state
