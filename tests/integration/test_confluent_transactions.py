"""Transactions on librdkafka and a real Kafka: whole or not at all, and only while the partition is ours."""

import asyncio
import os
import threading
import time
from typing import Any, Literal

import pytest

from choreo.errors import LeaseLost, RecordTooLarge, TransportError
from choreo.ports import LogCommit
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.transports.confluent import succession
from choreo.transports.confluent.client import KafkaError, KafkaException, Producer
from tests.integration.confluent_stage import QUICK, Owner, owners, part, topic_of, until, values


async def committed(owner: Owner, topic: str) -> list[int]:
    """What a reader under read_committed sees, as numbers."""
    await asyncio.sleep(1.0)  # Kafka answers a transaction's commit before readers see it
    return [int(each.value or b"") for each in await owner.transport.scan([topic], since_ms=0)]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_parts_are_committed_with_their_offsets(kafka: str, protocol: Literal["classic", "consumer"]) -> None:
    """One transaction for two partitions; one without an offset keeps the one it has, and is fenced all the same."""
    options: dict[str, Any] = {"group_protocol": protocol, "consumer_options": QUICK if protocol == "classic" else {}}
    async with owners(kafka, 1, transactional=True, **options) as (_, (owner,)):
        source, target = await topic_of(owner.transport, 2), await topic_of(owner.transport)
        for number in (0, 1):
            await owner.transport.send(values(source, range(5), number))
        await owner.join(source)
        await until(lambda: len(owner.found) == 10, owner)
        one, two = TopicPartition(source, 0), TopicPartition(source, 1)
        assert owner.transactions is not None
        done = await owner.transactions.commit({one: part(target, [1, 2], 5), two: part(target, [3], None)})
        assert done == {one: None, two: None}
        assert sorted(await committed(owner, target)) == [1, 2, 3]
        assert await owner.consumer.offsets.committed([one, two]) == {one: 5, two: 0}
        first = await owner.transactions.fence([one])
        assert (await owner.transactions.fence([one]))[one] > first[one]
        await owner.transactions.give_up([one])
        done = await owner.transactions.commit({one: part(target, [4], 5)})
        assert isinstance(done[one], LeaseLost)


# A KIP-848 member is given up after the broker's 45 s: 70 s of a test, run on demand (CUT_OFF=consumer).
@pytest.mark.parametrize("protocol", [os.environ.get("CUT_OFF", "classic")])
async def test_member_that_was_cut_off_cannot_commit(kafka: str, protocol: Literal["classic", "consumer"]) -> None:
    """Its partition is taken over and the same five records are committed; then it commits: these five are visible.

    It holds the membership it had, as if it had been stopped between its check and its commit: the broker refuses.
    """
    quick = QUICK if protocol == "classic" else {}
    options: dict[str, Any] = {
        "group_protocol": protocol,
        "consumer_options": {**quick, "max.poll.interval.ms": 6_000},
    }
    async with owners(kafka, 2, transactional=True, **options) as (_, (zombie, heir)):
        source, target = await topic_of(zombie.transport), await topic_of(zombie.transport)
        await zombie.transport.send(values(source, range(5)))
        await zombie.join(source)
        await until(lambda: len(zombie.found) == 5, zombie)
        where = TopicPartition(source, 0)
        assert zombie.transactions is not None
        assert heir.transactions is not None
        known = zombie.consumer.offsets.metadata()
        await asyncio.wrap_future(known)
        wake = threading.Event()
        stopped = zombie.consumer._thread.commands.call(lambda: wake.wait(120))  # polls no more: is put out
        zombie.consumer.offsets.metadata = lambda: known  # type: ignore[method-assign]
        await heir.join(source)
        # Under KIP-848 after the broker's session timeout, 45 s: librdkafka does not leave before it polls again.
        await until(lambda: len(heir.found) == 5, heir, within_s=90)
        assert await heir.transactions.commit({where: part(target, range(5), 5)}) == {where: None}
        done = await zombie.transactions.commit({where: part(target, range(5), 5)})
        assert isinstance(done[where], TransportError), done
        assert not isinstance(done[where], LeaseLost)  # it does not know yet; it was the broker that refused
        # What it appended is aborted at once, although it has nothing more to commit: readers do not wait for it.
        assert await heir.transactions.commit({where: part(target, [5], 6)}) == {where: None}
        assert await committed(heir, target) == list(range(6))
        wake.set()
        await asyncio.wrap_future(stopped)
        await until(lambda: zombie.lost, zombie)
        done = await zombie.transactions.commit({where: part(target, range(5), 5)})
        assert isinstance(done[where], LeaseLost)
        assert heir.owned == {where}
        batches = [batch async for batch in heir.transactions.read(TopicPartition(target, 0), 0)]
        assert [int(each.value or b"") for batch in batches for each in batch] == list(range(6))


