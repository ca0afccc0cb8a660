"""What the kafka_*.py rely on in aiokafka's private API, so that a newer one fails here first.

No broker is needed but for the last test. The canaries say which workaround to take out when aiokafka mends a bug.
"""

import asyncio
import inspect
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState, TopicPartitionState
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.partitioner import murmur2
from aiokafka.producer import sender
from aiokafka.producer.message_accumulator import MessageAccumulator, MessageBatch
from aiokafka.producer.sender import BaseHandler, Sender
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchResponse_v3
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import RecordTooLarge, TransportError
from choreo.record import Headers, ProducerRecord
from choreo.transports.kafka import KafkaTransport
from choreo.transports.kafka.batches import deliver, fill
from choreo.transports.kafka.client import GatedSubscription, gated_consumer
from choreo.transports.kafka.closing import discard
from choreo.transports.kafka.fencing import (
    HANDLERS,
    TransactionalRawBatch,
    cause,
    epoch_of,
    fenced_producer,
    older_than_4_0,
)
from choreo.transports.kafka.producer import partition_of
from choreo.transports.kafka.records import LenientRecords, RawBatch
from choreo.transports.kafka.runs import lenient

ODD: Headers = (("a\udcff", b"1"), ("b", None))


def batch_of(*headers: Headers, codec: int = 0) -> bytes:
    batch = RawBatch()
    batch._builder._compression_type = codec
    for number, each in enumerate(headers):
        batch.add(ProducerRecord("t", b"k", b"%d" % number, each))
    return bytes(batch._build())


def read(records: Any) -> list[tuple[int, bytes, Sequence[Any]]]:
    found = fetcher.PartitionRecords(KafkaPartition("t", 0), records, [], 0, None, None, True, fetcher.READ_COMMITTED)
    return [(each.offset, each.value, each.headers) for each in found]


def test_version_is_the_one_that_was_read() -> None:
    """The comments quote lines of 0.14; pyproject pins it."""
    assert version("aiokafka").startswith("0.14.")


@pytest.mark.parametrize("codec", [0, 1])
def test_lenient_records_read_what_the_fast_path_refuses(codec: int) -> None:
    """Compressed or not, every record of the batch, and the batches after it."""
    data = batch_of((), ODD, (("c", b"2"),), codec=codec) + batch_of(())
    assert [each[1:] for each in read(LenientRecords(data))] == [(b"0", ()), (b"1", ODD), (b"2", (("c", b"2"),))]
    data = batch_of((), (("c", b"2"),), codec=codec)
    assert read(LenientRecords(data)) == read(MemoryRecords(data))


def test_canary_header_key_poison() -> None:
    """Bug 9. If this fails, LenientRecords can go."""
    with pytest.raises((UnicodeDecodeError, errors.CorruptRecordException)):
        read(MemoryRecords(batch_of(ODD)))


def test_corrupt_batch_is_still_refused() -> None:
    """Leniency ends at header keys: a wrong checksum or a cut record is an error."""
    data = bytearray(batch_of((), ODD))
    data[-3] ^= 1
    with pytest.raises(errors.CorruptRecordException):
        read(LenientRecords(bytes(data)))
    with pytest.raises(errors.CorruptRecordException):
        list(LenientRecords(bytes(data)).next_batch())


async def test_only_odd_records_take_the_raw_path() -> None:
    """Header keys beyond ASCII are no reason, nor is having neither key nor value; bytes that are no UTF-8 are."""
    records = [record_in(0, b"v", (("ü", b""), ("a", None))), ProducerRecord("t", None, None, (), 0)]
    (both,) = await fill(StubProducer(), records, bytes_max=1 << 20)
    assert both.indices == [0, 1]
    first, alone, last = await fill(StubProducer(), [records[0], record_in(0, b"v", ODD), records[1]], bytes_max=200)
    assert [each.indices for each in (first, alone, last)] == [[0], [1], [2]]
    assert [type(each.builder) is RawBatch for each in (first, alone, last)] == [False, True, False]


def test_raw_batch_is_taken_by_the_accumulator() -> None:
    """It sets the producer's state by a method of its own, and can be read by the C decoder."""
    batch = RawBatch()
    batch.add(ProducerRecord("t", None, None, ()))
    batch.close()
    batch._set_producer_state(7, 1, 3)
    (found,) = [LenientRecords(bytes(batch._build())).next_batch()]
    assert (found.producer_id, found.base_offset, found.is_control_batch) == (7, 0, False)
    assert isinstance(found._batch, DefaultRecordBatch)
    assert "_set_producer_state" in inspect.getsource(MessageBatch.set_producer_state)


