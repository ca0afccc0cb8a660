"""What wakes a service when no record does: timers of instances, and events in queues of parked keys."""

from collections.abc import Callable
from typing import Any

from choreo.core.retry import Delayed
from choreo.instances import TimerStore
from choreo.parked import ParkedStore
from choreo.process.timing import due_record
from choreo.running.plan import Plan
from choreo.runtime.timers import POLL_S, Heads, TimerPoller
from choreo.runtime.worker import Ports


def timers_of(
    plan: Plan, ports: Ports, topic: Callable[[str], str], *, poll_s: float = POLL_S
) -> TimerPoller[Any] | None:
    """What wakes the instances of the process that a service runs, if it runs one; or what waits in its queues."""
    process = plan.process
    if process is None:
        handlers = plan.service.handlers.values()
        if not any(each.order is not None and isinstance(each.retry, Delayed) for each in handlers):
            return None
        queues: ParkedStore = ports.store  # type: ignore[assignment]  # `check_pair` has seen to it
        return TimerPoller(
            plan.service.name,
            [],
            Heads(plan.service.group, queues),
            ports.transport,
            ports.clock,
            lambda head: head.record,
            poll_s=poll_s,
        )
    due_topic = topic(process.due.event_topic)
    store: TimerStore = ports.store  # type: ignore[assignment]  # `check_pair` has seen to it
    return TimerPoller(
        plan.service.name,
        [process.name],
        store,
        ports.transport,
        ports.clock,
        lambda timer: due_record(timer, process.due, due_topic, plan.service.source, ports.clock.now_s()),
        poll_s=poll_s,
    )
