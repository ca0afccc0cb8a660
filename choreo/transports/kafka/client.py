"""aiokafka's private API: connections, groups and offsets. Each touch says why; all were seen in aiokafka 0.14.0.

Only this module, kafka/records.py, kafka/runs.py and kafka/batches.py (record batches), kafka/fencing.py and
kafka/closing.py touch it; what they rely on is held by tests/integration/test_kafka_client_contract.py, so that a
newer aiokafka fails there first. Errors leave here as aiokafka's own. Requests are repeated without end: the caller
sets the deadline.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from aiokafka import AIOKafkaConsumer, errors
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.record import TopicPartition

BACKOFF_S = 0.1
KEEP = OffsetCommitRequest.DEFAULT_RETENTION_TIME


async def refusals(
    bootstrap_servers: str, *, timeout_s: float, **arguments: Any
) -> Mapping[str, BaseException | None]:
    """Why no bootstrap server can be talked to within `timeout_s`, by address; empty as soon as one can.

    `aiokafka.conn` is private; `AIOKafkaClient.bootstrap` logs the reason and drops it (0.14: client.py:190).
    """

    async def attempt(host: str, port: int) -> None:
        async with asyncio.timeout(timeout_s):
            connection = await create_conn(host, port, **arguments)
        await connection.close()

    hosts = collect_hosts(bootstrap_servers)
    attempts = {f"{host}:{port}": asyncio.ensure_future(attempt(host, port)) for host, port, _ in hosts}
    pending = set(attempts.values())
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(each.exception() is None for each in done):
                return {}
        return {where: each.exception() for where, each in attempts.items()}
    finally:
        for each in attempts.values():
            each.cancel()
        await asyncio.gather(*attempts.values(), return_exceptions=True)


class GatedSubscription(SubscriptionState):  # type: ignore[misc]  # untyped
    """Partitions are assigned paused and with a position, so aiokafka itself never looks for one.

    0.14 starts reading committed offsets before `on_partitions_assigned` is called (group_coordinator.py:490,
    subscription_state.py:_assign), unchecked, and hands the position, or NoOffsetForPartitionError, to the fetcher.
    """

    def assign_from_subscribed(self, assignment: Iterable[KafkaPartition]) -> None:
        """Assign, and keep the partitions gated."""
        super().assign_from_subscribed(assignment)  # wakes the fetcher, which runs when this step is over
        for partition in assignment:
            state = self._assigned_state(partition)
            state.pause()
            state.seek(0)

    @contextmanager
    def fetch_context(self) -> Iterator[None]:
        """0.14's own lacks the try/finally: one failed `getmany` ends its max-poll protection (line 290)."""
        self._fetch_count += 1
        try:
            yield
        finally:
            self._fetch_count -= 1
            if self._fetch_count == 0:
                self._last_fetch_ended = time.monotonic()


def gated_consumer(**arguments: Any) -> AIOKafkaConsumer:
    """A consumer whose assigned partitions wait for `seek`; to be started before it subscribes."""
    consumer = AIOKafkaConsumer(**arguments)
    consumer._subscription = GatedSubscription()  # read by start() and subscribe() only (0.14: consumer.py:355)
    return consumer


def absent(consumer: AIOKafkaConsumer, topics: Iterable[str]) -> list[str]:
    """Topics the metadata does not know, as it was last read; 0.14 says nothing of one that was deleted."""
    return [topic for topic in topics if consumer._client.cluster.partitions_for_topic(topic) is None]


def at_end(consumer: AIOKafkaConsumer, partition: TopicPartition) -> bool:
    """Whether all that the last fetch saw, up to the last stable offset, was handed out; False before a first one.

    Public are the two ends, not the position: `AIOKafkaConsumer.position` waits for one.
    """
    where = KafkaPartition(*partition)
    if where not in consumer.assignment():
        return False
    state = consumer._subscription._assigned_state(where)
    end = state.lso if state.lso is not None and state.lso >= 0 else state.highwater
    return bool(end is not None and state.has_valid_position and state.position >= end)


