"""Faults of aiokafka's consumer: what the bare client does, and that choreo holds. Seen in aiokafka 0.14.0.

Numbers are those of docs/aiokafka-faults.md. A bare half that fails means that the fault may be mended.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.record import TopicPartition
from tests.integration.bare_client import (
    Listener,
    bare_consumer,
    members,
    same_version,
    waited,
)
from tests.integration.faulty_broker import OFFSET_FETCH, faulty_broker, no_coordinator
from tests.integration.kafka_stage import Stage, fetched, until, values


@pytest.fixture(autouse=True)
def _seen_in() -> None:
    """Another version fails here, with what to do."""
    same_version()


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[Stage]:
    """Topics and members of this test."""
    async with Stage(kafka) as found:
        yield found


# ---- 2: an OffsetFetch error is taken for "nothing committed"


async def test_2_bare_client_skips_events_when_offset_fetch_fails(stage: Stage) -> None:
    """Committed 5, log end 10: with aiokafka's default `latest` the next event it sees is number 10."""
    topic = await stage.topic()
    await stage.transport.send(values(topic, range(10)))
    async with faulty_broker(stage.servers) as broker:
        async with bare_consumer(broker.address, topic, stage.group, auto_offset_reset="latest") as consumer:
            await waited(consumer.assignment)
            await consumer.commit({KafkaPartition(topic, 0): 5})
        broker.faults[OFFSET_FETCH] = no_coordinator
        async with bare_consumer(broker.address, topic, stage.group, auto_offset_reset="latest") as consumer:
            await waited(consumer.assignment)
            assert await asyncio.wait_for(consumer.position(KafkaPartition(topic, 0)), 5) == 10
            await stage.transport.send(values(topic, [10]))
            assert (await asyncio.wait_for(consumer.getone(), 5)).offset == 10
        assert broker.answered


async def test_2_choreo_takes_no_position_until_offset_fetch_is_answered(stage: Stage) -> None:
    """While the answer is an error `position` is one too, whatever the start; then it is what was committed."""
    topic = await stage.topic()
    where = TopicPartition(topic, 0)
    await stage.transport.send(values(topic, range(10)))
    async with faulty_broker(stage.servers) as broker:
        stage.servers = broker.address
        owner, consumer = await stage.join(topic, start=None)
        await until(lambda _: owner.owned, consumer)
        await consumer.commit({where: 5})
        broker.faults[OFFSET_FETCH] = no_coordinator
        consumer._timeout_s = 1.0
        with pytest.raises(TransportError, match="no answer in time"):
            await consumer.position(where, "latest")
        assert broker.answered > 1, "asked again, of whoever is the coordinator"
        assert not await consumer.fetch(records_max=10, wait_s=0.2)
        broker.faults.clear()
        consumer._timeout_s = 5.0
        consumer.seek(where, await consumer.position(where, "latest"))
        assert [each.offset for each in await fetched(consumer, 5)] == [5, 6, 7, 8, 9]
        await consumer.close()


# ---- 7: a cancelled fetch ends the protection by max_poll_interval_ms


async def test_7_bare_client_keeps_its_partitions_although_it_is_stuck(stage: Stage) -> None:
    """One cancelled fetch, and a consumer that never fetches again is a member for ever."""
    topic = await stage.topic()
    for cancelled, left in ((False, 0), (True, 1)):
        group = f"{stage.group}-{cancelled}"
        async with bare_consumer(stage.servers, topic, group, max_poll_interval_ms=700) as consumer:
            await waited(consumer.assignment)
            if cancelled:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(consumer.getone(), 0.1)
            else:
                await consumer.getmany(timeout_ms=100)
            await asyncio.sleep(2.0)
            assert await members(stage.servers, group) == left


async def test_7_choreo_is_evicted_when_it_is_stuck(stage: Stage) -> None:
    """After a fetch that was cancelled and a poll that failed, a silent member loses its partitions and hears it."""
    topic = await stage.topic()
    owner, consumer = await stage.join(topic, max_poll_interval_ms=700)
    await until(lambda _: owner.owned, consumer)
    fetching = asyncio.create_task(consumer.fetch(records_max=1, wait_s=0.3))
    await asyncio.sleep(0.05)
    fetching.cancel()
    consumer.seek(TopicPartition(topic, 0), 7)
    with pytest.raises(TransportError, match="offset 7"):
        await until(lambda _: False, consumer)
    await waited(lambda: ("revoked", 1, True) in owner.told)
    assert not await members(stage.servers, stage.group)


# ---- 8: the default time-outs allow two owners


