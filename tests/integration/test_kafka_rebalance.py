"""Members of a group on a real Kafka come, go, fall silent and hang; partitions change hands in order."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.record import ProducerRecord, TopicPartition
from choreo.transports.kafka import consumer as kafka_consumer
from tests.integration.kafka_stage import Owner, Stage, fetched, until, values


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[Stage]:
    async with Stage(kafka) as found:
        yield found


async def test_two_members_share_and_hand_over(stage: Stage) -> None:
    """The old owner commits while it is being revoked, the new one goes on from there, and nothing is skipped."""
    topic = await stage.topic(4)
    await stage.transport.send([ProducerRecord(topic, None, b"", (), n % 4) for n in range(40)])
    first, one = await stage.join(topic)
    seen = await fetched(one, 40)

    async def commit() -> None:
        await one.commit({partition: 7 for partition in first.owned})

    first.on_revoked = commit
    second, two = await stage.join(topic)
    after = await until(lambda found: len(second.owned) == 2 and len(found) >= 12, one, two)
    assert first.told == [("assigned", 4, False), ("revoked", 4, False), ("assigned", 2, False)]
    assert first.owned | second.owned == {TopicPartition(topic, n) for n in range(4)}
    assert sorted((each.partition, each.offset) for each in after) == [(p, n) for p in range(4) for n in (7, 8, 9)]
    assert len(seen) == 40
    stranger = next(iter(second.owned))
    with pytest.raises(TransportError, match=f"{stranger}: not assigned"):
        await one.commit({stranger: 10})
    first.on_revoked = None
    await two.close()
    assert second.told[-1] == ("revoked", 2, False)
    started = time.monotonic()
    await until(lambda _: len(first.owned) == 4, one)
    assert time.monotonic() - started < 4, "it left without being missed for a session"


async def test_fetch_returns_during_a_rebalance(stage: Stage) -> None:
    """While another member holds a rebalance up, `fetch` keeps its time, and the poll goes on in the background."""
    topic = await stage.topic(2)
    first, one = await stage.join(topic)
    await until(lambda _: len(first.owned) == 2, one)
    hold = asyncio.Event()

    async def slow() -> None:
        await asyncio.wait_for(hold.wait(), 5)

    first.on_revoked = slow
    second, two = await stage.join(topic)
    longest = 0.0
    for _ in range(15):
        started = time.monotonic()
        assert not await one.fetch(records_max=10, wait_s=0.1)
        assert not await two.fetch(records_max=10, wait_s=0.1)
        longest = max(longest, time.monotonic() - started)
    assert longest < 0.6
    hold.set()
    await until(lambda _: len(first.owned) == len(second.owned) == 1, one, two)
    await stage.transport.send([ProducerRecord(topic, None, b"", (), n) for n in range(2)])
    assert len([*await fetched(one, 1), *await fetched(two, 1)]) == 2
    assert one._consumer._subscription._fetch_count <= 1
    assert not first.told.count(("revoked", 2, True))


async def test_long_handler_keeps_its_partitions_while_fetch_is_called(stage: Stage) -> None:
    """Everything paused for three poll intervals: no eviction, and what was fetched before is not repeated."""
    topic = await stage.topic(2)
    await stage.transport.send([ProducerRecord(topic, None, b"", (), n % 2) for n in range(20)])
    owner, consumer = await stage.join(topic, max_poll_interval_ms=800)
    seen = await fetched(consumer, 20)
    for partition in owner.owned:
        consumer.pause(partition)
    await stage.transport.send([ProducerRecord(topic, None, b"", (), n) for n in range(2)])
    started = time.monotonic()
    while time.monotonic() - started < 2.5:
        assert not await consumer.fetch(records_max=10, wait_s=0.1)
    assert owner.told == [("assigned", 2, False)]
    for partition in owner.owned:
        await consumer.commit({partition: 10})
        consumer.resume(partition)
    seen += await fetched(consumer, 2)
    assert sorted(each[:3] for each in seen) == [(topic, p, n) for p in range(2) for n in range(11)]


async def test_silent_member_is_evicted_told_so_and_cannot_commit(stage: Stage) -> None:
    """Without `fetch` the partitions are lost: said as `lost`, commits refused, and the next fetch joins again."""
    topic = await stage.topic()
    where = TopicPartition(topic, 0)
    await stage.transport.send(values(topic, range(3)))
    owner, consumer = await stage.join(topic, max_poll_interval_ms=700)
    await fetched(consumer, 3)
    failures: list[str] = []

    async def commit() -> None:
        try:
            await consumer.commit({where: 3})
        except TransportError as error:
            failures.append(str(error))
        asyncio.get_running_loop().call_soon(gone.set)

    gone = asyncio.Event()
    owner.on_revoked = commit
    await asyncio.wait_for(gone.wait(), 5)
    assert owner.told == [("assigned", 1, False), ("revoked", 1, True)]
    assert len(failures) == 1
    owner.on_revoked = None
    with pytest.raises(TransportError, match="not assigned"):
        await consumer.commit({where: 3})
    assert [each.offset for each in await fetched(consumer, 3)] == [0, 1, 2]


@pytest.mark.parametrize("which", ["on_assigned", "on_revoked"])
async def test_error_of_the_assignment_comes_out_of_fetch(stage: Stage, which: str) -> None:
    """aiokafka logs and forgets it; we do not."""
    topic = await stage.topic(2)
    owner = Owner()

    async def fail() -> None:
        raise ValueError("no lease")

    setattr(owner, which, fail)
    _, consumer = await stage.join(topic, owner=owner)
    other = None
    if which == "on_revoked":
        await until(lambda _: owner.owned, consumer)
        _, other = await stage.join(topic)
    with pytest.raises(TransportError, match="cannot take or give up partitions: ValueError") as caught:
        await until(lambda _: False, consumer, *filter(None, [other]))
    assert isinstance(caught.value.__cause__, ValueError)
    setattr(owner, which, None)


async def test_closed_in_the_step_partitions_come_leaves_nothing_half_begun(stage: Stage) -> None:
    """`assigned` is called in the task that `close` cancels, or not at all: a coroutine never awaited is an error."""
    topic = await stage.topic()
    owner, consumer = await stage.join(topic)
    await until(lambda _: owner.owned, consumer)
    told = len(owner.told)
    taking = asyncio.create_task(consumer._take_over([KafkaPartition(topic, 0)]))
    closing = asyncio.create_task(consumer.close())  # its first step comes before that of the task `taking` makes
    await asyncio.gather(taking, closing)
    gc.collect()
    assert [what for what, *_ in owner.told[told:]] == ["revoked"]


async def test_new_partitions_are_picked_up(stage: Stage) -> None:
    """A topic that grows is noticed by the metadata refresh and dealt out again."""
    topic = await stage.topic(1)
    owner, consumer = await stage.join(topic)
    await until(lambda _: owner.owned, consumer)
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.servers)
    await admin.start()
    await admin.create_partitions({topic: NewPartitions(3)})
    await admin.close()
    await until(lambda _: len(owner.owned) == 3, consumer)


async def test_close_ends_although_the_group_is_stuck(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that waits in JoinGroup for another one leaves in bounded time; closing twice is nothing."""
    monkeypatch.setattr(kafka_consumer, "STOP_S", 0.5)
    topic = await stage.topic(2)
    first, one = await stage.join(topic)
    await until(lambda _: first.owned, one)
    hold = asyncio.Event()

    async def slow() -> None:
        await asyncio.wait_for(hold.wait(), 8)

    first.on_revoked = slow
    _, two = await stage.join(topic)
    await two.fetch(records_max=1, wait_s=0.5)
    started = time.monotonic()
    await two.close()
    await two.close()
    assert time.monotonic() - started < 4
    with pytest.raises(TransportError):
        await two.fetch(records_max=1, wait_s=0.1)
    hold.set()


async def test_member_beats_while_it_takes_partitions_over(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow `assigned` does not cost the session: aiokafka would be silent until it is over."""
    topic = await stage.topic()
    owner, beats = Owner(), [0]

    async def slow() -> None:
        assert owner.consumer is not None
        coordinator = owner.consumer._consumer._coordinator
        real = coordinator._do_heartbeat

        async def counted() -> Any:
            beats[0] += 1
            return await real()

        monkeypatch.setattr(coordinator, "_do_heartbeat", counted)
        await asyncio.sleep(0.9)
        assert beats[0] >= 2

    owner.on_assigned = slow
    await stage.transport.send(values(topic, [1]))
    _, consumer = await stage.join(topic, owner=owner)
    assert len(await fetched(consumer, 1)) == 1
    assert owner.told == [("assigned", 1, False)]
