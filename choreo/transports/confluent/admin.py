"""Topics of a Kafka cluster and the ends of their logs, through librdkafka; what blocks is on threads."""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from choreo.errors import TransportError
from choreo.ports import Start, TopicSpec
from choreo.record import TopicPartition
from choreo.transports.confluent.client import (
    AdminClient,
    ConfigResource,
    ConfigSource,
    IsolationLevel,
    KafkaError,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    error_of,
    made,
    place,
    reason,
)

T = TypeVar("T")

AGAIN_S = 0.05
THREADS = 8
EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
AGAIN = frozenset(
    {
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError._WAIT_COORD,
        KafkaError._TIMED_OUT,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError._NOENT,  # "no leaders found"
    }
)
OUTDATED = frozenset(
    {KafkaError._TIMED_OUT, KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError._NOENT}
)
"""The client goes by metadata from before a leader moved, and fetches none for it (seen in librdkafka 2.16)."""

ONCE_S = 4.0
"""Deadline of one request for offsets; sent to a broker that died, it waits for that one to come back."""

INTERNAL = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"})


def passing(error: BaseException) -> KafkaError | None:
    """librdkafka's error, if the same question may be answered a little later."""
    told = error_of(error)
    return told if told is not None and (told.retriable() or told.code() in AGAIN) else None


