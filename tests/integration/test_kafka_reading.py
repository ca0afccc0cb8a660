"""Looking at a real Kafka: reading what is committed to its end, a partition that is drained, topics that grow."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.record import ProducerRecord, TopicPartition
from choreo.transports.kafka.reading import read_to_end
from tests.integration.kafka_stage import values
from tests.integration.transaction_stage import TransactionStage, read


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[TransactionStage]:
    async with TransactionStage(kafka) as found:
        yield found


async def test_reading_sees_what_is_committed_up_to_the_end(stage: TransactionStage) -> None:
    """Not what was aborted; what is open is waited for, what comes later is not; markers at the end are no end."""
    topic = await stage.topic()
    where = TopicPartition(topic, 0)
    transactions = stage.transactions()
    assert await read(transactions, where) == []
    producer = await stage.producer(f"p-{uuid4()}")
    for number, end in enumerate([producer.commit_transaction, producer.abort_transaction] * 3):
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"%d" % number, b"k")
        await end()
    assert [record.value for record in await read(transactions, where)] == [b"0", b"2", b"4"]
    assert [record.offset for record in await read(transactions, where, 5)] == [8]
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"open", b"k")
    reading = asyncio.create_task(read(transactions, where))
    await asyncio.sleep(0.5)
    assert not reading.done()
    await stage.transport.send(values(topic, [99]))
    await producer.commit_transaction()
    assert [record.value for record in await reading] == [b"0", b"2", b"4", b"open"]
    assert await read(transactions, where, 1_000_000) == []


async def test_reading_behind_a_hanging_transaction_ends_with_an_error(stage: TransactionStage) -> None:
    """It never takes the last stable offset for the end."""
    topic = await stage.topic()
    producer = await stage.producer(f"p-{uuid4()}")
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"open", b"k")
    arguments = {"bootstrap_servers": stage.servers}
    reading = read_to_end(arguments, TopicPartition(topic, 0), 0, open_s=10, stall_s=0.3)
    with pytest.raises(TransportError, match=r"did not get beyond 0 for 0\.3 s"):
        await anext(reading)


async def test_reading_begins_at_the_first_record_there_is(stage: TransactionStage) -> None:
    """Where retention has deleted what was asked for; in several batches, in order."""
    topic = await stage.topic()
    where = TopicPartition(topic, 0)
    await stage.transport.send(values(topic, range(9_000)))
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.servers)
    await admin.start()
    await admin.delete_records({KafkaPartition(*where): RecordsToDelete(before_offset=3_000)})
    await admin.close()
    transactions = stage.transactions()
    batches = [batch async for batch in transactions.read(where, 10)]
    assert len(batches) > 1
    assert [record.offset for batch in batches for record in batch] == list(range(3_000, 9_000))
    async for batch in transactions.read(where, 0):
        assert batch[0].offset == 3_000
        break  # left early: it disconnects all the same


async def test_topics_are_widened(stage: TransactionStage) -> None:
    """New partitions can be written at once; as many or more is left as it is; a topic that is missing is named."""
    small, large = await stage.topic(2), await stage.topic(4)
    await stage.transport.widen({small: 5, large: 3})
    known = await stage.transport.topics()
    assert (known[small].partitions, known[large].partitions) == (5, 4)
    await stage.other().send([ProducerRecord(small, b"k", b"v", (), 4)])
    await stage.transport.widen({small: 5})
    await asyncio.gather(*(stage.transport.widen({large: 6}) for _ in range(3)))
    assert (await stage.transport.topics())[large].partitions == 6
    with pytest.raises(TransportError, match=r"no such topic: no-such-topic"):
        await stage.transport.widen({small: 6, "no-such-topic": 2})
    await stage.transport.widen({})


async def test_a_consumer_knows_when_it_has_drained_a_partition(stage: TransactionStage) -> None:
    """Not before it has looked, nor while anything is left; markers and an open transaction do not count."""
    topic = await stage.topic(2)
    ours, empty = TopicPartition(topic, 0), TopicPartition(topic, 1)
    await stage.transport.send([ProducerRecord(topic, b"k", b"%d" % n, (), 0) for n in range(5)])
    _, consumer = await stage.join(topic)
    assert not consumer.drained(ours)
    found = 0

    async def until_drained() -> None:
        nonlocal found
        async with asyncio.timeout(10):
            while not (consumer.drained(ours) and consumer.drained(empty)):
                found += len(await consumer.fetch(records_max=2, wait_s=0.1))
                assert not consumer.drained(ours) or found >= 5

    await until_drained()
    assert found == 5
    producer = await stage.producer(f"p-{uuid4()}")
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"aborted", b"k", 0)
    await producer.abort_transaction()
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"open", b"k", 0)
    await until_drained()
    consumer.seek(ours, 2)
    assert not consumer.drained(ours)
    found -= 3
    await until_drained()
    assert found == 5
    assert not consumer.drained(TopicPartition("another", 0))
