"""What a broker lets this client do, asked before anything is consumed: else it shows at the first emit, or never.

Metadata v8 and DescribeGroups v3 (Kafka 2.3) tell what is granted; aiokafka 0.14 knows only the latter. Private API,
as in kafka/client.py; tests/integration/test_kafka_acls.py holds it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from choreo.access import Access, Operation

BACKOFF_S = 0.1
BITS: dict[Operation, int] = {"Read": 1 << 3, "Write": 1 << 4, "Describe": 1 << 8, "DescribeConfigs": 1 << 10}
"""Kafka's numbers of AclOperation."""

_UTF8 = String("utf-8")
_PARTITION = (
    *(("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32)),
    *((name, Array(Int32)) for name in ("replicas", "isr", "offline_replicas")),
)


class _Answer(Response):  # type: ignore[misc]  # untyped
    API_KEY, API_VERSION = 3, 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", _UTF8), ("port", Int32), ("rack", _UTF8))),
        ("cluster_id", _UTF8),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", _UTF8),
                ("is_internal", Boolean),
                ("partitions", Array(*_PARTITION)),
                ("operations", Int32),
            ),
        ),
        ("cluster_operations", Int32),
    )


class _Metadata8(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION, RESPONSE_TYPE = 3, 8, _Answer
    SCHEMA = Schema(("topics", Array(_UTF8)), ("create", Boolean), ("of_cluster", Boolean), ("of_topics", Boolean))


class _Metadata(Request[_Metadata8]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: type[_Metadata8]) -> _Metadata8:
        return request_struct_class(self._topics, False, False, True)


class _Groups3(DescribeGroupsRequest_v3):  # type: ignore[misc]
    RESPONSE_TYPE = DescribeGroupsResponse_v3  # 0.14 reads the answer as one of v2, without what is asked for here


class _Groups(Request[_Groups3]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_Groups3]) -> _Groups3:
        return request_struct_class([self._group], True)


async def denied_of(admin: AIOKafkaAdminClient, wanted: Sequence[Access]) -> list[Access]:
    """Of `wanted` what is not granted; nothing where brokers are too old to tell. The caller sets the deadline."""
    try:
        granted = await _of_topics(admin, [each.name for each in wanted if each.resource == "topic"])
        found = []
        for each in wanted:
            operations = granted.get(each.name) if each.resource == "topic" else await _of_coordinator(admin, each)
            if operations is None:
                continue
            missing = tuple(name for name in each.operations if not operations & BITS[name])
            if missing:
                found.append(each._replace(operations=missing))
        return found
    except (NotImplementedError, errors.IncompatibleBrokerVersion):
        return []


async def _of_topics(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, int]:
    answer = await admin._send_request(_Metadata(names))
    found = {}
    for code, name, _, _, operations in answer.topics:
        if code == errors.TopicAuthorizationFailedError.errno:
            found[name] = 0
        elif code == errors.NoError.errno:
            found[name] = operations
    return found


async def _of_coordinator(admin: AIOKafkaAdminClient, access: Access) -> int | None:
    """What is granted on a group; of transactional ids only whether anything is. None: no answer, so no verdict."""
    is_group = access.resource == "group"
    while True:
        try:
            node = await admin.find_coordinator(access.name if is_group else f"{access.name}check", not is_group)
            if not is_group:
                return ~0
            answer: Any = await admin._send_request(_Groups(access.name), node)
            code, operations = answer.groups[0][0], answer.groups[0][-1]
            if code == errors.NoError.errno:
                return int(operations)
            raise errors.for_code(code)()
        except (errors.GroupAuthorizationFailedError, errors.TransactionalIdAuthorizationFailed):
            return 0
        except errors.KafkaError as error:  # the first group of a new cluster has to wait for its coordinator
            if not error.retriable:
                return None
        await asyncio.sleep(BACKOFF_S)
