"""Commits of `Transactions` on a real Kafka: whole or not at all, in doubt and resolved; and what the log tells."""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from choreo.errors import LeaseLost, RecordTooLarge, TransportError
from choreo.ports import LogCommit, Transactions
from choreo.record import Headers, ProducerRecord, TopicPartition
from choreo.transports.kafka import KafkaTransactions
from tests.integration.kafka_stage import values
from tests.integration.transaction_stage import Hold, TransactionStage, committed, part, read


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[TransactionStage]:
    async with TransactionStage(kafka) as found:
        yield found


async def test_records_and_offset_are_committed_whole(stage: TransactionStage) -> None:
    """Before its end nobody under read_committed sees any of it; then all of it, odd records too, and the offset."""
    source, target = await stage.topic(), await stage.topic(3)
    partition = TopicPartition(source, 0)
    transactions: KafkaTransactions = stage.transactions()
    port: Transactions = transactions
    assert list(await port.fence([partition])) == [partition]
    odd: Headers = (("a\udcff", b"1"), ("b", None))
    records = [ProducerRecord(target, b"%d" % n, b"%d" % n, ()) for n in range(9)]
    records += [ProducerRecord(target, b"k", b"odd", odd, 2), ProducerRecord(target, None, None, (), 2)]
    hold = Hold(transactions, partition)
    committing = asyncio.create_task(transactions.commit({partition: LogCommit(records, 4)}))
    await hold.reached.wait()
    assert await stage.transport.scan([target], since_ms=0) == []
    assert await committed(stage, partition) == -1
    hold.go.set()
    assert await committing == {partition: None}
    found = [record for n in range(3) for record in await read(transactions, TopicPartition(target, n))]
    assert sorted((one.key, one.value) for one in found if one.key not in (None, b"k")) == [
        (b"%d" % n, b"%d" % n) for n in range(9)
    ]
    assert [(one.value, one.headers) for one in found if one.key in (None, b"k")] == [(b"odd", odd), (None, ())]
    assert await committed(stage, partition) == 4
    assert await transactions.commit({partition: LogCommit([], 5)}) == {partition: None}
    assert await committed(stage, partition) == 5
    assert await transactions.commit({partition: LogCommit([])}) == {partition: None}


Send = Callable[..., Awaitable[Any]]


def interfere(transactions: KafkaTransactions, partition: TopicPartition, request: str, how: str) -> list[str]:
    """Lose one kind of request, its answer, or the connection while it is under way; returns what was tried."""
    client = transactions._producers.fenced[partition].producer.client
    real: Send = client.send
    seen: list[str] = []

    async def send(node: int, message: Any, **options: Any) -> Any:
        if type(message).__name__ != request or seen:
            return await real(node, message, **options)
        seen.append(request)
        if how == "request lost":
            raise KafkaConnectionError("lost")
        asking = asyncio.ensure_future(real(node, message, **options))
        if how == "cut":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for connection in list(client._conns.values()):
                connection.close()
        answer = await asking
        if how == "answer lost":
            raise KafkaConnectionError("lost")
        return answer

    client.send = send
    return seen


@pytest.mark.parametrize("how", ["request lost", "answer lost", "cut"])
@pytest.mark.parametrize("request_", ["EndTxnRequest", "TxnOffsetCommitRequest", "ProduceRequest"])
async def test_a_commit_in_doubt_is_resolved_by_fence_and_read(
    stage: TransactionStage, request_: str, how: str
) -> None:
    """Whatever got lost: no end is repeated behind our back, the log tells the truth, once more makes exactly one."""
    source, target = await stage.topic(), await stage.topic()
    partition, out = TopicPartition(source, 0), TopicPartition(target, 0)
    transactions = stage.transactions()
    await transactions.fence([partition])
    assert await transactions.commit({partition: part(target, [0], 1)}) == {partition: None}
    seen = interfere(transactions, partition, request_, how)
    answer = await transactions.commit({partition: part(target, [1, 2], 2)})
    assert seen
    if request_ != "ProduceRequest":  # that one is repeated, and told by its sequence number
        assert isinstance(answer[partition], TransportError)
    if answer[partition] is not None:
        again = await transactions.commit({partition: part(target, [1, 2], 2)})
        assert "fence it first" in str(again[partition])
    await transactions.fence([partition])
    there = [record.value for record in await read(transactions, out)]
    assert there in ([b"0"], [b"0", b"1", b"2"])
    assert await committed(stage, partition) == (2 if len(there) == 3 else 1)
    if request_ == "EndTxnRequest" and how != "cut":
        assert len(there) == (3 if how == "answer lost" else 1)
    if len(there) == 1:
        assert await transactions.commit({partition: part(target, [1, 2], 2)}) == {partition: None}
    assert await stage.visible(target) == [b"0", b"1", b"2"]
    assert await committed(stage, partition) == 2


async def test_a_commit_without_an_end_is_in_doubt_at_its_deadline(stage: TransactionStage) -> None:
    """Below the broker's timeout; what it had begun ends with the next fence, and is not visible."""
    source, target = await stage.topic(), await stage.topic()
    partition = TopicPartition(source, 0)
    transactions = stage.transactions(timeout_ms=1_500)
    await transactions.fence([partition])
    Hold(transactions, partition)
    started = time.monotonic()
    answer = await transactions.commit({partition: part(target, [1], 1)})
    assert 1.0 < time.monotonic() - started < 1.4
    assert "no end within" in str(answer[partition])
    await transactions.fence([partition])
    assert await transactions.commit({partition: part(target, [2], 1)}) == {partition: None}
    assert await stage.visible(target) == [b"2"]