def test_fetcher_takes_the_record_class_from_its_globals() -> None:
    """`lenient` replaces three globals for one consumer and leaves the module as it is."""
    names = {"MemoryRecords", "PartitionRecords", "FetchResult"}
    assert names <= set(fetcher.Fetcher._proc_fetch_request.__code__.co_names)
    assert "FetchResult" in fetcher.Fetcher.fetched_records.__code__.co_names
    consumer = type("Stub", (), {"_fetcher": object.__new__(fetcher.Fetcher)})()
    lenient(consumer)
    assert consumer._fetcher._proc_fetch_request.__func__.__globals__["MemoryRecords"] is LenientRecords
    assert fetcher.MemoryRecords is MemoryRecords


def test_partitions_are_those_of_java() -> None:
    """Vectors of Kafka's own UtilsTest.testMurmur2, and the sign bit cleared as it does."""
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    for key, found in known.items():
        assert murmur2(key) == found & 0xFFFFFFFF
        assert partition_of(key, list(range(7)), []) == (found & 0x7FFFFFFF) % 7
    assert partition_of(None, [0, 1, 2], [2]) == 2


async def test_gate_is_shut_in_the_step_of_the_assignment() -> None:
    """Paused and with a position: aiokafka's fetcher finds nothing to reset and nothing to fetch."""
    state = GatedSubscription()
    state.subscribe({"t"})
    state.assign_from_subscribed([KafkaPartition("t", 0)])
    found = state.subscription.assignment.state_value(KafkaPartition("t", 0))
    assert found.paused
    assert found.has_valid_position
    source = inspect.getsource(fetcher.Fetcher._get_actions_per_node)
    assert source.index("not tp_state.has_valid_position") < source.index("tp_state.paused")


@pytest.mark.parametrize(("kind", "left"), [(GatedSubscription, 0), (SubscriptionState, 1)])
async def test_failed_poll_does_not_end_max_poll_protection(kind: type[Any], left: int) -> None:
    """Bug 7 is mended in ours. The second case is the canary: if it fails, `fetch_context` can go."""
    state = kind()
    with pytest.raises(KeyError), state.fetch_context():
        raise KeyError
    assert state._fetch_count == left


def test_canary_offset_fetch_error_code_is_unread() -> None:
    """Bug 2. If this fails, `committed` may become aiokafka's own."""
    assert "error_code" in [name for name in OffsetFetchResponse_v3.SCHEMA.names]
    assert "response.error_code" not in inspect.getsource(GroupCoordinator._do_fetch_commit_offsets)


def test_canary_sticky_assignor_keeps_state_on_its_class() -> None:
    """If this fails, it may be preferred to round robin: with several groups in a process they mix now."""
    assert "cls.member_assignment" in inspect.getsource(StickyPartitionAssignor)


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (GroupCoordinator, "coordinator_dead ensure_coordinator_known reset_generation request_rejoin _send_req"),
        (GroupCoordinator, "_start_heartbeat_task _stop_heartbeat_task _stop_commit_offsets_refresh_task"),
        (GroupCoordinator, "_maybe_leave_group"),
        (AIOKafkaClient, "add_topic force_metadata_update _maybe_wait_metadata send close"),
        (MessageAccumulator, "fail_all"),
        (SubscriptionState, "assign_from_subscribed _assigned_state"),
    ],
)
def test_methods_are_there(owner: type, names: str) -> None:
    """Each is called by kafka/client.py."""
    assert [name for name in names.split() if not callable(getattr(owner, name, None))] == []


async def test_attributes_are_there() -> None:
    """Each is read or set by kafka/client.py; a consumer without topics may have its subscription replaced."""
    consumer = gated_consumer(bootstrap_servers="127.0.0.1:9", group_id="g")
    assert isinstance(consumer._subscription, GatedSubscription)
    assert consumer._coordinator is consumer._fetcher is None
    consumer._closed = True
    assert inspect.getsource(AIOKafkaConsumer.__init__).count("SubscriptionState(") == 1
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:9")
    accumulator = producer._message_accumulator
    assert accumulator._exception is accumulator._wakeup_handle is None
    assert not accumulator._batches
    assert not accumulator._pending_batches
    assert producer._sender.sender_task is None
    assert producer.client._md_update_fut is None
    assert OffsetCommitRequest.DEFAULT_RETENTION_TIME == -1
    await discard(producer)
    assert producer._closed


