"""Faults of aiokafka in reading batches: what the bare client does, and that choreo holds. Seen in aiokafka 0.14.0.

Numbers are those of docs/aiokafka-faults.md. A bare half that fails means that the fault may be mended.
"""

import asyncio
import inspect
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, errors
from aiokafka import codec as aiokafka_codec
from aiokafka.consumer.fetcher import Fetcher, PartitionRecords
from aiokafka.record.legacy_records import _LegacyRecordBatchBuilderPy, _LegacyRecordBatchPy
from aiokafka.structs import TopicPartition as KafkaPartition
from confluent_kafka import Producer

from choreo.errors import TransportError
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.transports.kafka.compression import NAMES, InflatesTooFar
from choreo.transports.kafka.records import LenientRecords, RawBatch
from tests.integration.bare_client import (
    bare_consumer,
    same_version,
    send_batch,
    waited,
)
from tests.integration.kafka_stage import Stage, fetched, until, values

MB = 1024 * 1024


@pytest.fixture(autouse=True)
def _seen_in() -> None:
    """Another version fails here, with what to do."""
    same_version()


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[Stage]:
    """Topics and members of this test."""
    async with Stage(kafka) as found:
        yield found


# ---- 9: a header key that freezes its partition


async def until_something_comes(consumer: AIOKafkaConsumer) -> None:
    """Fetch as an application does."""
    async with asyncio.timeout(5):
        while not await consumer.getmany(timeout_ms=500):
            pass


async def test_9_bare_client_is_frozen_by_a_header_key(stage: Stage) -> None:
    """Every fetch raises, and the good record behind it in the batch is out of reach; choreo reads all three."""
    topic = await stage.topic()
    odd = ProducerRecord(topic, b"k", b"odd", (("a\udcff", b"1"),))
    await send_batch(stage.servers, *values(topic, [0]), odd, *values(topic, [2]))
    where = KafkaPartition(topic, 0)
    async with bare_consumer(stage.servers, topic) as consumer:
        await waited(consumer.assignment)
        for offset in (0, 1, 2):
            consumer.seek(where, offset)
            with pytest.raises(UnicodeDecodeError):
                await until_something_comes(consumer)
    _, ours = await stage.join(topic)
    assert [each.value for each in await fetched(ours, 3)] == [b"0", b"odd", b"2"]


# ---- what other clients compress


@pytest.mark.parametrize("codec", NAMES.values())
async def test_compressed_by_another_client_is_read_or_named(stage: Stage, codec: str) -> None:
    """Batches of librdkafka come out as they were; without the library for them the error says what to install."""
    topic = await stage.topic()

    def produce() -> None:
        producer = Producer({"bootstrap.servers": stage.servers, "compression.type": codec, "linger.ms": 50})
        for number in range(500):
            producer.produce(topic, b"%d " % number * 20, b"k", headers=[("h", b"1")])
        assert producer.flush(10) == 0

    await asyncio.to_thread(produce)
    _, consumer = await stage.join(topic)
    if codec != "gzip" and aiokafka_codec.cramjam is None:
        with pytest.raises(TransportError, match=f"{codec} needs the package cramjam.*--to-offset 500"):
            await until(lambda _: False, consumer)
        return
    found = await fetched(consumer, 500)
    assert [each.value for each in found] == [b"%d " % number * 20 for number in range(500)]
    assert {each.headers for each in found} == {(("h", b"1"),)}


# ---- 10: a small batch that becomes a large one


async def test_10_bare_client_inflates_whatever_it_is_sent(stage: Stage) -> None:
    """96 kB of gzip become 96 MB in memory."""
    topic = await stage.topic()
    await send_batch(stage.servers, ProducerRecord(topic, b"k", bytes(96 * MB), ()), codec=1)
    async with bare_consumer(stage.servers, topic) as consumer:
        found = await asyncio.wait_for(consumer.getone(), 10)
        assert len(found.value) == 96 * MB