def resume(consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
    """Let it flow again, and who waits for records look again: what kafka/runs.py has kept of it comes first."""
    consumer.resume(KafkaPartition(*partition))
    for waiter in list(consumer._fetcher._fetch_waiters):
        if not waiter.done():
            waiter.set_result(None)


class Membership(NamedTuple):
    generation: int
    member: str


def membership(consumer: AIOKafkaConsumer) -> Membership:
    """The generation the consumer is in; aiokafka resets it as soon as it knows that it was evicted."""
    return Membership(consumer._coordinator.generation, consumer._coordinator.member_id)


def keep_heartbeat(consumer: AIOKafkaConsumer) -> None:
    """Beat while `on_partitions_assigned` runs; 0.14 starts only after it (ensure_active_group)."""
    consumer._coordinator._start_heartbeat_task()


def _check(code: int) -> None:
    if code != errors.NoError.errno:
        raise errors.for_code(code)()


async def _ask_coordinator(consumer: AIOKafkaConsumer, request: Any, read: Callable[[Any], Any]) -> Any:
    """Send until answered, also by the next coordinator."""
    coordinator = consumer._coordinator
    while True:
        try:
            await coordinator.ensure_coordinator_known()
            return read(await coordinator._send_req(request))
        except (errors.NotCoordinatorForGroupError, errors.GroupCoordinatorNotAvailableError):
            coordinator.coordinator_dead()
        except errors.KafkaError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(BACKOFF_S)


async def committed(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """The group's committed offset, None if there never was one.

    Not `AIOKafkaConsumer.committed`: 0.14 never reads the answer's own error code (group_coordinator.py:1184), so a
    broker that is no coordinator any more answers "nothing committed".
    """

    def read(answer: Any) -> int | None:
        _check(answer.error_code)
        for topic, partitions in answer.topics:
            for number, offset, _, code in partitions:
                if (topic, number) == partition:
                    _check(code)
                    return None if offset < 0 else int(offset)
        raise errors.UnknownError()

    request = OffsetFetchRequest(consumer._coordinator.group_id, [(partition.topic, [partition.partition])])
    return cast("int | None", await _ask_coordinator(consumer, request, read))


async def commit(consumer: AIOKafkaConsumer, member: Membership, offsets: Mapping[TopicPartition, int]) -> None:
    """Commit as `member`, the generation the offsets belong to.

    Not `AIOKafkaConsumer.commit`: 0.14 takes the generation of the moment, at each retry (group_coordinator.py:1030);
    after an eviction that is -1, which a broker accepts if the group is empty.
    """
    coordinator = consumer._coordinator
    if member.generation < 0:
        raise errors.IllegalGenerationError()
    by_topic: dict[str, list[tuple[int, int, str]]] = {}
    for partition, offset in offsets.items():
        by_topic.setdefault(partition.topic, []).append((partition.partition, offset, ""))

    def read(answer: Any) -> None:
        codes = {(topic, number): code for topic, parts in answer.topics for number, code in parts}
        try:
            for partition in offsets:
                _check(codes.get(partition, errors.UnknownError.errno))
        except errors.RebalanceInProgressError:
            coordinator.request_rejoin()
            raise
        except (errors.UnknownMemberIdError, errors.IllegalGenerationError):
            if membership(consumer) == member:
                coordinator.reset_generation()
            raise

    request = OffsetCommitRequest(coordinator.group_id, *member, KEEP, list(by_topic.items()))
    await _ask_coordinator(consumer, request, read)


async def offset_at(consumer: AIOKafkaConsumer, partition: TopicPartition, when: int, isolation: int) -> int | None:
    """The offset at an end of the log or of the first record at or after `when` ms; None if there is none.

    Not `end_offsets`: that is bound to the consumer's isolation level, and the range check needs the high watermark.
    """
    client = consumer._client
    request = OffsetRequest(-1, isolation, [(partition.topic, [(partition.partition, when)])])
    while True:
        await client._maybe_wait_metadata()
        leader = client.cluster.leader_for_partition(KafkaPartition(*partition))
        try:
            if leader is None or leader == -1:
                raise errors.LeaderNotAvailableError(str(partition))
            answer = await client.send(leader, request)
            for topic, partitions in answer.topics:
                for number, code, _, offset, *_ in partitions:
                    if (topic, number) == partition:
                        _check(code)
                        return None if offset < 0 else int(offset)
            raise errors.UnknownError()
        except errors.KafkaError as error:
            if not error.retriable:
                raise
            await client.add_topic(partition.topic)
            await client.force_metadata_update()
            await asyncio.sleep(BACKOFF_S)
