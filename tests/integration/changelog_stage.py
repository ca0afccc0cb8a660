"""What the tests of the changelog store play on: topics, stores of several processes, commits that go wrong."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Self
from uuid import uuid4

from aiokafka.admin import AIOKafkaAdminClient

from choreo.errors import TransportError
from choreo.ports import ClaimRequest, CommitRequest, Finished, Lease, LogCommit, TopicSpec, Transactions
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.stores.changelog import ChangelogStore, changelog_specs, changelog_topic
from choreo.transports.kafka import KafkaTransport

FINGERPRINT = b"12345678"


def digest(number: int) -> bytes:
    """A key."""
    return number.to_bytes(8, "big") * 2


class Unsure:
    """Real transactions; of the next commit nobody learns the outcome, and a test is told of moments before calls."""

    def __init__(self, real: Transactions) -> None:
        self._real = real
        self.next: Literal["committed", "not committed", "hangs"] | None = None
        self.breaks = 0
        self.read_from: list[int] = []
        self.fences = 0
        self.moment: Callable[[str], Awaitable[None]] | None = None

    async def commit(self, parts: Mapping[TopicPartition, LogCommit]) -> Mapping[TopicPartition, Exception | None]:
        """Commit, perhaps, and say nothing of it."""
        what, self.next = self.next, None
        if what is None:
            return await self._real.commit(parts)
        if what != "not committed":
            assert set((await self._real.commit(parts)).values()) == {None}
        if what == "hangs":
            await asyncio.Event().wait()
        return dict.fromkeys(parts, TransportError("the connection was lost"))

    async def fence(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Counted."""
        self.fences += 1
        if self.moment is not None:
            await self.moment("fence")
        return await self._real.fence(partitions)

    async def give_up(self, partitions: Sequence[TopicPartition]) -> None:
        """As it is."""
        await self._real.give_up(partitions)

    async def read(self, partition: TopicPartition, offset: int) -> AsyncIterator[Sequence[Record]]:
        """A test may do something at that moment."""
        if self.moment is not None:
            await self.moment("read")
        self.read_from.append(offset)
        async for batch in self._real.read(partition, offset):
            yield batch
            if self.breaks:
                self.breaks -= 1
                raise TransportError("the connection was lost")

    async def close(self) -> None:
        """As it is."""
        await self._real.close()


class UnsureTransport(KafkaTransport):
    """A KafkaTransport whose transactions are `Unsure`."""

    unsure: Unsure

    def transactions(self, group: str) -> Any:
        """Kept, so that a test can say what is to happen."""
        self.unsure = Unsure(super().transactions(group))
        return self.unsure


class ChangelogStage:
    """One group with an input and an output topic, and the stores of it that a test opened."""

    open_stages = 0

    def __init__(self, servers: str, *, partitions: int = 2, config: Mapping[str, str] | None = None) -> None:
        self.servers = servers
        self.group = f"group-{uuid4()}"
        self.input, self.output = f"input-{uuid4()}", f"output-{uuid4()}"
        self.transport = UnsureTransport(servers)
        self._partitions, self._config = partitions, config or {}
        self._open: list[ChangelogStore | KafkaTransport] = [self.transport]

    async def __aenter__(self) -> Self:
        inputs = {self.input: TopicSpec(self.input, self._partitions)}
        (spec,) = changelog_specs(self.group, inputs)
        spec = spec._replace(config=tuple({**dict(spec.config), **self._config}.items()))
        ChangelogStage.open_stages += 1
        await self.transport.create_topics([*inputs.values(), TopicSpec(self.output, 1), spec])
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in reversed(self._open):
            await each.close()
        ChangelogStage.open_stages -= 1
        if ChangelogStage.open_stages:
            return
        left = [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not [each for each in left if "aiokafka" in each], "aiokafka still runs"

    async def store(self, transport: KafkaTransport | None = None, **options: Any) -> ChangelogStore:
        """A store as of another process; on a transport of its own unless one is given."""
        if transport is None:
            transport = KafkaTransport(self.servers)
            self._open.append(transport)
        store = ChangelogStore(transport, self.group, **options)
        self._open.append(store)
        await store.open()
        return store

    def partition(self, number: int = 0) -> TopicPartition:
        """Of the input topic."""
        return TopicPartition(self.input, number)

    def changelog(self, number: int = 0) -> TopicPartition:
        """Beside it."""
        return TopicPartition(changelog_topic(self.group, self.input), number)

    async def lease(self, store: ChangelogStore, number: int = 0, owner: str = "one") -> Lease:
        """Take one partition."""
        (lease,) = await store.acquire(self.group, [self.partition(number)], owner)
        return lease

    async def claim(
        self,
        store: ChangelogStore,
        lease: Lease,
        *numbers: int,
        log_ms: int = 1_000,
        fingerprint: bytes = FINGERPRINT,
    ) -> list[str]:
        """Claim keys; returns the verdicts."""
        requests = [
            ClaimRequest(lease.partition, digest(number), fingerprint, "s.h", number, "flow", log_ms)
            for number in numbers
        ]
        return [each.verdict for each in await store.claim([lease], requests)]

    def request(self, lease: Lease, *numbers: int, offset: int | None = None) -> CommitRequest:
        """A flush of units, each of which emits its number."""
        finished = [self.finished(lease, number) for number in numbers]
        after = max(numbers, default=0) + 1 if offset is None else offset
        return CommitRequest({lease.partition: lease}, finished, {lease.partition: after})

    def finished(self, lease: Lease, number: int, *, offset: int | None = None) -> Finished:
        """One unit of `request`."""
        emit = ProducerRecord(self.output, b"k", b"%d" % number, ())
        return Finished(lease.partition, number if offset is None else offset, digest(number), (emit,), "handled")

    async def handle(self, store: ChangelogStore, lease: Lease, *numbers: int, log_ms: int = 1_000) -> None:
        """Claim and commit."""
        assert set(await self.claim(store, lease, *numbers, log_ms=log_ms)) <= {"fresh"}
        assert not (await store.commit(self.request(lease, *numbers))).refused

    async def emitted(self) -> list[int]:
        """What readers under read_committed see, once every transaction has ended."""
        return [int(each.value or b"") for each in await self._read(TopicPartition(self.output, 0))]

    async def kept(self, number: int = 0) -> list[Record]:
        """What is in the changelog partition, as a restore reads it."""
        return await self._read(self.changelog(number))

    async def _read(self, partition: TopicPartition) -> list[Record]:
        transactions = KafkaTransport(self.servers).transactions(self.group)
        batches = [batch async for batch in transactions.read(partition, 0)]
        await transactions.close()
        return [record for batch in batches for record in batch]

    async def stands_at(self, *offsets: int) -> None:
        """Each partition's committed offset is, or is within seconds, this one: commits are answered a bit early."""
        wanted = {tuple(self.partition(number)): offset for number, offset in enumerate(offsets)}
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            for _ in range(50):
                found = await admin.list_consumer_group_offsets(self.group)
                known = {tuple(partition): each.offset for partition, each in found.items()}
                if known == wanted:
                    return
                await asyncio.sleep(0.1)
        finally:
            await admin.close()
        raise AssertionError(f"the group stands at {known}, and not at {wanted}")