async def test_a_cancelled_commit_is_not_committed_later(stage: TransactionStage) -> None:
    """Nor is the partition usable before it is fenced."""
    source, target = await stage.topic(), await stage.topic()
    partition = TopicPartition(source, 0)
    transactions = stage.transactions()
    await transactions.fence([partition])
    hold = Hold(transactions, partition)
    committing = asyncio.create_task(transactions.commit({partition: part(target, [1], 1)}))
    await hold.reached.wait()
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    assert "fence it first" in str((await transactions.commit({partition: part(target, [1], 1)}))[partition])
    await transactions.fence([partition])
    assert await read(transactions, TopicPartition(target, 0)) == []


async def test_a_record_too_large_is_named_and_nothing_is_committed(stage: TransactionStage) -> None:
    """By its index, whether it is refused before it is sent or by the broker; the others can be committed then."""
    source, target = await stage.topic(), await stage.topic(max_message_bytes="20000")
    partition = TopicPartition(source, 0)
    transactions = stage.transactions()
    await transactions.fence([partition])
    for size, fences in (
        (17 << 20, 0),
        (30_000, 1),
        (200_000, 0),
    ):  # with a small one in its batch it is not told apart
        large = ProducerRecord(target, b"k", b"x" * size, ())
        parts = {partition: LogCommit([*values(target, [0, 1]), large], 9)}
        for _ in range(fences):
            assert "takes no batch" in str((await transactions.commit(parts))[partition])
            await transactions.fence([partition])
        error = (await transactions.commit(parts))[partition]
        assert isinstance(error, RecordTooLarge)
        assert error.index == 2
        await transactions.fence([partition])
    assert await transactions.commit({partition: part(target, [0, 1], 5)}) == {partition: None}
    assert await stage.visible(target) == [b"0", b"1"]
    assert await committed(stage, partition) == 5


async def test_batches_larger_than_a_topic_takes_shrink_with_each_fence(stage: TransactionStage) -> None:
    """No second producer is made inside a commit: that would fence a newer owner. After three fences it fits."""
    source, target = await stage.topic(), await stage.topic(max_message_bytes="3000")
    partition = TopicPartition(source, 0)
    transactions = stage.transactions()
    answers = []
    for _ in range(4):
        await transactions.fence([partition])
        answers.append((await transactions.commit({partition: part(target, range(1_000), 1)}))[partition])
        if answers[-1] is None:
            break
    assert answers[-1] is None
    assert all("takes no batch of" in str(error) for error in answers[:-1])
    assert await stage.visible(target) == [b"%d" % n for n in range(1_000)]


async def test_many_partitions_commit_beside_each_other(stage: TransactionStage) -> None:
    """Each its own transaction; what is lost of one is not lost of the others."""
    source, target = await stage.topic(24), await stage.topic(24)
    partitions = [TopicPartition(source, n) for n in range(24)]
    transactions, other = stage.transactions(), stage.transactions()
    epochs = await transactions.fence(partitions)
    assert list(epochs) == partitions
    await other.fence(partitions[:3])
    parts = {one: LogCommit([ProducerRecord(target, b"k", b"v", (), one.partition)], 1) for one in partitions}
    answers = await transactions.commit(parts)
    assert [one for one, error in answers.items() if isinstance(error, LeaseLost)] == partitions[:3]
    assert [one for one, error in answers.items() if error is None] == partitions[3:]
    assert len(await stage.visible(target)) == 21


@pytest.mark.filterwarnings("error")
async def test_closing_in_mid_commit_leaves_nothing_behind(stage: TransactionStage) -> None:
    """The commit is told at once, nothing of it is visible, no task, socket or warning is left."""
    source, target = await stage.topic(2), await stage.topic()
    busy, idle = TopicPartition(source, 0), TopicPartition(source, 1)
    transactions = stage.transactions()
    await stage.transport.topics()
    before = len(os.listdir("/proc/self/fd"))
    await transactions.fence([busy, idle])
    interfere(transactions, busy, "TxnOffsetCommitRequest", "request lost")
    hold = Hold(transactions, idle)
    committing = asyncio.create_task(transactions.commit({one: part(target, [1], 1) for one in (busy, idle)}))
    await hold.reached.wait()
    started = time.monotonic()
    await transactions.close()
    hold.go.set()
    answers = await committing
    assert time.monotonic() - started < 6  # what the port says, and not the 40 s of a request without an answer
    assert all(isinstance(error, TransportError) for error in answers.values())
    # What a sender that failed left running sees its connection closed, backs off once, and ends.
    for _ in range(100):
        left = [repr(task) for task in asyncio.all_tasks() if "aiokafka" in repr(task)]
        if not left:
            break
        await asyncio.sleep(0.02)
    assert left == []
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    successor = stage.transactions()
    await successor.fence([busy, idle])
    assert await read(successor, TopicPartition(target, 0)) == []
