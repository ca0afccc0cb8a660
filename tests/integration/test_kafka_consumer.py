"""One member of a group on a real Kafka: what it reads, from where, and that nothing is lost or repeated."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.commit import OffsetFetchResponse_v3
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.ports import Start
from choreo.record import ProducerRecord, TopicPartition
from choreo.transports.kafka.records import RawBatch
from tests.integration.kafka_stage import Stage, fetched, until, values


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[Stage]:
    async with Stage(kafka) as found:
        yield found


async def test_header_key_that_is_no_utf8_is_delivered_among_its_neighbours(stage: Stage) -> None:
    """All records of the batch come out with their offsets, the position moves on, the bytes can be sent again."""
    topic = await stage.topic()
    odd = ProducerRecord(topic, b"k", b"odd", (("a\udcff\udcfe", b"\xff"), ("b", None)))
    producer = AIOKafkaProducer(bootstrap_servers=stage.servers)
    await producer.start()
    batch = RawBatch()
    for record in (*values(topic, [0]), odd, *values(topic, [2])):
        batch.add(record)
    batch.close()
    await (await producer.send_batch(batch, topic, partition=0))
    await producer.stop()
    await stage.transport.send([*values(topic, [3]), odd, *values(topic, [5])])
    _, consumer = await stage.join(topic)
    found = await fetched(consumer, 6)
    assert [each.offset for each in found] == [0, 1, 2, 3, 4, 5]
    assert [each.value for each in found] == [b"0", b"odd", b"2", b"3", b"odd", b"5"]
    assert found[1].headers == found[4].headers == odd.headers
    await consumer.commit({TopicPartition(topic, 0): 6})
    await stage.transport.send(values(topic, [6]))
    assert [each.offset for each in await fetched(consumer, 1)] == [6]
    assert len(await stage.transport.scan([topic], since_ms=0)) == 7


async def test_aborted_records_with_such_a_key_stay_hidden(stage: Stage) -> None:
    """read_committed filtering holds on the lenient path too, and at the very end of a scan."""
    topic = await stage.topic()
    producer = AIOKafkaProducer(bootstrap_servers=stage.servers, transactional_id=topic)
    await producer.start()
    for number, commits in enumerate((True, False, True, False)):
        await producer.begin_transaction()
        batch = RawBatch()
        batch._builder._is_transactional = True
        batch.add(ProducerRecord(topic, b"k", b"%d" % number, (("\udcff", None),)))
        batch.close()
        await (await producer.send_batch(batch, topic, partition=0))
        await (producer.commit_transaction() if commits else producer.abort_transaction())
    await producer.stop()
    _, consumer = await stage.join(topic)
    assert [each.value for each in await fetched(consumer, 2)] == [b"0", b"2"]
    assert not await consumer.fetch(records_max=10, wait_s=0.3)
    assert [each.value for each in await stage.transport.scan([topic], since_ms=0)] == [b"0", b"2"]


async def test_nothing_flows_before_seek(stage: Stage) -> None:
    """Neither a committed offset nor its absence moves a partition; `seek` alone does, and its offset counts."""
    topic = await stage.topic(2)
    await stage.transport.send([ProducerRecord(topic, None, b"%d" % n, (), n % 2) for n in range(20)])
    first = TopicPartition(topic, 0)
    _, consumer = await stage.join(topic)
    await fetched(consumer, 20)
    await consumer.commit({first: 5})
    await consumer.close()
    owner, consumer = await stage.join(topic, start=None)
    await until(lambda _: owner.owned, consumer)
    consumer.resume(first)  # before `seek` this opens nothing
    assert not await consumer.fetch(records_max=100, wait_s=0.7)
    assert await consumer.position(first, "latest") == 5
    consumer.seek(first, 3)
    assert [each.offset for each in await fetched(consumer, 7)] == list(range(3, 10))
    consumer.seek(first, 1)
    assert [each.offset for each in await fetched(consumer, 9)] == list(range(1, 10))


async def test_start_says_where_a_group_begins(stage: Stage) -> None:
    """Without a commit the ends and a time are found; with one they do not matter."""
    topic = await stage.topic()
    where = TopicPartition(topic, 0)
    await stage.transport.send(values(topic, [0, 1]))
    await asyncio.sleep(0.02)
    between_ms = int(time.time() * 1000)
    await asyncio.sleep(0.02)
    await stage.transport.send(values(topic, [2, 3]))
    owner, consumer = await stage.join(topic, start=None)
    await until(lambda _: owner.owned, consumer)
    starts: list[Start] = ["earliest", "latest", between_ms, between_ms + 3_600_000, 0]
    assert [await consumer.position(where, start) for start in starts] == [0, 4, 2, 4, 0]
    await consumer.commit({where: 1})
    assert [await consumer.position(where, start) for start in starts] == [1] * 5


async def test_offset_outside_the_log_is_an_error_that_says_what_was_lost(stage: Stage) -> None:
    """Below the log, above it, and while consuming: never a silent reset."""
    topic = await stage.topic()
    where = TopicPartition(topic, 0)
    await stage.transport.send(values(topic, range(10)))
    owner, consumer = await stage.join(topic, start=None)
    await until(lambda _: owner.owned, consumer)
    await consumer.commit({where: 2})
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.servers)
    await admin.start()
    await admin.delete_records({KafkaPartition(*where): RecordsToDelete(before_offset=6)})
    await admin.close()
    with pytest.raises(TransportError, match=r"offset 2, .* begins at 6: offsets 2 to 5 were deleted.*--to-earliest"):
        await consumer.position(where, "latest")
    consumer.seek(where, 2)
    for _ in range(2):
        with pytest.raises(TransportError, match=r"offset 2, .* begins at 6"):
            await until(lambda _: False, consumer)
    consumer.seek(where, 6)
    assert [each.offset for each in await fetched(consumer, 4)] == [6, 7, 8, 9]
    await consumer.commit({where: 99})
    with pytest.raises(TransportError, match=r"offset 99, .* ends at 10.*--to-earliest.*--to-latest"):
        await consumer.position(where, "earliest")
    await consumer.commit({where: 10})
    assert await consumer.position(where, "earliest") == 10


@pytest.mark.parametrize(("code", "retried"), [(16, True), (14, True), (30, False), (-1, False)])
async def test_offset_fetch_error_is_never_nothing_committed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, code: int, retried: bool
) -> None:
    """The answer's own error code (bug 2) is read; a coordinator that moved or loads is asked again, in bounds."""
    topic = await stage.topic()
    where = TopicPartition(topic, 0)
    await stage.transport.send(values(topic, range(4)))
    owner, consumer = await stage.join(topic, start=None)
    await until(lambda _: owner.owned, consumer)
    await consumer.commit({where: 3})
    coordinator = consumer._consumer._coordinator
    real, wrong = coordinator._send_req, [OffsetFetchResponse_v3(0, [], code)] * 2

    async def answer(request: Any) -> Any:
        return wrong.pop() if wrong and "OffsetFetch" in type(request).__name__ else await real(request)

    monkeypatch.setattr(coordinator, "_send_req", answer)
    if retried:
        assert await consumer.position(where, "latest") == 3
    else:
        with pytest.raises(TransportError, match="cannot be read"):
            await consumer.position(where, "latest")
    wrong.extend([OffsetFetchResponse_v3(0, [], 16)] * 1_000)
    monkeypatch.setattr(consumer, "_timeout_s", 0.5)
    with pytest.raises(TransportError, match="no answer in time"):
        await consumer.position(where, "latest")


