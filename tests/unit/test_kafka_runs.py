"""Records in lists, out of aiokafka's own fetcher: all of them, once, in order, whatever is in a batch."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.record.legacy_records import _LegacyRecordBatchBuilderPy
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.record import Headers, ProducerRecord, Record, TopicPartition
from choreo.transports.kafka import client as kafka_client
from choreo.transports.kafka.records import LenientRecords, RawBatch, UnreadableBatch
from choreo.transports.kafka.runs import lenient

WHERE = KafkaPartition("t", 0)
ODD: Headers = (("a\udcff", b"1"), ("b", None))
PLAIN: Headers = (("h", b"1"),)
BATCH = 1_000
PRODUCER_ID = 7
TRANSACTIONAL, CONTROL = 0x10, 0x20


def batch(first: int, count: int, *, odd: Sequence[int] = (), codec: int = 0, attributes: int = 0) -> bytearray:
    """Records `first` to `first + count - 1`, whose values are their offsets."""
    built = RawBatch()
    built._builder._compression_type = codec
    for number in range(first, first + count):
        built.add(ProducerRecord("t", b"\0\0\0\0", b"%d" % number, ODD if number in odd else PLAIN))
    found = bytearray(built._build())
    found[:8] = first.to_bytes(8, "big")
    if attributes:
        found[22] |= attributes
        found[43:51] = PRODUCER_ID.to_bytes(8, "big")
    return sealed(found)


def sealed(found: bytearray) -> bytearray:
    """With a checksum that is right."""
    found[17:21] = calc_crc32c(found[21:]).to_bytes(4, "big")
    return found


def broken(whole: bytearray, value: bytes) -> bytearray:
    """The batch, in which the key of the record with this value says that it is longer than all there is."""
    at = whole.index(b"\0\0\0\0" + bytes([2 * len(value)]) + value)
    whole[at - 1] = 0x7E
    return sealed(whole)


def end(found: bytearray) -> int:
    """The first offset behind it."""
    records, offset = LenientRecords(bytes(found)), 0
    while records.has_next():
        offset = records.next_batch().next_offset
    return offset


class Log:
    """A client of aiokafka's for one partition; answers with whole batches, as a broker does."""

    _metadata_max_age_ms = 60_000

    def __init__(self, *batches: bytearray, aborted: Sequence[tuple[int, int]] = ()) -> None:
        self.batches, self.aborted, self.fetches = batches, list(aborted), 0
        self.cluster = SimpleNamespace(leader_for_partition=lambda _: 0)
        self._loop = asyncio.get_running_loop()

    async def send(self, node: int, request: Any) -> Any:
        ((_, ((_, offset, _),)),) = request.topics
        self.fetches += 1
        wanted = [bytes(each) for each in self.batches if end(each) > offset]
        if not wanted:
            await asyncio.sleep(3600)
        return SimpleNamespace(
            API_VERSION=11, topics=[("t", [(0, 0, 10**6, 10**6, 0, self.aborted, -1, b"".join(wanted))])]
        )


class Reader:
    """Reads a Log, as a consumer would."""

    def __init__(self, log: Log, subscriptions: SubscriptionState, *, ours: bool) -> None:
        self.subscriptions = subscriptions
        self.fetcher = Fetcher(log, subscriptions, isolation_level="read_committed")
        if ours:
            lenient(SimpleNamespace(_fetcher=self.fetcher))

    async def read(self, count: int, records_max: int | None) -> list[Any]:
        """The next `count` records."""
        found: list[Any] = []
        async with asyncio.timeout(5):
            while len(found) < count:
                came = (await self.fetcher.fetched_records((), 1, records_max)).get(WHERE, [])
                assert records_max is None or len(came) <= records_max
                found += came
        return found

    @property
    def position(self) -> int:
        """What is read next."""
        found: int = self.subscriptions._assigned_state(WHERE).position
        return found


@asynccontextmanager
async def reader(log: Log, *, ours: bool = True) -> AsyncIterator[Reader]:
    """One that begins at offset 0."""
    subscriptions = SubscriptionState()
    subscriptions.assign_from_user([WHERE])
    subscriptions.seek(WHERE, 0)
    found = Reader(log, subscriptions, ours=ours)
    try:
        yield found
    finally:
        await found.fetcher.close()


def offsets(records: Sequence[Record]) -> list[int]:
    """Theirs, which their values must be."""
    assert [each.value for each in records] == [b"%d" % each.offset for each in records]
    return [each.offset for each in records]


@pytest.mark.parametrize("records_max", [1, 7, 100, 999, None])
@pytest.mark.parametrize("codec", [0, 1])
async def test_odd_record_in_the_middle_of_a_batch_of_which_part_was_handed_out(
    records_max: int | None, codec: int
) -> None:
    """The lenient way goes on from the record it was at: none is lost, none comes twice."""
    log = Log(batch(0, BATCH, odd=[300, 301, 777], codec=codec), batch(BATCH, 50))
    async with reader(log) as reading:
        found = await reading.read(BATCH + 50, records_max)
        assert offsets(found) == list(range(BATCH + 50))
        assert {each.offset for each in found if each.headers == ODD} == {300, 301, 777}
        assert {each.headers for each in found} == {ODD, PLAIN}
        assert reading.position == BATCH + 50


async def test_position_is_that_of_what_was_handed_out() -> None:
    """Who pauses, or fails, loses what was fetched ahead and reads on from there, in the middle of a batch."""
    log = Log(batch(0, BATCH))
    async with reader(log) as reading:
        assert offsets(await reading.read(30, 30)) == list(range(30))
        assert reading.position == 30
        reading.subscriptions.seek(WHERE, 20)
        assert offsets(await reading.read(50, 50)) == list(range(20, 70)), "the batch comes whole, from 0 on"
        assert log.fetches == 2