async def test_10_choreo_stops_that_partition_and_no_other(stage: Stage) -> None:
    """What is before the batch is handed out, the error names it and the way on, and is said ever more seldom."""
    topic = await stage.topic(2)
    bad, good = TopicPartition(topic, 0), TopicPartition(topic, 1)
    await stage.transport.send([ProducerRecord(topic, None, b"before", (), 0)])
    await send_batch(stage.servers, *[ProducerRecord(topic, b"k", bytes(33 * MB), ())] * 2, codec=1)
    await stage.transport.send([ProducerRecord(topic, None, b"behind", (), 0)])
    owner, consumer = await stage.join(topic)
    found: list[Record] = []
    failures: list[str] = []
    sent = 0
    clock = asyncio.get_running_loop().time
    started_s = clock()
    while clock() - started_s < 4:
        await stage.transport.send([ProducerRecord(topic, None, b"%d" % sent, (), 1)])
        sent += 1
        try:
            found += await consumer.fetch(records_max=10, wait_s=0.1)
        except TransportError as error:
            failures.append(str(error))
    assert [each.value for each in found if each.partition == 0] == [b"before"]
    assert len([each for each in found if each.partition == 1]) > 10
    assert 2 <= len(failures) <= 3, "at 0, 1 and 3 s"
    assert f"{bad}: group '{stage.group}' cannot read the batch at offset 1" in failures[0]
    assert "inflate to more than" in failures[0]
    assert failures[0].endswith("--to-offset 3")
    assert owner.owned == {bad, good}
    consumer.seek(bad, 3)
    assert b"behind" in [
        each.value for each in await until(lambda found: b"behind" in [e.value for e in found], consumer)
    ]


def bomb(codec: int, megabytes: int) -> bytes:
    """A batch of one record that inflates so far."""
    batch = RawBatch()
    batch._builder._compression_type = codec
    batch.add(ProducerRecord("t", b"k", bytes(megabytes * MB), ()))
    return bytes(batch._builder.build())


@pytest.mark.parametrize("codec", NAMES, ids=NAMES.get)
def test_10_memory_stays_within_the_bound(codec: int) -> None:
    """A batch of 64 MB costs less than 3 MB and twice what is on the wire where 1 MB is allowed; 1 MB comes out."""
    if codec != 1 and aiokafka_codec.cramjam is None:
        pytest.skip("cramjam is not installed")
    large, small = bomb(codec, 64), bomb(codec, 1)
    records = LenientRecords(large)
    records.batch_bytes_max = MB
    tracemalloc.start()
    try:
        with pytest.raises(InflatesTooFar, match="inflate to more than"):
            list(records.next_batch())
        assert tracemalloc.get_traced_memory()[1] < 3 * MB + 2 * len(large)
    finally:
        tracemalloc.stop()
    records = LenientRecords(small)
    (found,) = list(records.next_batch())
    assert (found.key, found.value) == (b"k", bytes(MB))


def test_10_batch_of_very_many_records_is_refused_before_it_is_inflated() -> None:
    """A million empty records are 7 MB inflated, and a quarter of a gigabyte as objects."""
    data = bytearray(bomb(1, 1))
    data[57:61] = (1_000_000).to_bytes(4, "big")
    with pytest.raises(InflatesTooFar, match="1000000 records"):
        list(LenientRecords(bytes(data)).next_batch())


@pytest.mark.parametrize("magic", [0, 1])
def test_10_old_formats_are_bounded_too(magic: int) -> None:
    """Formats 0 and 1, which a log may hold from before 0.11."""
    builder = _LegacyRecordBatchBuilderPy(magic=magic, compression_type=1, batch_size=1 << 30)
    for number in range(3):
        builder.append(number, timestamp=0, key=b"k", value=bytes(MB))
    data = bytes(builder.build())
    assert [len(each.value) for each in LenientRecords(data).next_batch()] == [MB] * 3
    records = LenientRecords(data)
    records.batch_bytes_max = 2 * MB
    with pytest.raises(InflatesTooFar, match=f"inflate to more than {2 * MB}"):
        list(records.next_batch())


def test_10_corrupt_batch_is_named_with_its_partition() -> None:
    """A wrong checksum is no reason to inflate: it is told before."""
    data = bytearray(bomb(1, 1))
    data[-1] ^= 1
    assert not LenientRecords(bytes(data)).next_batch().validate_crc()
    with pytest.raises(errors.CorruptRecordException):
        list(LenientRecords(bytes(data)).next_batch())


def test_10_private_names_are_there() -> None:
    """What kafka/records.py and kafka/compression.py take from aiokafka beside what the contract test holds."""
    assert "PartitionRecords" in Fetcher._proc_fetch_request.__code__.co_names
    assert "_decompress(key_offset)" in inspect.getsource(_LegacyRecordBatchPy.__iter__)
    source = inspect.getsource(PartitionRecords)
    assert all(name in source for name in ("self._records", "self._tp", "self.next_fetch_offset", "validate_crc()"))
    assert not aiokafka_codec._detect_xerial_stream(b"anything else that is long enough")
    assert aiokafka_codec._detect_xerial_stream(b"\x82SNAPPY\0\0\0\0\1\0\0\0\1" + b"rest")