async def test_pause_and_resume_lose_and_repeat_nothing_under_load(stage: Stage) -> None:
    """Random pauses between small fetches, while records arrive: every offset once, in order."""
    topic, count = await stage.topic(3), 6_000
    dice = random.Random(1)
    owner, consumer = await stage.join(topic)
    await until(lambda _: owner.owned, consumer)

    async def load() -> None:
        for n in range(0, count, 500):
            await stage.transport.send(
                [ProducerRecord(topic, None, b"v" * 200, (), i % 3) for i in range(n, n + 500)]
            )

    loading = asyncio.create_task(load())
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    paused: set[TopicPartition] = set()
    async with asyncio.timeout(30):
        while sum(map(len, seen.values())) < count:
            for record in await consumer.fetch(
                records_max=dice.choice([1, 7, 300]), wait_s=dice.choice([0, 0.001, 0.05])
            ):
                assert TopicPartition(topic, record.partition) not in paused
                seen[record.partition].append(record.offset)
            for partition in sorted(owner.owned):
                if dice.random() < 0.3:
                    (consumer.resume if partition in paused else consumer.pause)(partition)
                    paused ^= {partition}
    await loading
    assert all(offsets == list(range(count // 3)) for offsets in seen.values())


async def test_cancelled_fetch_loses_nothing(stage: Stage) -> None:
    """A fetch cancelled at any moment leaves its records to the next one."""
    topic = await stage.topic()
    await stage.transport.send(values(topic, range(400)))
    _, consumer = await stage.join(topic)
    seen: list[int] = []
    async with asyncio.timeout(20):
        while len(seen) < 400:
            fetching = asyncio.create_task(consumer.fetch(records_max=10, wait_s=0.2))
            await asyncio.sleep(random.Random(len(seen)).choice([0, 0, 0.002]))
            fetching.cancel()
            done = (await asyncio.gather(fetching, return_exceptions=True))[0]
            if not isinstance(done, BaseException):
                seen.extend(record.offset for record in done)
            seen.extend(record.offset for record in await consumer.fetch(records_max=3, wait_s=0.2))
    assert seen == list(range(400))


async def test_what_was_read_ahead_waits_for_resume(stage: Stage) -> None:
    """Records that came in after a fetch was cancelled are not delivered while their partition is paused."""
    topic = await stage.topic()
    where = TopicPartition(topic, 0)
    owner, consumer = await stage.join(topic)
    await until(lambda _: owner.owned, consumer)
    fetching = asyncio.create_task(consumer.fetch(records_max=10, wait_s=5))
    await asyncio.sleep(0.1)
    fetching.cancel()
    await stage.transport.send(values(topic, range(3)))
    assert consumer._flows._poll is not None
    await asyncio.wait({consumer._flows._poll}, timeout=5)
    consumer.pause(where)
    assert not await consumer.fetch(records_max=10, wait_s=0.3)
    consumer.resume(where)
    assert [each.offset for each in await fetched(consumer, 3)] == [0, 1, 2]


async def test_failed_poll_loses_nothing_it_had_drained(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.14 moves the positions of the partitions it drained before one fails, and drops their records."""
    topic = await stage.topic(2)
    await stage.transport.send([ProducerRecord(topic, None, b"", (), n % 2) for n in range(20)])
    owner, consumer = await stage.join(topic, start=None)
    await until(lambda _: owner.told, consumer)
    fetcher = consumer._consumer._fetcher
    real, failed = fetcher.fetched_records, [False]

    async def drained_then_failed(*args: Any, **options: Any) -> Any:
        found = await real(*args, **options)
        if found and not failed[0]:
            failed[0] = True
            raise CorruptRecordException("another partition")
        return found

    monkeypatch.setattr(fetcher, "fetched_records", drained_then_failed)
    for number in range(2):
        consumer.seek(TopicPartition(topic, number), 0)
    with pytest.raises(TransportError, match="cannot fetch: CorruptRecordException"):
        await until(lambda _: False, consumer)
    found = await fetched(consumer, 20)
    assert sorted(each[1:3] for each in found) == [(p, n) for p in range(2) for n in range(10)]