async def test_transactions_rest_on_these() -> None:
    """`HANDLERS` replaces a global of each Sender method; the others read and end the transaction manager."""
    for name, handlers in HANDLERS.items():
        assert set(handlers) <= set(getattr(Sender, name).__code__.co_names)
        for handler, ours in handlers.items():
            assert issubclass(ours, getattr(sender, handler))
            assert ours.do is not BaseHandler.do
    assert "log" in sender.SendProduceReqHandler.handle_response.__code__.co_names
    assert "except KafkaError as err:" in inspect.getsource(
        BaseHandler.do
    )  # canary: it repeats what may have arrived
    producer = fenced_producer({"bootstrap_servers": "127.0.0.1:9", "transactional_id": "x"})
    assert (
        producer._sender._do_txn_commit.__func__.__globals__["EndTxnHandler"]
        is HANDLERS["_do_txn_commit"]["EndTxnHandler"]
    )
    assert sender.EndTxnHandler is not HANDLERS["_do_txn_commit"]["EndTxnHandler"]
    manager = producer._txn_manager
    assert (manager.producer_id, manager.producer_epoch) == (-1, -1)
    assert manager._transaction_waiter is None
    assert not manager._pending_txn_offsets
    assert cause(producer, error := ValueError()) is error
    batch = TransactionalRawBatch()
    batch.add(ProducerRecord("t", None, None, ()))
    assert LenientRecords(bytes(batch._build())).next_batch().is_transactional
    manager.set_pid_and_epoch(7, 3)
    assert epoch_of(producer) == 7 << 16 | 3
    await producer.begin_transaction()
    ending = asyncio.ensure_future(producer.commit_transaction())
    await asyncio.sleep(0)
    await discard(producer)
    with pytest.raises(errors.ProducerClosed):
        await asyncio.wait_for(ending, 1)
    with pytest.raises(errors.ProducerClosed):
        await producer.client.send(0, None)


def test_position_of_a_consumer_is_known_without_waiting() -> None:
    """`at_end` compares it with the end that the last fetch saw; a consumer that has not fetched knows of none."""
    state = TopicPartitionState.__init__.__code__.co_names
    assert {"lso", "highwater", "_position"} <= set(state)
    source = inspect.getsource(fetcher.Fetcher._proc_fetch_request)
    assert source.index("tp_state.position != fetch_offset") < source.index("tp_state.lso = lso")


async def test_age_of_a_broker_is_told_by_its_api(kafka: str) -> None:
    """Transactions need brokers >= 4.0, which this one is; one that ends transactions in an older way is noticed."""
    producer = fenced_producer({"bootstrap_servers": kafka, "transactional_id": f"age-{uuid4()}"})
    await producer.start()
    assert not older_than_4_0(producer)
    for connection in producer.client._conns.values():
        connection._versions = {**connection._versions, 26: (0, 4)}
    assert older_than_4_0(producer)
    await discard(producer)


async def test_discarded_producer_leaves_nothing_behind(kafka: str) -> None:
    """While it sends and lingers: its futures fail, its tasks end, and no warning is left for the collector."""
    transport = KafkaTransport(kafka, producer_options={"linger_ms": 5_000})
    await transport.open()
    sending = asyncio.create_task(transport.send([ProducerRecord("no-such-topic", b"k", b"v", ())]))
    await asyncio.sleep(0.2)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await transport.close()
    assert [repr(task) for task in asyncio.all_tasks() if "aiokafka" in repr(task)] == []


class StubProducer:
    """As much of AIOKafkaProducer as `deliver` touches, and no broker behind it."""

    def __init__(self, batch_size: int = 16_384) -> None:
        self._message_accumulator = MessageAccumulator(None, batch_size, 0, 30.0)
        self._metadata = self
        self._partitioner = partition_of

    async def partitions_for(self, topic: str) -> set[int]:
        return {0, 1}

    def available_partitions_for_topic(self, topic: str) -> set[int]:
        return {0, 1}

    def batches(self, partition: int) -> list[MessageBatch]:
        return list(self._message_accumulator._batches.get(KafkaPartition("t", partition), ()))


def record_in(partition: int, value: bytes, headers: Headers = ()) -> ProducerRecord:
    return ProducerRecord("t", b"k", value, headers, partition)


