"""What must hold in every world that has come to rest, whatever went wrong in it. Yours are functions like these.

Each promise is looked for in what everybody can see: the log, the committed offsets, the keys of the stores.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from choreo.core.retry import Delayed
from choreo.record import Record, TopicPartition
from choreo.testing.simulation.instances import timers, versions

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

Checker = Callable[["World"], Iterable[str] | None]
"""Looks at a world that has come to rest; returns what is wrong with it, a line each."""


def lost(world: "World") -> Iterator[str]:
    """Each record was handled, or made a dead letter of, by every handler that takes it."""
    for name in world.app.services:
        done = world.done(name)
        for record in world.records(*world.inputs(name)):
            for key, handler in world.keys_of(name, record):
                if key not in done:
                    yield f"{record.topic}/{record.partition}@{record.offset} was not handled by {handler}"


def twice(world: "World") -> Iterator[str]:
    """What an event's id stands for is on the log once, where the pair promises so; else every copy is the same."""
    copies = defaultdict(list)
    for record, envelope in world.events():
        if envelope is not None and envelope.causationid:
            copies[envelope.source, envelope.id].append(record)
    for (source, id_), records in copies.items():
        if len(records) > 1 and world.emits_once:
            yield f"{len(records)} copies of {id_} from {source} on {records[0].topic}"
        elif world.emits_alike and len({(each.topic, each.key, each.value) for each in records}) > 1:
            yield f"{id_} from {source} stands for different events"


def out_of_order(world: "World") -> Iterator[str]:
    """What a service emits of one type for the events of one key comes in the order of those events.

    But for those that were replayed: they come after what was handled meanwhile. And but for what a handler with
    `Delayed` emits: it gives this order up, unless it has `order="key"`.
    """
    delayed = {
        (service.source, event.event_type)
        for name, service in world.app.services.items()
        for bound in world.app.bound(name)
        for event in bound.emits
        if isinstance(bound.handler.retry, Delayed) and bound.handler.order is None
    }
    causes: dict[str, Record] = {}
    for record, envelope in world.events():
        if envelope is not None and record.key is not None:
            causes.setdefault(envelope.id, record)
    for id_ in world.replayed():
        causes.pop(id_, None)
    last: dict[tuple[object, ...], int] = {}
    seen = set()
    for record, envelope in world.events():
        if envelope is None or not envelope.causationid or (envelope.source, envelope.id) in seen:
            continue
        seen.add((envelope.source, envelope.id))
        cause = causes.get(envelope.causationid)
        if cause is None or (envelope.source, envelope.type) in delayed:
            continue
        # Emits of one key may have keys, and so partitions, of their own: between those there is no order.
        to = (record.topic, record.partition)
        lane = (envelope.source, envelope.type, cause.topic, cause.partition, cause.key, *to)
        before = last.get(lane, -1)
        if cause.offset < before:
            yield f"{envelope.type} for {cause.topic}/{cause.partition}@{cause.offset} came after that for @{before}"
        last[lane] = max(before, cause.offset)


def offsets(world: "World") -> Iterator[str]:
    """No offset was committed above a record that was not dealt with, and nobody set one back."""
    yield from world.cluster.wrong_offsets


def owned_twice(world: "World") -> Iterator[str]:
    """No partition is given to a member while another one that is up and can be reached still works on it.

    But for one that was put out of its group while it stops: it does not join again to hear what else is taken.
    """
    yield from world.cluster.two_owners


def retries(world: "World") -> Iterator[str]:
    """No handler was called more often for one event than its policy allows, in one life of a process."""
    allowed = {
        bound.handler.label: bound.handler.retry.attempts_total
        for name in world.app.services
        for bound in world.app.bound(name)
    }
    for each in world.invocations:
        if each.attempt > allowed.get(each.handler, each.attempt):
            yield f"{each.handler} was called {each.attempt} times for one event"
    for unit, failed in world.failed.values():  # what the world has counted itself
        if failed > unit.retry.attempts_total:
            label, most = unit.work.bound.handler.label, unit.retry.attempts_total
            yield f"{label} failed {failed} times for one event, which is to be given up after {most}"


def unfinished_flows(world: "World") -> Iterator[str]:
    """Every flow that began has come to one of its ends."""
    types = defaultdict(set)
    for _, envelope in world.events():
        if envelope is not None:
            types[envelope.correlationid].add(envelope.type)
    for flow in world.app.flows:
        ends = {end.event_type for end in flow.ends}
        for id_, event in world.published.items():
            if isinstance(event, flow.starts) and not types[id_] & ends:
                yield f"{flow.name} {id_} ended at none of its ends: {', '.join(sorted(types[id_]))}"


def still_parked(world: "World") -> Iterator[str]:
    """Every key that was parked was released: nothing is left in any queue."""
    for group, handler, key, _ in world.parked():
        yield f"{group} has an event of {key!r} for {handler} in its queue"


def undeclared(world: "World") -> Iterator[str]:
    """No service emitted what none of its handlers declares."""
    declared = {
        service.source: {event.event_type for bound in world.app.bound(name) for event in bound.emits}
        for name, service in world.app.services.items()
    }
    for process in world.app.processes.values():  # its timers are its own affair
        declared[process.service.source].add(process.due.event_type)
    for _, envelope in world.events():
        if envelope is not None and envelope.type not in declared.get(envelope.source, {envelope.type}):
            yield f"{envelope.source} emitted {envelope.type}"


def broken_trees(world: "World") -> Iterator[str]:
    """Every event's cause is on the log, in the same flow; what a process emits is of its instance's."""
    joining = {process.service.source for process in world.app.processes.values()}
    flows = {envelope.id: envelope.correlationid for _, envelope in world.events() if envelope is not None}
    for _, envelope in world.events():
        if envelope is not None and envelope.causationid:
            if envelope.causationid not in flows:
                yield f"the cause of {envelope.type} {envelope.id} is nowhere"
            elif envelope.source in joining and envelope.correlationid in flows.values():
                continue
            elif flows[envelope.causationid] != envelope.correlationid:
                yield f"{envelope.type} {envelope.id} is of another flow than its cause"


CHECKERS: tuple[Checker, ...] = (
    lost,
    twice,
    out_of_order,
    offsets,
    owned_twice,
    retries,
    unfinished_flows,
    still_parked,
    undeclared,
    broken_trees,
    timers,
    versions,
)
"""What choreo promises of every app."""


class OffsetCheck:
    """Looks at every committed offset as it is committed; what is not done then may be done later, and hide it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._checked: dict[tuple[str, TopicPartition], int] = {}
        self._services = {service.group: name for name, service in world.app.services.items()}

    def __call__(self, group: str, partition: TopicPartition, offset: int) -> Iterator[str]:
        """What is wrong with this one."""
        world, where = self._world, (group, partition)
        before = self._checked.get(where, 0)
        # A request that arrives late may set one back, as it may on Kafka, and so may who has just fenced the former
        # owner after a commit of unknown end: what comes again is found done.
        if offset < before and not (world.arriving_late or world.cluster.newest_owner):
            yield f"{group} went back from {partition}@{before} to @{offset}"
        self._checked[where] = offset
        name = self._services[group]
        for record, transaction in world.log.partitions[partition].entries[before:offset]:
            if transaction is not None and not transaction.committed:
                continue
            for key, _ in world.keys_of(name, record):
                if not world.is_done(name, key):
                    yield f"{group} committed {partition}@{offset}, and @{record.offset} is not done"