class ConfluentAdmin:
    """One admin client, made when first needed. Every call ends within `timeout_s` or raises TransportError."""

    def __init__(self, arguments: Mapping[str, Any], *, timeout_s: float) -> None:
        self._arguments = {**arguments, "socket.timeout.ms": 10_000}
        self._timeout_s = timeout_s
        self._client: AdminClient | None = None
        self._renewed_s = float("-inf")
        self._threads = ThreadPoolExecutor(THREADS, "choreo-kafka-ask")

    async def call(self, function: Callable[[], T]) -> T:
        """Run what blocks on a thread that is not the loop's."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicSpec]:
        """All, or those of `names` that exist, but Kafka's own, with what was set on each.

        Without that where DescribeConfigs is not granted. It is the settings that cost, 3 ms a topic.
        """
        found = await self._metadata()
        listed = {
            name: topic.partitions
            for name, topic in found.items()
            if name not in INTERNAL and (names is None or name in names) and topic.partitions and topic.error is None
        }
        config = await self._config(list(listed))
        return {
            name: TopicSpec(name, len(parts), len(parts[0].replicas), config.get(name, ()))
            for name, parts in listed.items()
        }

    async def partitions(self) -> Mapping[str, int]:
        """How many each topic has, Kafka's own included."""
        return {name: len(topic.partitions) for name, topic in (await self._metadata()).items()}

    async def create_topics(self, wanted: Iterable[TopicSpec]) -> None:
        """Create those that are missing and return when each has its leaders."""
        specs = {spec.name: spec for spec in wanted}
        made_specs = [
            NewTopic(spec.name, spec.partitions, spec.replication, config=dict(spec.config))
            for spec in specs.values()
        ]
        if made_specs:
            answers = self.client.create_topics(made_specs, request_timeout=self._timeout_s)
            await self._each(answers, "created", KafkaError.TOPIC_ALREADY_EXISTS)
            await self._led({name: 1 for name in specs})

    async def widen(self, partitions: Mapping[str, int]) -> None:
        """Give each topic so many partitions, if it has fewer, and return when each has its leaders."""
        found = await self._metadata()
        missing = [name for name in partitions if name not in found]
        if missing:
            raise TransportError(f"no such topic: {', '.join(missing)}")
        narrow = {name: n for name, n in partitions.items() if len(found[name].partitions) < n}
        if narrow:
            wanted = [NewPartitions(name, number) for name, number in narrow.items()]
            answers = self.client.create_partitions(wanted, request_timeout=self._timeout_s)
            # Somebody else may have widened it meanwhile; `_led` looks whether it is wide enough.
            await self._each(answers, "widened", KafkaError.INVALID_PARTITIONS)
            await self._led(narrow)

    async def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        """First offset and high watermark: a committed offset lies between them, both included."""
        first = await self.offsets([partition], EARLIEST)
        end = await self.offsets([partition], LATEST)
        return first[partition], end[partition]

    async def start_offset(self, partition: TopicPartition, start: Start) -> int:
        """Where `start` points. The end is that of read_committed: what is in an open transaction comes after it."""
        return (await self.start_offsets([partition], start))[partition]

    async def start_offsets(self, partitions: Sequence[TopicPartition], start: Start) -> dict[TopicPartition, int]:
        """The same for several."""
        if start == "earliest":
            return await self.offsets(partitions, EARLIEST)
        found: dict[TopicPartition, int] = {}
        if start != "latest":
            found = await self.offsets(partitions, OffsetSpec.for_timestamp(int(start)), committed=True)
        late = [each for each in partitions if found.get(each, -1) < 0]  # no record that late
        if late:
            found.update(await self.offsets(late, LATEST, committed=True))
        return found

    async def offsets(
        self, partitions: Sequence[TopicPartition], spec: OffsetSpec, *, committed: bool = False
    ) -> dict[TopicPartition, int]:
        """ListOffsets; without `committed` the end is that of all that was appended."""
        isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        until_s = time.monotonic() + self._timeout_s
        found: dict[TopicPartition, int] = {}
        pending = list(partitions)
        while pending:
            answers = self.client.list_offsets(
                {place(each): spec for each in pending},
                isolation_level=isolation,
                request_timeout=min(ONCE_S, self._timeout_s),
            )
            asked, pending = pending, []
            for partition, answer in zip(asked, answers.values(), strict=True):
                try:
                    found[partition] = (await self.answer(answer)).offset
                except Exception as error:
                    told = passing(error)
                    if told is None or time.monotonic() > until_s:
                        raise TransportError(f"{partition}: its offsets cannot be read: {reason(error)}") from error
                    self._renew_after(told)
                    pending.append(partition)
            if pending:
                await asyncio.sleep(AGAIN_S)
        return found

    def soon(self, function: Callable[[], None]) -> None:
        """Run it on such a thread, behind what runs there for the same object; nobody waits for it."""
        self._threads.submit(function)

    def _renew_after(self, error: KafkaError) -> None:
        """Have another client ask again, if this one cannot know better; what was asked of it is still answered."""
        now_s = time.monotonic()
        if error.code() not in OUTDATED or self._client is None or now_s < self._renewed_s + ONCE_S:
            return
        former, self._client, self._renewed_s = [self._client], None, now_s
        dropping = threading.Timer(self._timeout_s, former.clear)
        dropping.daemon = True
        dropping.start()

    @property
    def client(self) -> AdminClient:
        """librdkafka's."""
        if self._client is None:
            self._client = made(AdminClient, self._arguments)
        return self._client

    def close(self) -> None:
        """Disconnect; does not wait for what is still asked."""
        self._client = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, answer: "Future[Any]") -> Any:
        """What librdkafka answers, within the deadline."""
        async with asyncio.timeout(self._timeout_s + 1):
            return await asyncio.wrap_future(answer)

    async def _metadata(self) -> Mapping[str, Any]:
        client = self.client
        try:
            found = await self.call(lambda: client.list_topics(timeout=self._timeout_s))
        except Exception as error:
            raise TransportError(f"{self._arguments['bootstrap.servers']}: {reason(error)}") from error
        topics: Mapping[str, Any] = found.topics
        return topics

    async def _config(self, names: Sequence[str]) -> dict[str, tuple[tuple[str, str], ...]]:
        if not names:
            return {}
        found: dict[str, tuple[tuple[str, str], ...]] = {}
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        for resource, answer in self.client.describe_configs(resources, request_timeout=self._timeout_s).items():
            try:
                entries = (await self.answer(answer)).values()
            except Exception as error:
                if error_of(error) is None:
                    raise TransportError(f"configurations of topics cannot be read: {reason(error)}") from error
                continue  # not granted, or deleted meanwhile
            set_here = [each for each in entries if each.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value]
            found[resource.name] = tuple(sorted((each.name, each.value) for each in set_here))
        return found

    async def _each(self, answers: "Mapping[str, Future[Any]]", what: str, fine: int) -> None:
        for name, answer in answers.items():
            try:
                await self.answer(answer)
            except Exception as error:
                found = error_of(error)
                if found is None or found.code() != fine:
                    raise TransportError(f"topic {name!r} cannot be {what}: {reason(error)}") from error

    async def _led(self, partitions: Mapping[str, int]) -> None:
        until_s = time.monotonic() + self._timeout_s
        while True:
            found = await self._metadata()
            late = [name for name, number in partitions.items() if not _is_led(found.get(name), number)]
            if not late:
                return
            if time.monotonic() > until_s:
                raise TransportError(f"{', '.join(late)}: no leaders, or too few partitions, in time")
            await asyncio.sleep(AGAIN_S)


def _is_led(topic: Any, partitions: int) -> bool:
    if topic is None or topic.error is not None or len(topic.partitions) < partitions:
        return False
    return all(each.leader >= 0 for each in topic.partitions.values())
