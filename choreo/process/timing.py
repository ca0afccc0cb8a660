"""What wakes an instance whose timer is due: an event on a topic of the service's own, like any other event."""

from collections.abc import Iterable

from choreo import envelope as cloudevents
from choreo.core.emission import derived_id
from choreo.envelope import Envelope
from choreo.event import Event
from choreo.instances import Timer
from choreo.record import ProducerRecord


class TimerDue(Event):
    """A timer of an instance is due; made into an event class for each process by `due_class`."""

    key: str
    name: str
    token: str
    number: int


def from_others(events: Iterable[type[Event]]) -> list[type[Event]]:
    """Without those that wake a process: they are its own affair, and no part of what it offers."""
    return [event for event in events if not issubclass(event, TimerDue)]


def due_class(process: str) -> type[TimerDue]:
    """The event class of one process's timers."""

    class Due(TimerDue, type=f"{process}.timer", version=1, topic=f"{process}.timers", key="key"):
        pass

    return Due


def due_record(timer: Timer, due: type[TimerDue], topic: str, source: str, now_s: float) -> ProducerRecord:
    """The record; its id is derived, so that one sent again is dropped.

    The flow's correlation id goes on; there is no cause but time.
    """
    event = due(key=timer.key, name=timer.name, token=timer.token, number=timer.number)
    id_ = derived_id(timer.process, timer.name, timer.key, timer.token, due.event_type, timer.number)
    envelope = Envelope(
        id_,
        source,
        due.event_type,
        version=due.event_version,
        time=cloudevents.rfc3339(now_s),
        correlationid=timer.correlation_id,
    )
    return ProducerRecord(topic, event.record_key(), event.payload(), cloudevents.write(envelope))