async def sent(producer: Any, records: Sequence[ProducerRecord], bytes_max: int = 1 << 24) -> dict[int, Exception]:
    return await deliver(producer, records, await fill(producer, records, bytes_max=bytes_max))


async def test_delivery_hands_over_in_one_step_and_in_order() -> None:
    """Two calls at once share an open batch; a full one, and one of odd records, is followed by another."""
    producer = StubProducer(batch_size=300)
    firsts = [record_in(0, b"%d" % number * 60) for number in range(4)]
    first = asyncio.create_task(sent(producer, [*firsts, record_in(1, b"x")]))
    second = asyncio.create_task(sent(producer, [record_in(0, b"odd", ODD), record_in(0, b"last")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    batches = producer.batches(0)
    assert [batch.record_count for batch in batches] == [3, 1, 1, 1]
    values = [each[1] for batch in batches for each in read(LenientRecords(bytes(batch.get_data_buffer())))]
    assert values == [record.value for record in firsts] + [b"odd", b"last"]
    (alone,) = producer.batches(1)
    for batch in (*batches, alone):
        batch.done(7)
    assert (await first, await second) == ({}, {})


async def test_a_batch_that_fails_fails_whoever_has_records_in_it() -> None:
    """By index, in order; what else the caller sent is acknowledged."""
    producer = StubProducer()
    first = asyncio.create_task(sent(producer, [record_in(1, b"a"), record_in(0, b"b"), record_in(1, b"c")]))
    second = asyncio.create_task(sent(producer, [record_in(1, b"d")]))
    third = asyncio.create_task(sent(producer, [record_in(1, b"e")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    third.cancel()  # its record goes with the others, and they are not cancelled with it
    await asyncio.gather(third, return_exceptions=True)
    (good,), (bad,) = producer.batches(0), producer.batches(1)
    assert bad.record_count == 4
    good.done(7)
    bad.failure(errors.NotLeaderForPartitionError())
    failed = await first
    assert list(failed) == [0, 2]
    assert {type(error) for error in failed.values()} == {errors.NotLeaderForPartitionError}
    assert list(await second) == [0]


async def test_calls_at_once_share_a_batch_as_long_as_it_has_room() -> None:
    """All of one call's records of a partition join, or none; what does not fit goes behind, so that order stays."""
    producer = StubProducer(batch_size=1_000)
    calls = [
        asyncio.create_task(sent(producer, [record_in(0, b"%d" % n * 100, (("h", b"%d" % n),))] * 3))
        for n in (1, 2, 3)
    ]
    calls.append(asyncio.create_task(sent(producer, [record_in(0, b"4")])))
    for _ in range(3):
        await asyncio.sleep(0)
    batches = producer.batches(0)
    assert [batch.record_count for batch in batches] == [6, 4]
    assert all(batch._builder.size() <= 1_000 for batch in batches)
    found = [each for batch in batches for each in read(LenientRecords(bytes(batch.get_data_buffer())))]
    assert [each[1][:1] for each in found] == [b"1"] * 3 + [b"2"] * 3 + [b"3"] * 3 + [b"4"]
    assert found[0][2] == (("h", b"1"),)
    for batch in batches:
        batch.done(7)
    assert await asyncio.gather(*calls) == [{}] * 4


async def test_record_too_large_is_found_before_anything_is_handed_over() -> None:
    """Wherever it stands, plain or odd; the producer can be used on."""
    producer = StubProducer()
    for headers in ((), ODD):
        records = [record_in(0, b"a"), record_in(1, b"b"), record_in(0, b"c" * 60_000, headers)]
        with pytest.raises(RecordTooLarge, match="larger than the 50000 that are sent") as caught:
            await asyncio.wait_for(sent(producer, records, bytes_max=50_000), 1)
        assert caught.value.index == 2
    assert producer.batches(0) == producer.batches(1) == []


async def test_nothing_is_handed_to_a_producer_that_is_closed_or_dead() -> None:
    """As `AIOKafkaProducer.send` has it."""
    producer = StubProducer()
    producer._message_accumulator._exception = errors.ProducerFenced()
    with pytest.raises(errors.ProducerFenced):
        await sent(producer, [record_in(0, b"a")])
    producer._message_accumulator._closed = True
    with pytest.raises(errors.ProducerClosed):
        await sent(producer, [record_in(0, b"a")])
    with pytest.raises(TransportError, match="no partition 9"):
        await sent(StubProducer(), [record_in(9, b"a")])
