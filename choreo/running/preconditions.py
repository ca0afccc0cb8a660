"""What must be so before a service consumes: rights, topics, and a store that holds what its handlers ask for."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from choreo.access import lacking
from choreo.errors import ConfigurationError
from choreo.instances import INSTANCES
from choreo.ports import Guarded, IdempotencyStore, TopicSpec, Transport
from choreo.running.plan import Plan, Settings


async def check_rights(
    transport: Transport, plans: Sequence[Plan], topic: Callable[[str], str], *, changelog: bool
) -> None:
    """All that the services need is granted: else it shows at the first emit, or as a topic that is missing.

    Raises:
        ConfigurationError: It is not, as far as the brokers tell; says what is lacking.
    """
    if not isinstance(transport, Guarded):
        return
    wanted = [each for plan in plans for each in plan.needs(topic, changelog=changelog)]
    missing = await transport.lacking(wanted)
    if missing:
        raise ConfigurationError(lacking(transport.principal, missing))


async def check_topics(
    transport: Transport, plans: Sequence[Plan], topic: Callable[[str], str], settings: Settings
) -> list[Plan]:
    """All that are needed are there; the plans, as each service reads its topic of replays too, if there is one.

    Raises:
        ConfigurationError: Some are missing, and the settings do not say to create them.
    """
    needed = {name for plan in plans for name in (*plan.inputs, *plan.outputs)}
    replays = [topic(plan.service.replay_topic) for plan in plans]
    parking = {topic(plan.service.replay_topic) for plan in plans if plan.service.parks}
    there = set(await transport.topics([*needed, *replays]))
    made = set(replays if settings.create_replay_topics else parking if settings.create_topics else ()) - there
    missing = sorted((needed | parking) - there - made)
    if missing and not settings.create_topics:
        raise ConfigurationError(
            f"these topics do not exist: {', '.join(missing)}; create them with "
            "`choreo topics apply MODULE:APP --broker URL`"
        )
    wanted = [TopicSpec(name, settings.partitions) for name in missing]
    wanted += [TopicSpec(name, 1) for name in sorted(made)]
    there |= made
    if wanted:
        await transport.create_topics(wanted)
    return [
        replace(plan, inputs=[*plan.inputs, name]) if name in there else plan
        for plan, name in zip(plans, replays, strict=True)
    ]


async def check_changelog(transport: Transport, plan: Plan, topic: Callable[[str], str], *, create: bool) -> None:
    """Its topics as wide as their inputs, found out before anything is consumed.

    Raises:
        ConfigurationError: One is missing, is not as wide as its input, or is not compacted.
    """
    from choreo.stores import changelog  # not needed, and not imported, with another store

    group, prefix = plan.service.group, topic("")
    inputs = await transport.topics(plan.inputs)
    specs = changelog.changelog_specs(group, inputs, prefix)
    if create:
        await transport.create_topics(specs)
    known = await transport.topics([*plan.inputs, *(spec.name for spec in specs)])
    changelog.check_topics(group, plan.inputs, known, prefix)


def check_pair(plan: Plan, store: IdempotencyStore) -> None:
    """Whether the store can hold what the service's handlers ask for.

    Raises:
        ConfigurationError: It cannot; says which can.
    """
    for bound in plan.handlers:
        label, key = bound.handler.label, bound.handler.idempotency_key
        if bound.transaction == INSTANCES and INSTANCES not in store.transaction_types:
            raise ConfigurationError(
                f"{label} belongs to a process, whose instances and timers commit together with its events' keys; "
                f"the store {store.name} keeps neither. Take a store in PostgreSQL or SQLite"
            )
        if bound.handler.order is not None and "parked" not in store.carries:
            raise ConfigurationError(
                f'{label} has order="key", and the store {store.name} keeps no queues of parked keys. Take a store '
                "in PostgreSQL or SQLite, or leave order= out"
            )
        if bound.transacts and bound.transaction not in store.transaction_types:
            offered = ", ".join(sorted(store.transaction_types - {INSTANCES})) or "none"
            raise ConfigurationError(
                f"{label} asks for {bound.transaction} as its transaction; the store {store.name} offers {offered}"
            )
        if key is None or store.dedupe_scope == "anywhere":
            continue
        for event in bound.handler.events:
            if event.event_key != key:
                raise ConfigurationError(
                    f"{label} has the idempotency key {key!r}, and {event.__name__} is sent by the key "
                    f"{event.event_key!r}: the store {store.name} knows a key only in the partition it came from. "
                    f"Send the event by {key!r}, or take a store in PostgreSQL, SQLite or Redis"
                )
