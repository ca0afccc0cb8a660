"""A member that lost its partition in mid-transaction and commits late, on real Kafka: two ways that fail, and ours.

Each time the stale member has read five records, written five outputs and its offset into a transaction, and is out
of the group; the next owner takes the partition, handles the same five and commits; then the stale one commits.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import LeaseLost, TransportError
from choreo.ports import LogCommit
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.transports.kafka import KafkaConsumer, KafkaTransactions
from choreo.transports.kafka import closing as kafka_closing
from choreo.transports.kafka.fencing import transactional_id
from tests.integration.kafka_stage import Owner, fetched, values
from tests.integration.transaction_stage import Hold, TransactionStage

Step = Callable[[], Awaitable[object]]


class Taker(Owner):
    """An assignment with a step before the committed offset is read, and one after it."""

    def __init__(self, *, before: Step | None = None, after: Step | None = None) -> None:
        super().__init__(None)
        self._before, self._after = before, after

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        assert self.consumer is not None
        if self._before is not None:
            await self._before()
        found = {partition: await self.consumer.position(partition, "earliest") for partition in partitions}
        if self._after is not None:
            await self._after()
        for partition, offset in found.items():
            self.consumer.seek(partition, offset)


class Scene(TransactionStage):
    """One input partition of five records, and where their outputs go."""

    async def begin(self) -> None:
        self.source, self.target = await self.topic(), await self.topic()
        self.partition = TopicPartition(self.source, 0)
        await self.transport.send(values(self.source, range(5)))

    async def member(self, **steps: Step) -> tuple[KafkaConsumer, list[Record]]:
        """Join the group and read the five."""
        _, consumer = await self.join(self.source, owner=Taker(**steps))
        return consumer, await fetched(consumer, 5)

    def outputs(self, who: bytes, records: Sequence[Record]) -> list[ProducerRecord]:
        return [ProducerRecord(self.target, b"k", who + b" " + (one.value or b""), ()) for one in records]

    async def write(self, producer: AIOKafkaProducer, who: bytes, records: Sequence[Record]) -> None:
        """All of a transaction but its end, on a bare producer."""
        await producer.begin_transaction()
        for record in self.outputs(who, records):
            await producer.send_and_wait(record.topic, record.value, record.key)
        await producer.send_offsets_to_transaction({KafkaPartition(*self.partition): 5}, self.group)


@pytest.fixture
async def scene(kafka: str) -> AsyncIterator[Scene]:
    async with Scene(kafka) as found:
        await found.begin()
        yield found


def told(who: bytes) -> list[bytes]:
    return [who + b" %d" % number for number in range(5)]


async def test_an_id_a_member_lets_the_zombie_commit(scene: Scene) -> None:
    """The fault: with a transactional id of its own nobody stops the stale one. Ten outputs of five records."""
    stale = await scene.producer(f"{scene.group}-stale")
    consumer, records = await scene.member()
    await scene.write(stale, b"stale", records)
    await consumer.close()

    owner = await scene.producer(f"{scene.group}-owner")
    _, records = await scene.member()
    await scene.write(owner, b"owner", records)
    await owner.commit_transaction()

    await stale.commit_transaction()
    assert sorted(filter(None, await scene.visible(scene.target))) == told(b"owner") + told(b"stale")


async def test_an_offset_read_before_the_fence_lets_the_zombie_commit(scene: Scene) -> None:
    """The fault: an id a partition, but the stale one commits between OffsetFetch and InitProducerId. Ten again."""
    shared = transactional_id("bare", scene.group, scene.partition)
    stale = await scene.producer(shared)
    consumer, records = await scene.member()
    await scene.write(stale, b"stale", records)
    await consumer.close()

    _, records = await scene.member(after=stale.commit_transaction)  # the position was read already
    owner = await scene.producer(shared)
    await scene.write(owner, b"owner", records)
    await owner.commit_transaction()
    assert sorted(filter(None, await scene.visible(scene.target))) == told(b"owner") + told(b"stale")


@pytest.mark.parametrize("begun", [True, False], ids=["in its transaction", "before its transaction"])
async def test_the_zombie_is_fenced_as_choreo_builds_it(scene: Scene, begun: bool) -> None:
    """Fence, then the position, then handle: the stale one learns that it lost its lease. Five outputs."""
    stale, owner = scene.transactions(), scene.transactions()
    consumer, records = await scene.member(before=lambda: stale.fence([scene.partition]))
    late = LogCommit(scene.outputs(b"stale", records), 5)
    hold = Hold(stale, scene.partition)
    if begun:
        committing = asyncio.create_task(stale.commit({scene.partition: late}))
        await hold.reached.wait()
    await consumer.close()

    consumer, records = await scene.member(before=lambda: owner.fence([scene.partition]))
    part = LogCommit(scene.outputs(b"owner", records), 5)
    assert await owner.commit({scene.partition: part}) == {scene.partition: None}

    hold.go.set()
    answer = await (committing if begun else stale.commit({scene.partition: late}))
    assert isinstance(answer[scene.partition], LeaseLost)
    assert await scene.visible(scene.target) == told(b"owner")
    assert await consumer.position(scene.partition, "earliest") == 5


async def test_a_zombie_that_committed_before_the_fence_is_seen(scene: Scene) -> None:
    """The same race the other way: its commit came first, so the owner begins behind it and handles nothing twice."""
    stale, owner = scene.transactions(), scene.transactions()
    consumer, records = await scene.member(before=lambda: stale.fence([scene.partition]))
    await consumer.close()
    late = LogCommit(scene.outputs(b"stale", records), 5)
    assert await stale.commit({scene.partition: late}) == {scene.partition: None}
    await owner.fence([scene.partition])
    _, consumer = await scene.join(scene.source, None)
    assert await consumer.position(scene.partition, "earliest") == 5
    assert await scene.visible(scene.target) == told(b"stale")


def delayed(producer: AIOKafkaProducer, request: str) -> Callable[[], Awaitable[Any]]:
    """Hold the first such request up, as if its connection had been lost; call the result to deliver it."""
    real, held = producer.client.send, list[tuple[Any, Any]]()

    async def send(node: int, message: Any, **options: Any) -> Any:
        if type(message).__name__ == request and not held:
            held.append((node, message))
            raise KafkaConnectionError("lost, so it seems")
        return await real(node, message, **options)

    async def deliver() -> Any:
        ((node, message),) = held
        client = AIOKafkaClient(bootstrap_servers=producer.client._bootstrap_servers)
        await client.bootstrap()
        try:
            return await client.send(node, message)
        finally:
            await client.close()

    producer.client.send = send
    return deliver


async def test_canary_a_late_end_commits_half_of_the_next_transaction(scene: Scene) -> None:
    """The fault of the bare client, which repeats EndTxn: the first one arrives when the next has begun."""
    producer = await scene.producer(f"bare-{uuid4()}")
    late = delayed(producer, "EndTxnRequest")
    await producer.begin_transaction()
    await producer.send_and_wait(scene.target, b"whole", b"k")
    await producer.commit_transaction()
    await producer.begin_transaction()
    await producer.send_and_wait(scene.target, b"first half", b"k")
    await late()
    await kafka_closing.discard(producer)  # the second half is never written
    await scene.producer(producer._txn_manager.transactional_id)
    assert await scene.visible(scene.target) == [b"whole", b"first half"]


@pytest.mark.parametrize("request_", ["EndTxnRequest", "TxnOffsetCommitRequest"])
async def test_a_late_request_is_fenced_as_choreo_builds_it(scene: Scene, request_: str) -> None:
    """A request whose answer was lost ends the producer, so whenever it arrives it is of an old epoch."""
    transactions, where = scene.transactions(), scene.partition
    await transactions.fence([where])
    late = delayed(transactions._producers.fenced[where].producer, request_)
    first = LogCommit([ProducerRecord(scene.target, b"k", b"first", ())], 1)
    assert isinstance((await transactions.commit({where: first}))[where], TransportError)
    await transactions.fence([where])
    assert await transactions.commit({where: first}) == {where: None}
    hold = Hold(transactions, where)
    second = LogCommit([ProducerRecord(scene.target, b"k", b"second", ())], 2)
    committing = asyncio.create_task(transactions.commit({where: second}))
    await hold.reached.wait()
    await late()
    assert await scene.visible(scene.target) == [b"first"]
    hold.go.set()
    assert await committing == {where: None}
    _, consumer = await scene.join(scene.source, None)
    assert await consumer.position(where, "earliest") == 2
    assert await scene.visible(scene.target) == [b"first", b"second"]


async def test_an_owner_that_fences_its_own_commit_has_not_lost_its_lease(scene: Scene) -> None:
    """The commit under way is in doubt, not lost to a stranger; the partition is ours to commit for again."""
    transactions, where = scene.transactions(), scene.partition
    await transactions.fence([where])
    hold = Hold(transactions, where)
    part = LogCommit([ProducerRecord(scene.target, b"k", b"once", ())], 1)
    committing = asyncio.create_task(transactions.commit({where: part}))
    await hold.reached.wait()
    await transactions.fence([where])
    hold.go.set()
    assert "fenced anew" in str((await committing)[where])
    assert await transactions.commit({where: part}) == {where: None}
    assert await scene.visible(scene.target) == [b"once"]


async def test_two_owners_that_take_from_each_other_at_random_handle_each_record_once(scene: Scene) -> None:
    """Connections are cut at random too: whatever each believes, what is committed is whole and in order."""
    count, chance = 600, random.Random(7)
    await scene.transport.send(values(scene.source, range(5, count)))
    _, consumer = await scene.join(await scene.topic(), None)
    lost, doubts = 0, 0

    async def own(transactions: KafkaTransactions) -> None:
        nonlocal lost, doubts
        position = 0
        while position < count:
            await transactions.fence([scene.partition])
            position = await consumer.position(scene.partition, "earliest")
            error = None
            while position < count and error is None:
                await asyncio.sleep(chance.random() * 0.02)
                end = min(count, position + chance.randint(1, 8))
                records = [ProducerRecord(scene.target, b"k", b"%d" % n, ()) for n in range(position, end)]
                if chance.random() < 0.1:
                    asyncio.get_running_loop().call_later(chance.random() * 0.02, cut, transactions)
                error = (await transactions.commit({scene.partition: LogCommit(records, end)}))[scene.partition]
                position = end
            lost += isinstance(error, LeaseLost)
            doubts += isinstance(error, TransportError)
            await asyncio.sleep(chance.random() * 0.2)
            position = await consumer.position(scene.partition, "earliest")

    def cut(transactions: KafkaTransactions) -> None:
        for fenced in transactions._producers.fenced.values():
            for connection in list(fenced.producer.client._conns.values()):
                connection.close()

    async with asyncio.timeout(60):
        await asyncio.gather(own(scene.transactions()), own(scene.transactions()))
    assert lost > 3
    assert doubts > 0
    assert await scene.visible(scene.target) == [b"%d" % n for n in range(count)]
