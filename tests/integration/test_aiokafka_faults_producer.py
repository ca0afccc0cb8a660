"""Faults of aiokafka's producer: what the bare client does, and that choreo holds. Seen in aiokafka 0.14.0.

Numbers are those of docs/aiokafka-faults.md. A bare half that fails means that the fault may be mended.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from aiokafka import errors
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.ports import LogCommit
from choreo.record import ProducerRecord, TopicPartition
from choreo.transports.kafka import KafkaTransport
from tests.integration.bare_client import bare_producer, same_version
from tests.integration.faulty_broker import ADD_PARTITIONS_TO_TXN, faulty_broker, forbidden
from tests.integration.kafka_stage import Stage, until, values

REFUSED = (errors.TopicAuthorizationFailedError, errors.InvalidTxnState)
"""The second one: it sends the batch although its partition was refused, and here only the first step is."""


@pytest.fixture(autouse=True)
def _seen_in() -> None:
    """Another version fails here, with what to do."""
    same_version()


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[Stage]:
    """Topics and members of this test."""
    async with Stage(kafka) as found:
        yield found


async def committed(stage: Stage, topic: str) -> list[bytes | None]:
    """What a reader sees under read_committed."""
    return [each.value for each in await stage.transport.scan([topic], since_ms=0)]


# ---- 3: an abort that does not abort


async def test_3_bare_client_publishes_what_it_aborted(stage: Stage) -> None:
    """After an authorization error `abort_transaction` returns, sends nothing, and the next commit has both."""
    topic, secret = await stage.topic(), await stage.topic()
    async with faulty_broker(stage.servers) as broker:
        broker.faults[ADD_PARTITIONS_TO_TXN] = forbidden(secret)
        async with bare_producer(broker.address, transactional_id=topic) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"aborted", partition=0)
            with pytest.raises(REFUSED):
                await asyncio.wait_for(producer.send_and_wait(secret, b"x", partition=0), 5)
            await asyncio.wait_for(producer.abort_transaction(), 5)
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"committed", partition=0)
            await asyncio.wait_for(producer.commit_transaction(), 5)
        assert broker.answered
    assert await committed(stage, topic) == [b"aborted", b"committed"]


async def test_3_choreo_never_uses_a_producer_after_a_failed_transaction(stage: Stage) -> None:
    """The same error: the producer is thrown away, and the next fence ends what it had begun before anything else."""
    source, topic, secret = await stage.topic(), await stage.topic(), await stage.topic()
    where = TopicPartition(source, 0)
    async with faulty_broker(stage.servers) as broker:
        broker.faults[ADD_PARTITIONS_TO_TXN] = forbidden(secret)
        transport = KafkaTransport(broker.address)
        transactions = transport.transactions(stage.group)
        await transactions.fence([where])
        records = [ProducerRecord(topic, b"k", b"aborted", (), 0), ProducerRecord(secret, b"k", b"x", (), 0)]
        outcome = (await transactions.commit({where: LogCommit(records, 1)}))[where]
        assert isinstance(outcome, TransportError)
        await transactions.fence([where])
        kept = LogCommit([ProducerRecord(topic, b"k", b"committed", (), 0)], 2)
        assert (await transactions.commit({where: kept}))[where] is None
        await transactions.close()
        await transport.close()
    assert await committed(stage, topic) == [b"committed"]


# ---- 4: a commit over a send that failed


async def test_4_bare_client_commits_without_what_was_refused(stage: Stage) -> None:
    """A transaction whose sends are not awaited, as in aiokafka's example: the offset is committed all the same."""
    source, topic, compacted = await stage.topic(), await stage.topic(), await stage.topic(cleanup_policy="compact")
    await stage.transport.send(values(source, range(8)))
    where = KafkaPartition(source, 0)
    async with bare_producer(stage.servers, transactional_id=topic) as producer:
        await producer.begin_transaction()
        kept = await producer.send(topic, b"kept", partition=0)
        refused = await producer.send(compacted, b"without a key", partition=0)
        await producer.send_offsets_to_transaction({where: 7}, stage.group)
        await asyncio.wait_for(producer.commit_transaction(), 5)
        assert kept.exception() is None
        assert refused.exception() is not None
    assert await committed(stage, topic) == [b"kept"]
    assert await committed(stage, compacted) == []
    owner, consumer = await stage.join(source, start=None)
    await until(lambda _: owner.owned, consumer)
    assert await consumer.position(TopicPartition(*where), "earliest") == 7


async def test_4_choreo_commits_nothing_when_one_record_is_refused(stage: Stage) -> None:
    """The same records: the commit is an error, and neither the record that was taken nor the offset is there."""
    source, topic, compacted = await stage.topic(), await stage.topic(), await stage.topic(cleanup_policy="compact")
    await stage.transport.send(values(source, range(8)))
    where = TopicPartition(source, 0)
    transactions = stage.transport.transactions(stage.group)
    await transactions.fence([where])
    records = [ProducerRecord(topic, b"k", b"kept", (), 0), ProducerRecord(compacted, None, b"without a key", (), 0)]
    outcome = (await transactions.commit({where: LogCommit(records, 7)}))[where]
    assert "compacted topic" in str(outcome)
    await transactions.fence([where])
    assert await committed(stage, topic) == []
    owner, consumer = await stage.join(source, start=None)
    await until(lambda _: owner.owned, consumer)
    assert await consumer.position(where, "earliest") == 0
    assert (await transactions.commit({where: LogCommit(records[:1], 7)}))[where] is None
    assert await committed(stage, topic) == [b"kept"]
    await transactions.close()


# ---- 11: payloads in the log


async def test_11_bare_client_logs_payloads(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, key and value; ours: test_aiokafka_does_not_log_payloads."""
    topic = await stage.topic()
    logger = logging.getLogger("aiokafka.producer.producer")
    logger.setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        async with bare_producer(stage.servers) as producer:
            await producer.send_and_wait(topic, b"hunter2")
    assert "hunter2" in caplog.text
    logger.setLevel(logging.INFO)
