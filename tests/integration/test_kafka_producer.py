"""Sending to a real Kafka: every acknowledgement awaited, a producer thrown away with what went wrong in it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import Producer

from choreo.errors import RecordTooLarge, TransportError
from choreo.record import ProducerRecord
from choreo.transports.kafka import KafkaTransport
from tests.integration.kafka_stage import Stage, values


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[Stage]:
    async with Stage(kafka) as found:
        yield found


async def test_keys_choose_the_partition_java_chooses(stage: Stage) -> None:
    """librdkafka's murmur2_random, made to match Java's client, agrees for keys of every length."""
    topic = await stage.topic(7)
    keys = [bytes(random.Random(n).randbytes(n)) for n in range(1, 60)] + ["schlüssel".encode()]
    await stage.transport.send([ProducerRecord(topic, key, b"ours", ()) for key in keys])

    def produce() -> None:
        producer = Producer({"bootstrap.servers": stage.servers, "partitioner": "murmur2_random"})
        for key in keys:
            producer.produce(topic, b"theirs", key)
        assert producer.flush(10) == 0

    await asyncio.to_thread(produce)
    found = await stage.transport.scan([topic], since_ms=0)
    places = {who: {each.key: each.partition for each in found if each.value == who} for who in (b"ours", b"theirs")}
    assert len(places[b"ours"]) == len(keys)
    assert places[b"ours"] == places[b"theirs"]


async def test_record_too_large_is_named_and_the_others_go(stage: Stage) -> None:
    """The index is that of the call, also behind records that fit; the next call works."""
    topic = await stage.topic(max_message_bytes="20000")
    with pytest.raises(RecordTooLarge, match=topic) as caught:
        await stage.transport.send([*values(topic, [0, 1]), ProducerRecord(topic, b"k", b"x" * 30_000, ())])
    assert caught.value.index == 2
    with pytest.raises(RecordTooLarge) as caught:
        await stage.transport.send([ProducerRecord(topic, b"k", b"x" * (17 << 20), ())])
    assert caught.value.index == 0
    big = await stage.topic(max_message_bytes="5000000")
    await stage.transport.send([ProducerRecord(big, b"k", b"x" * 4_000_000, ()), *values(topic, [2])])


async def test_batch_larger_than_its_topic_takes_is_split(stage: Stage) -> None:
    """Small records of a topic with a small limit arrive once each and in order, whatever the batch size."""
    topic = await stage.topic(max_message_bytes="3000")
    await stage.transport.send(values(topic, range(1_000)))
    found = await stage.transport.scan([topic], since_ms=0)
    assert [int(each.value or b"") for each in found] == list(range(1_000))


async def test_failed_send_renews_the_producer(stage: Stage) -> None:
    """What the broker refuses is an error by topic, without payload; the producer is made anew, sends go on."""
    compacted, good = await stage.topic(cleanup_policy="compact"), await stage.topic()
    transport = stage.transport
    await transport.send(values(good, [0]))
    before = transport._producer._producer
    with pytest.raises(TransportError, match=f"{compacted}: refused .* in a compacted topic") as caught:
        await transport.send([*values(good, [1]), ProducerRecord(compacted, None, b"secret", ())])
    assert "secret" not in str(caught.value)
    assert transport._producer._producer is not before
    await transport.send(values(good, [2]))
    with pytest.raises(TransportError, match="no partition 9"):
        await transport.send([ProducerRecord(good, None, b"x", (), 9)])
    await transport.send(values(good, [3]))
    assert [each.value for each in await transport.scan([good], since_ms=0)] == [b"0", b"1", b"2", b"3"]


def deaf(transport: KafkaTransport) -> None:
    """Let this transport's producer get no answer to what it appends, as from a broker that hangs."""
    producer = transport._producer._producer
    assert producer is not None
    real = producer.client.send

    async def send(node: int, request: Any, **options: Any) -> Any:
        if "Produce" in type(request).__name__ and "Id" not in type(request).__name__:
            for _ in range(600):
                if producer._closed:
                    raise KafkaConnectionError("closed")
                await asyncio.sleep(0.05)
        return await real(node, request, **options)

    producer.client.send = send


async def test_send_without_an_answer_ends_at_its_deadline(stage: Stage) -> None:
    """All calls on that producer fail by topic, and the next one is acknowledged by another."""
    topic = await stage.topic()
    transport = stage.other(send_s=1.0)
    await transport.send(values(topic, [0]))
    deaf(transport)
    started = time.monotonic()
    calls = [transport.send(values(topic, [1])), transport.send(values(topic, range(5_000)))]
    for found in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(found, TransportError)
        assert topic in str(found)
    assert time.monotonic() - started < 3
    await transport.send(values(topic, [2]))
    assert [each.value for each in await transport.scan([topic], since_ms=0)] == [b"0", b"2"]


async def test_cancelled_send_sends_nothing_more(stage: Stage) -> None:
    """What a cancelled call had handed over does not follow later; a call beside it is told, not left waiting."""
    topic = await stage.topic()
    await stage.transport.send(values(topic, [0]))
    deaf(stage.transport)
    sending, beside = (asyncio.create_task(stage.transport.send(values(topic, [n]))) for n in (1, 2))
    await asyncio.sleep(0.1)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await stage.transport.send(values(topic, [3]))
    with pytest.raises(TransportError):
        await asyncio.wait_for(beside, 6)
    assert [each.value for each in await stage.transport.scan([topic], since_ms=0)] == [b"0", b"3"]


async def test_many_senders_share_one_producer(stage: Stage) -> None:
    """Concurrent calls all return, and each keeps its own order."""
    topic = await stage.topic(2)
    calls = [values(topic, range(n * 100, n * 100 + 50), key=b"%d" % n) for n in range(10)]
    await asyncio.gather(*(stage.transport.send(call) for call in calls))
    found = await stage.transport.scan([topic], since_ms=0)
    for n in range(10):
        mine = sorted((each for each in found if each.key == b"%d" % n), key=lambda each: each.offset)
        assert [int(each.value or b"") for each in mine] == list(range(n * 100, n * 100 + 50))
