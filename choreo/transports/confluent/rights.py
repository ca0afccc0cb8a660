"""What a broker lets this client do, asked through librdkafka before anything is consumed."""

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.access import Access
from choreo.errors import TransportError
from choreo.transports.confluent.admin import ConfluentAdmin
from choreo.transports.confluent.client import (
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    error_of,
    made,
    reason,
)

DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)


async def denied_of(
    admin: ConfluentAdmin, arguments: Mapping[str, Any], wanted: Sequence[Access], *, timeout_s: float
) -> list[Access]:
    """Of `wanted` what is not granted; nothing of what the brokers do not tell."""
    topics = [each.name for each in wanted if each.resource == "topic"]
    groups = [each.name for each in wanted if each.resource == "group"]
    options = {"include_authorized_operations": True, "request_timeout": timeout_s}
    answers: dict[tuple[str, str], Any] = {}
    if topics:
        found = admin.client.describe_topics(TopicCollection(topics), **options)
        answers |= {("topic", name): answer for name, answer in found.items()}
    if groups:
        found = admin.client.describe_consumer_groups(groups, **options)
        answers |= {("group", name): answer for name, answer in found.items()}
    denied = []
    for each in wanted:
        if each.resource == "transactional-id":
            granted = await admin.call(lambda prefix=each.name: _may_transact(arguments, prefix, timeout_s))  # type: ignore[misc]
        else:
            granted = await _granted(admin, answers[each.resource, each.name])
        missing = () if granted is None else tuple(name for name in each.operations if _name(name) not in granted)
        if missing:
            denied.append(each._replace(operations=missing))
    return denied


async def _granted(admin: ConfluentAdmin, answer: Any) -> frozenset[str] | None:
    """Names of operations as librdkafka writes them; None: it is not told, or there is no such thing."""
    try:
        told = (await admin.answer(answer)).authorized_operations
    except Exception as error:
        found = error_of(error)
        if found is None:
            raise TransportError(f"rights cannot be read: {reason(error)}") from error
        return frozenset() if found.code() in DENIED else None
    return None if told is None else frozenset(each.name for each in told)


def _may_transact(arguments: Mapping[str, Any], prefix: str, timeout_s: float) -> frozenset[str] | None:
    """By asking for a producer id. Blocks; librdkafka has no way to ask for the right alone."""
    client: Producer = made(Producer, {**arguments, "transactional.id": f"{prefix}check"})
    try:
        client.init_transactions(timeout_s)
    except KafkaException as error:
        found = error_of(error)
        return frozenset() if found is not None and found.code() in DENIED else None
    return frozenset({"WRITE"})


def _name(operation: str) -> str:
    return "DESCRIBE_CONFIGS" if operation == "DescribeConfigs" else operation.upper()
