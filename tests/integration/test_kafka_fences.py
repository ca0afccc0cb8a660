"""Who holds a partition for transactions, on a real Kafka: the newest fence, up to a limit, under ids of its own."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from choreo.errors import ConfigurationError, LeaseLost, TransportError
from choreo.ports import LogCommit, TopicSpec
from choreo.record import TopicPartition
from choreo.transports.kafka import KafkaTransport
from choreo.transports.kafka.fencing import transactional_id
from tests.integration.transaction_stage import TransactionStage, committed, part, read


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[TransactionStage]:
    async with TransactionStage(kafka) as found:
        yield found


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