async def test_8_bare_client_has_two_owners_and_choreo_one(stage: Stage) -> None:
    """With a 6 s session, one that takes 8 s to let go is replaced after 6 s; choreo's successor waits for it."""
    topic = await stage.topic()
    clock = asyncio.get_running_loop().time
    let_go, owned = [0.0, 0.0], [0.0, 0.0]

    async def bare() -> None:
        first, second = Listener(), Listener()

        async def slow() -> None:
            await asyncio.sleep(8)
            let_go[0] = clock()

        first.on_revoked = slow
        async with bare_consumer(stage.servers, topic, listener=first, group=f"{stage.group}-bare") as one:
            await waited(one.assignment)
            async with bare_consumer(stage.servers, topic, f"{stage.group}-bare", listener=second) as two:
                await waited(lambda: second.told, within_s=12)
                owned[0] = clock()
                await waited(lambda: let_go[0], within_s=5)
                assert two.assignment()

    async def ours() -> None:
        first, one = await stage.join(topic)

        async def slow() -> None:
            await asyncio.sleep(7)
            let_go[1] = clock()

        await until(lambda _: first.owned, one)
        first.on_revoked = slow
        closing = asyncio.create_task(until(lambda _: let_go[1], one, within_s=12))
        second, two = await stage.join(topic)
        await until(lambda _: second.owned or (first.owned and let_go[1]), two, within_s=12)
        owned[1] = clock()
        await closing
        first.on_revoked = None

    await asyncio.gather(bare(), ours())
    assert 0 < owned[0] < let_go[0] - 1, "the successor had it while the first was still letting go"
    assert 0 < let_go[1] <= owned[1], "nobody owned it before it was let go"


# ---- 11: smaller ones


async def test_11_bare_client_commits_after_it_was_evicted(stage: Stage) -> None:
    """It takes the generation of the moment, -1, which an empty group takes."""
    topic = await stage.topic()
    await stage.transport.send(values(topic, range(3)))
    async with bare_consumer(stage.servers, topic, stage.group, max_poll_interval_ms=700) as consumer:
        await waited(consumer.assignment)
        assert (await asyncio.wait_for(consumer.getone(), 5)).offset == 0
        member = consumer._coordinator.member_id
        await waited(lambda: consumer._coordinator.member_id != member)
        await asyncio.wait_for(consumer.commit({KafkaPartition(topic, 0): 1}), 5)


async def test_11_bare_client_forgets_what_a_listener_raised(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on as if the partitions had been taken over, and `stop` revokes nothing."""
    topic = await stage.topic()
    await stage.transport.send(values(topic, range(3)))
    listener = Listener()

    async def fail() -> None:
        raise ValueError("no lease")

    listener.on_assigned = fail
    with caplog.at_level(logging.CRITICAL):
        async with bare_consumer(stage.servers, topic, listener=listener) as consumer:
            assert (await asyncio.wait_for(consumer.getone(), 5)).offset == 0
    assert listener.told == [], "ours: test_two_members_share_and_hand_over, test_error_of_the_assignment..."


async def test_11_bare_client_fetches_for_as_long_as_a_rebalance_takes(stage: Stage) -> None:
    """`getmany(timeout_ms=100)` waits for a slow member; ours: test_fetch_returns_during_a_rebalance."""
    topic = await stage.topic(2)
    listener = Listener()

    async def slow() -> None:
        await asyncio.sleep(2.5)

    listener.on_revoked = slow
    clock = asyncio.get_running_loop().time
    async with bare_consumer(stage.servers, topic, stage.group, listener=listener) as one:
        await waited(one.assignment)
        async with bare_consumer(stage.servers, topic, stage.group) as two:
            await waited(lambda: two._coordinator._coordination_task is not None)
            started_s = clock()
            await asyncio.wait_for(two.getmany(timeout_ms=100), 8)
            assert clock() - started_s > 1.5


async def test_11_bare_client_drops_what_it_fetched_ahead_of_a_pause(stage: Stage) -> None:
    """Nothing is lost, but it is fetched twice. Ours: test_what_was_read_ahead_waits_for_resume."""
    topic = await stage.topic()
    where = KafkaPartition(topic, 0)
    await stage.transport.send(values(topic, range(9)))
    async with bare_consumer(stage.servers, topic) as consumer:
        assert (await asyncio.wait_for(consumer.getone(), 5)).offset == 0
        assert where in consumer._fetcher._records
        consumer.pause(where)
        await consumer.getmany(timeout_ms=50)
        assert where not in consumer._fetcher._records
        consumer.resume(where)
        assert (await asyncio.wait_for(consumer.getone(), 5)).offset == 1
