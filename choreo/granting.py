"""Least privilege: which rights one service needs on Kafka, no more. docs/security.md is its page."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from choreo.access import Access, Operation
from choreo.service import Service


def needs(
    service: Service,
    inputs: Sequence[str],
    outputs: Sequence[str],
    topic: Callable[[str], str],
    *,
    changelog: bool,
) -> list[Access]:
    """Every right, a resource once, topics first.

    Args:
        inputs: Actual names of the topics it reads, but for that of its replays.
        outputs: Of those it writes: emits, dead letters, delayed retries, due timers.
        topic: Logical to actual name.
        changelog: Its keys are kept on the log.
    """
    replays = topic(service.replay_topic)
    found: dict[str, dict[Operation, str]] = {}
    _add(found, inputs, {"Read": "what it handles"})
    _add(found, outputs, {"Write": "what it emits"})
    _add(found, [topic(service.dlq_topic)], {"Write": "its dead letters"})
    _add(found, [replays], {"Read": "replays ordered of it"})
    if service.parks:
        _add(found, [replays], {"Write": "what waited in its queues"})
    if changelog:
        from choreo.stores.changelog import changelog_topic

        keys = [changelog_topic(service.group, name, topic("")) for name in dict.fromkeys((*inputs, replays))]
        why = "its idempotency keys"
        _add(found, keys, {"Read": why, "Write": why, "DescribeConfigs": why})
    rights = [
        Access("topic", name, tuple(told), ", ".join(dict.fromkeys(told.values()))) for name, told in found.items()
    ]
    rights.append(Access("group", service.group, ("Read",), "its consumer group"))
    if changelog:
        from choreo.transports.kafka.fencing import NAMESPACE, transactions_of

        prefix = transactions_of(NAMESPACE, service.group)
        rights.append(Access("transactional-id", prefix, ("Write",), "its commits", prefixed=True))
    return rights


def _add(found: dict[str, dict[Operation, str]], names: Iterable[str], operations: Mapping[Operation, str]) -> None:
    for name in names:
        found.setdefault(name, {}).update(operations)
