"""`Transactions` on a real Kafka: whole or not at all, fenced, in doubt and resolved; and what the log tells."""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError

from choreo.errors import ConfigurationError, LeaseLost, RecordTooLarge, TransportError
from choreo.ports import LogCommit, TopicSpec, Transactions
from choreo.record import Headers, ProducerRecord, TopicPartition
from choreo.transports.kafka import KafkaTransactions, KafkaTransport
from choreo.transports.kafka.fencing import transactional_id
from tests.integration.kafka_stage import values
from tests.integration.transaction_stage import Hold, TransactionStage, part, read


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[TransactionStage]:
    async with TransactionStage(kafka) as found:
        yield found


async def committed(stage: TransactionStage, partition: TopicPartition) -> int:
    """The group's committed offset, -1 without one."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.servers)
    await admin.start()
    found = await admin.list_consumer_group_offsets(stage.group)
    await admin.close()
    return int(found[partition].offset) if partition in found else -1


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


async def test_the_older_owner_is_fenced(stage: TransactionStage) -> None:
    """Nothing of it is visible, its offset is not committed, it stays lost; the epoch of each fence is newer."""
    source, target = await stage.topic(2), await stage.topic()
    ours, kept = TopicPartition(source, 0), TopicPartition(source, 1)
    older, newer = stage.transactions(), stage.transactions()
    epochs = [(await each.fence([ours]))[ours] for each in (older, older, newer)]
    assert epochs == sorted(set(epochs))
    await older.fence([kept])
    answer = await older.commit({ours: part(target, range(5), 7), kept: part(target, [9], 3)})
    assert isinstance(answer[ours], LeaseLost)
    assert answer[kept] is None
    assert isinstance((await older.commit({ours: part(target, [1], 8)}))[ours], LeaseLost)
    assert await newer.commit({ours: part(target, [6], 6)}) == {ours: None}
    assert await stage.visible(target) == [b"9", b"6"]
    assert await committed(stage, ours) == 6
    await older.fence([ours])
    assert isinstance((await newer.commit({ours: LogCommit([], 8)}))[ours], LeaseLost)


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


async def test_more_partitions_than_a_process_may_hold_are_refused(stage: TransactionStage) -> None:
    """All groups of a transport are counted together; what was given up may be taken again."""
    source = await stage.topic(5)
    partitions = [TopicPartition(source, n) for n in range(5)]
    one = stage.transactions(partitions_max=3)
    other = KafkaTransport.transactions(stage._transports[-1], f"{stage.group}-other")
    stage._transactions.append(other)
    await one.fence(partitions[:2])
    await other.fence(partitions[2:3])
    await other.fence(partitions[2:3])
    with pytest.raises(ConfigurationError, match=r"4 input partitions .* at most 3 .* confluent .*PARTITIONS_MAX"):
        await other.fence(partitions[2:4])
    await one.give_up(partitions)
    assert len(await other.fence(partitions[2:])) == 3
    assert "fence it first" in str((await one.commit({partitions[0]: LogCommit([], 1)}))[partitions[0]])


async def test_what_cannot_be_taken_says_why(stage: TransactionStage) -> None:
    """No broker, a timeout the broker does not allow, a closed object; and nothing is left of them."""
    partition = TopicPartition("t", 0)
    absent = KafkaTransport("127.0.0.1:9", ask_s=0.5).transactions("g")
    with pytest.raises(TransportError, match=r"t/0 cannot be taken for group 'g' within 0.5 s"):
        await absent.fence([partition])
    await absent.close()
    forbidden = stage.transactions(timeout_ms=2_000_000_000)
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_TRANSACTION_TIMEOUT_MS"):
        await forbidden.fence([partition])
    await forbidden.close()
    with pytest.raises(TransportError, match="closed"):
        await forbidden.fence([partition])
    short = KafkaTransport(stage.servers, ask_s=0.5).transactions("g")
    with pytest.raises(TransportError, match="cannot be read"):
        await read(short, TopicPartition("no-such-topic", 0))


async def test_wrong_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their variable."""
    monkeypatch.setenv("CHOREO_KAFKA_TRANSACTION_PARTITIONS_MAX", "none")
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_TRANSACTION_PARTITIONS_MAX"):
        KafkaTransport("127.0.0.1:9")


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


async def test_names_of_any_kind_work(stage: TransactionStage) -> None:
    """Groups may be called anything, topics may hold dots."""
    topic = f"a.b_{uuid4()}-c.0"
    await stage.transport.create_topics([TopicSpec(topic, 1)])
    partition = TopicPartition(topic, 0)
    for group in ("größe/ \u2028'\"\U0001f680.x" + str(uuid4()), "g" * 900 + str(uuid4())):
        older, newer = stage.transactions(group), stage.transactions(group)
        await older.fence([partition])
        assert await older.commit({partition: part(topic, [1], 1)}) == {partition: None}
        await newer.fence([partition])
        assert isinstance((await older.commit({partition: part(topic, [2], 2)}))[partition], LeaseLost)


def test_transactional_ids_are_distinct_and_bounded() -> None:
    """Whatever a group is called, and although topics hold dots."""
    groups = ["a", "a.b", "a%2Eb", "a%", "ä", "a b", "A", "g" * 200, "g" * 201, "g" * 199 + "x", "a.b.c", "\udcff"]
    topics = ["c", "b.c", "b.c.0", "b", "c.1", "t" * 249]
    names = [
        transactional_id("choreo", group, TopicPartition(topic, n))
        for group in groups
        for topic in topics
        for n in (0, 1)
    ]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and len(name) < 420 for name in names)
    assert transactional_id("choreo", "orders", TopicPartition("a.b", 3)) == "choreo.orders.a.b.3"