async def test_revocation_waits_for_a_commit_under_way(kafka: str) -> None:
    """Partitions are handed over while one member commits without a pause: nothing is lost, nothing doubled."""
    async with owners(kafka, 2, transactional=True) as (_, members):
        one, two = members
        source, target = await topic_of(one.transport, 4), await topic_of(one.transport, 4)
        for number in range(4):
            await one.transport.send(values(source, range(number * 1000, number * 1000 + 300), number))
        stop = asyncio.Event()

        async def work(owner: Owner) -> None:
            while not stop.is_set():
                records = await owner.consumer.fetch(records_max=10, wait_s=0.1)
                by: dict[TopicPartition, list[Record]] = {}
                for each in records:
                    by.setdefault(TopicPartition(each.topic, each.partition), []).append(each)
                parts = {
                    where: LogCommit(
                        [ProducerRecord(target, None, each.value, (), each.partition) for each in found],
                        found[-1].offset + 1,
                    )
                    for where, found in by.items()
                }
                assert owner.transactions is not None
                for where, why in (await owner.transactions.commit(parts) if parts else {}).items():
                    if why is not None and where in owner.owned:  # as a store does: fence, then from where it stands
                        await owner.assigned([where])

        await one.join(source)
        tasks = [asyncio.create_task(work(one))]
        await asyncio.sleep(1.5)
        await two.join(source)
        tasks.append(asyncio.create_task(work(two)))
        end_s = time.monotonic() + 40
        while len(found := await committed(one, target)) < 1200 and time.monotonic() < end_s:  # noqa: ASYNC110
            await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*tasks)
        assert len(two.owned) == 2
        assert sorted(found) == sorted(n for p in range(4) for n in range(p * 1000, p * 1000 + 300))


async def test_oversized_part_is_refused_alone(kafka: str) -> None:
    """The record is named by its place in its part; the other part is committed."""
    async with owners(kafka, 1, transactional=True) as (_, (owner,)):
        source = await topic_of(owner.transport, 2)
        target = await topic_of(owner.transport, max_message_bytes="4000")
        await owner.join(source)
        await until(lambda: len(owner.owned) == 2, owner)
        one, two = TopicPartition(source, 0), TopicPartition(source, 1)
        big = [*values(target, [1]), ProducerRecord(target, b"k", b"x" * 9_000, (), 0)]
        assert owner.transactions is not None
        done = await owner.transactions.commit({one: LogCommit(big, 0), two: part(target, [7], 0)})
        error = done[one]
        assert isinstance(error, RecordTooLarge)
        assert error.index == 1
        assert done[two] is None
        assert await committed(owner, target) == [7]
        many = [ProducerRecord(target, b"k", b"%0900d" % number, (), 0) for number in range(10)]
        assert await owner.transactions.commit({one: LogCommit(many, 0)}) == {one: None}
        assert await committed(owner, target) == [7, *range(10)]


async def test_commit_whose_answer_is_lost_is_not_made_again(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction ended well, and librdkafka says that it must be aborted: whoever asked is to look first."""

    class Lost(Producer):
        def commit_transaction(self, timeout: float = -1) -> None:
            super().commit_transaction(timeout)
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_PRODUCER_ID, "lost", txn_requires_abort=True))

    monkeypatch.setattr(succession, "Producer", Lost)
    async with owners(kafka, 1, transactional=True) as (_, (owner,)):
        source, target = await topic_of(owner.transport), await topic_of(owner.transport)
        await owner.join(source)
        await until(lambda: owner.owned, owner)
        where = TopicPartition(source, 0)
        assert owner.transactions is not None
        done = await owner.transactions.commit({where: part(target, [1], 0)})
        assert "not known whether it was committed" in str(done[where])
        assert await committed(owner, target) == [1]


async def test_producer_is_made_anew_after_a_broker_was_lost(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for good for a coordinator that is gone; lost before a transaction or in it, none is made twice."""
    asked: list[Producer] = []

    class Asked(Producer):
        def send_offsets_to_transaction(self, *given: Any) -> None:
            asked.append(self)
            super().send_offsets_to_transaction(*given)

    monkeypatch.setattr(succession, "Producer", Asked)
    monkeypatch.setattr(succession, "RENEW_S", 0.0)
    async with owners(kafka, 1, transactional=True) as (_, (owner,)):
        source, target = await topic_of(owner.transport), await topic_of(owner.transport)
        await owner.join(source)
        await until(lambda: owner.owned, owner)
        where, metadata = TopicPartition(source, 0), owner.consumer.offsets.metadata
        assert owner.transactions is not None

        async def commit(number: int) -> None:
            assert owner.transactions is not None
            assert await owner.transactions.commit({where: part(target, [number], 0)}) == {where: None}

        def lost_in_it() -> Any:
            owner.consumer.offsets.metadata = metadata  # type: ignore[method-assign]
            owner.consumer.failures.disconnects += 1
            return metadata()

        await commit(1)
        await commit(2)
        owner.consumer.failures.disconnects += 1
        await commit(3)
        owner.consumer.offsets.metadata = lost_in_it  # type: ignore[method-assign]
        await commit(4)
        assert [asked.index(each) for each in asked] == [0, 0, 2, 3]
        assert await committed(owner, target) == [1, 2, 3, 4]


async def test_reading_waits_for_an_open_transaction(kafka: str) -> None:
    """To the end of all that was appended: what is open is waited for, and not shown when it was aborted."""
    async with owners(kafka, 1, transactional=True) as (group, (owner,)):
        target = await topic_of(owner.transport)
        await owner.transport.send(values(target, [1]))
        other = Producer(
            {"bootstrap.servers": kafka, "transactional.id": f"other-{group}", "transaction.timeout.ms": 30_000}
        )
        await asyncio.to_thread(other.init_transactions, 10)
        other.begin_transaction()
        other.produce(target, b"2", partition=0)
        await asyncio.to_thread(other.flush, 10)
        found: list[Record] = []

        async def read() -> None:
            assert owner.transactions is not None
            async for batch in owner.transactions.read(TopicPartition(target, 0), 0):
                found.extend(batch)

        reading = asyncio.create_task(read())
        await asyncio.wait({reading}, timeout=1.5)
        assert not reading.done()
        await asyncio.to_thread(other.abort_transaction, 10)
        await asyncio.wait_for(reading, 10)
        assert [each.value for each in found] == [b"1"]