async def test_what_is_left_when_a_partition_is_paused_waits_for_resume() -> None:
    """None of it is fetched again, as aiokafka would; unless the partition is to be read from elsewhere by then."""
    log = Log(batch(0, BATCH))
    async with reader(log) as reading:
        assert offsets(await reading.read(30, 30)) == list(range(30))
        reading.subscriptions.pause(WHERE)
        assert await reading.fetcher.fetched_records((), 0.01, 100) == {}
        assert reading.position == 30
        reading.subscriptions.resume(WHERE)
        assert offsets(await reading.read(50, 50)) == list(range(30, 80))
        assert log.fetches == 1
        reading.subscriptions.pause(WHERE)
        reading.subscriptions.seek(WHERE, 500)
        assert await reading.fetcher.fetched_records((), 0.01, 100) == {}
        reading.subscriptions.resume(WHERE)
        assert offsets(await reading.read(10, 10)) == list(range(500, 510))
        assert log.fetches == 2


async def test_who_waits_for_records_is_told_that_their_partition_was_resumed() -> None:
    """Nothing is fetched then, so nothing else would wake it."""
    async with reader(Log(batch(0, BATCH))) as reading:
        await reading.read(30, 30)
        reading.subscriptions.pause(WHERE)
        waiting = asyncio.create_task(reading.fetcher.fetched_records((), 60, 10))
        await asyncio.sleep(0.01)
        consumer: Any = SimpleNamespace(resume=reading.subscriptions.resume, _fetcher=reading.fetcher)
        kafka_client.resume(consumer, TopicPartition("t", 0))
        async with asyncio.timeout(5):
            assert offsets((await waiting)[WHERE]) == list(range(30, 40))


async def test_what_is_not_read_to_its_end_leaves_no_garbage() -> None:
    """It is a megabyte with each seek, and rebalance, and the collector comes every 10 s."""
    gc.collect()
    gc.disable()
    try:
        async with reader(Log(batch(0, BATCH))) as reading:
            await reading.read(30, 30)
            left = weakref.ref(reading.fetcher._records[WHERE]._partition_records)
            reading.subscriptions.seek(WHERE, 0)
            assert await reading.fetcher.fetched_records((), 0, 10) == {}
            assert left() is None
            await reading.read(30, 30)
            left = weakref.ref(reading.fetcher._records[WHERE]._partition_records)
            reading.fetcher._records.clear()
            assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("bad", [12, 555])
@pytest.mark.parametrize("records_max", [1, 10, 100])
async def test_record_that_nobody_can_read_ends_a_batch_of_which_part_was_handed_out(
    records_max: int, bad: int
) -> None:
    """What came before is kept, the error names the first that was not read, and behind the batch all goes on."""
    log = Log(batch(0, 10), broken(batch(10, BATCH), b"%d" % bad), batch(10 + BATCH, 10))
    async with reader(log) as reading:
        found: list[Record] = []

        async def read_on() -> None:
            while True:
                found.extend(await reading.read(1, records_max))

        with pytest.raises(UnreadableBatch) as caught:
            await read_on()
        assert offsets(found) == list(range(len(found)))
        assert max(10, bad - records_max + 1) <= len(found) <= bad
        assert (caught.value.offset, caught.value.next_offset) == (len(found), 10 + BATCH)
        assert reading.position == len(found)
        reading.subscriptions.seek(WHERE, 10 + BATCH)
        assert offsets(await reading.read(10, records_max)) == list(range(10 + BATCH, 20 + BATCH))


def of_now() -> list[bytearray]:
    """A transaction that was aborted and its marker, one that was not, gaps where records were compacted away."""
    return [
        batch(0, 20),
        batch(20, 10, attributes=TRANSACTIONAL),
        batch(30, 10),
        batch(40, 1, attributes=TRANSACTIONAL | CONTROL),
        batch(41, 9, attributes=TRANSACTIONAL),
        batch(66, 13, codec=1),
    ]


def of_old() -> list[bytearray]:
    """Format 1, in which a record is its own batch, unless it is compressed; of aiokafka's own making."""
    found = []
    for codec, first in ((0, 0), (1, 26)):
        builder = _LegacyRecordBatchBuilderPy(magic=1, compression_type=codec, batch_size=1 << 20)
        for number in range(26):
            builder.append(number, timestamp=3, key=b"k", value=b"%d" % (first + number))
        made = bytearray(builder.build())
        if codec:
            made[:8] = (first + 25).to_bytes(8, "big")
        found.append(made)
    return found


@pytest.mark.parametrize("records_max", [1, 3, 20, None])
@pytest.mark.parametrize("batches", [of_now, of_old])
async def test_hands_out_what_aiokafka_does(batches: Callable[[], list[bytearray]], records_max: int | None) -> None:
    """Of each format, by whatever number is asked for."""
    log = Log(*batches(), aborted=[(PRODUCER_ID, 20)] if batches is of_now else [])
    async with reader(log) as ours, reader(log, ours=False) as theirs:
        expected, found = await theirs.read(52, records_max), await ours.read(52, records_max)
        assert [each[:6] for each in found] == [
            (each.topic, each.partition, each.offset, each.key, each.value, each.headers) for each in expected
        ]
        assert [each.timestamp_ms for each in found] == [each.timestamp for each in expected]
        assert len(offsets(found)) == 52
        assert ours.position == theirs.position
        assert batches is of_old or not {*range(20, 30)} & {*offsets(found)}, "aborted"
