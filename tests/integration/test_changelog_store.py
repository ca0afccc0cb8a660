"""The changelog store on a real Kafka: restarts, newer owners, and commits nobody knows the outcome of."""

import asyncio
import logging
from typing import Literal

import pytest
from aiokafka import AIOKafkaProducer

from choreo.errors import ConfigurationError, LeaseLost, RecordTooLarge, StoreError, TransportError
from choreo.ports import CommitRequest, TopicSpec
from choreo.record import ProducerRecord
from choreo.stores.changelog import changelog_topic
from choreo.stores.changelog import packing as changelog_packing
from choreo.stores.changelog import partition as changelog_partition
from choreo.stores.changelog.packing import Key, pack, unpack
from choreo.transports.kafka import closing as kafka_closing
from choreo.transports.kafka.fencing import transactional_id
from tests.integration.changelog_stage import FINGERPRINT, ChangelogStage, digest


async def test_keys_survive_a_restart(kafka: str) -> None:
    """With their payloads, in their own partition; another process restores them."""
    async with ChangelogStage(kafka) as stage:
        first = await stage.store()
        p, q = await stage.lease(first, 0), await stage.lease(first, 1)
        await stage.handle(first, p, 1, 2, 3)
        await stage.handle(first, q, 4)
        await first.close()
        told: list[tuple[int, int]] = []
        second = await stage.store(progress=lambda partition, keys: told.append((partition.partition, keys)))
        p, q = await second.acquire(stage.group, [stage.partition(0), stage.partition(1)], "two")
        assert sorted(told) == [(0, 3), (1, 1)]
        assert await stage.claim(second, p, 1, 2, 3, 4) == ["done", "done", "done", "fresh"]
        assert await stage.claim(second, q, 4, 1) == ["done", "fresh"]
        assert await stage.claim(second, p, 1, fingerprint=b"another!") == ["conflict"]
        (held,) = (await second.stats()).values()
        assert (held.keys, held.claims, held.oldest_ms) == (4, 2, 1_000)
        assert sorted(await stage.emitted()) == [1, 2, 3, 4]
        await stage.stands_at(4, 5)


async def test_one_commit_is_one_record(kafka: str) -> None:
    """Its keys packed, under its first offset; what is too much for one goes into several."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        lease = await stage.lease(store)
        await stage.handle(store, lease, 5, 6, 7)
        await stage.handle(store, lease, 8)
        found = [unpack(each) for each in await stage.kept()]
        assert [(each.first_offset, each.keys) for each in found] == [(5, 3), (8, 1)]


async def test_many_keys_of_one_commit_come_back(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several records of one transaction."""
    monkeypatch.setattr(changelog_packing, "KEYS_MAX", 40)
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        await stage.handle(store, await stage.lease(store), *range(100))
        assert [unpack(each).keys for each in await stage.kept()] == [40, 40, 20]
        second = await stage.store()
        assert set(await stage.claim(second, await stage.lease(second), *range(100))) == {"done"}


async def test_a_zombie_is_refused(kafka: str) -> None:
    """Cut off with results in its hands, its partition taken over and the same records handled by the new owner."""
    async with ChangelogStage(kafka) as stage:
        zombie, owner = await stage.store(), await stage.store()
        old, other = await stage.lease(zombie, 0), await stage.lease(zombie, 1)
        numbers = range(5)
        await stage.claim(zombie, old, *numbers)
        await stage.claim(zombie, other, 9)
        new = await stage.lease(owner, 0, "two")
        assert new.epoch > old.epoch
        await stage.handle(owner, new, *numbers)
        both = CommitRequest(
            {old.partition: old, other.partition: other},
            [*stage.request(old, *numbers).finished, stage.finished(other, 9)],
            {old.partition: 99, other.partition: 10},
        )
        assert (await zombie.commit(both)).refused == {old.partition}
        assert sorted(await stage.emitted()) == [0, 1, 2, 3, 4, 9], "the zombie's part was not written, the rest was"
        await stage.stands_at(5, 10)
        with pytest.raises(LeaseLost):
            await stage.claim(zombie, old, 7)
        assert await zombie.renew([old, other], 30.0) == {old.partition}
        assert (await zombie.commit(stage.request(old, *numbers))).refused == {old.partition}, "and again"
        await stage.handle(owner, new, 5)
        assert [unpack(each).keys for each in await stage.kept()] == [5, 1]


@pytest.mark.parametrize("outcome", ["committed", "not committed"])
async def test_a_commit_of_unknown_outcome_is_written_once(
    kafka: str, outcome: Literal["committed", "not committed"]
) -> None:
    """The same request again, with one more unit, as a worker sends it: fenced first, then looked up on the log."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store(stage.transport)
        lease = await stage.lease(store)
        await stage.handle(store, lease, 0)
        await stage.claim(store, lease, 1, 2, 3)
        unsure, fences = stage.transport.unsure, stage.transport.unsure.fences
        unsure.next = outcome
        with pytest.raises(TransportError):
            await store.commit(stage.request(lease, 1, 2))
        assert not (await store.commit(stage.request(lease, 1, 2, 3))).refused
        assert unsure.fences == fences + 1
        assert await stage.emitted() == [0, 1, 2, 3]
        await stage.stands_at(4)
        expected = [(0, 1), (1, 2), (3, 1)] if outcome == "committed" else [(0, 1), (1, 3)]
        assert [(each.first_offset, each.keys) for each in map(unpack, await stage.kept())] == expected
        assert await stage.claim(store, lease, 0, 1, 2, 3, 4) == ["done"] * 4 + ["fresh"]
        await stage.handle(store, lease, 5)
        assert unsure.fences == fences + 1, "no longer in doubt"


async def test_what_was_written_of_a_commit_that_failed_elsewhere_is_not_written_again(kafka: str) -> None:
    """Two partitions, an emit of one is too large, and the error says which: the other's part is on the log."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        p, q = await stage.lease(store, 0), await stage.lease(store, 1)
        await stage.claim(store, p, 1, 2)
        await stage.claim(store, q, 3)
        good = stage.finished(p, 1)
        huge = stage.finished(p, 2)._replace(emits=(ProducerRecord(stage.output, b"k", bytes(1_100_000), ()),))
        finished = [good, stage.finished(q, 3), huge]
        leases = {p.partition: p, q.partition: q}
        with pytest.raises(RecordTooLarge) as caught:
            await store.commit(CommitRequest(leases, finished, {p.partition: 3, q.partition: 4}))
        assert caught.value.index == 2
        assert [unpack(each).first_offset for each in await stage.kept(1)] == [3]
        finished[2] = stage.finished(p, 2)
        assert not (await store.commit(CommitRequest(leases, finished, {p.partition: 3, q.partition: 4}))).refused
        assert sorted(await stage.emitted()) == [1, 2, 3]
        await stage.stands_at(3, 4)


async def test_two_handlers_of_one_record_in_two_commits_are_both_kept(kafka: str) -> None:
    """Their records have one first offset, and two keys."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        lease = await stage.lease(store)
        for number in (1, 2):
            await stage.claim(store, lease, number)
            unit = stage.finished(lease, number, offset=7)
            await store.commit(CommitRequest({lease.partition: lease}, [unit], {}))
        assert len({each.key for each in await stage.kept()}) == 2
        assert await stage.claim(store, await stage.lease(store), 1, 2) == ["done", "done"]


async def test_an_open_transaction_of_a_dead_owner_is_not_restored(kafka: str) -> None:
    """Its records are on the log, its end is not: fencing ends it, nobody waits for its timeout."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        lease = await stage.lease(store)
        await stage.handle(store, lease, 1)
        await store.close()
        dead = AIOKafkaProducer(
            bootstrap_servers=stage.servers,
            transactional_id=transactional_id("choreo", stage.group, stage.partition()),
            transaction_timeout_ms=60_000,
        )
        await dead.start()
        await dead.begin_transaction()
        ((packed, value),) = pack([Key(digest(2), FINGERPRINT, 2, 1_000, "handled")])
        changelog = stage.changelog()
        await dead.send_and_wait(changelog.topic, value, packed.record_key, changelog.partition)
        await kafka_closing.discard(dead)
        second = await stage.store()
        async with asyncio.timeout(20.0):
            lease = await stage.lease(second)
        assert await stage.claim(second, lease, 1, 2) == ["done", "fresh"]
        await stage.handle(second, lease, 3)
        assert await stage.claim(second, await stage.lease(second), 2, 3) == ["fresh", "done"]


async def test_an_input_that_was_widened_alone_is_refused(kafka: str) -> None:
    """Until its changelog is as wide; what was known is known then."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        await stage.handle(store, await stage.lease(store), 1)
        await stage.transport.widen({stage.input: 3})
        with pytest.raises(ConfigurationError, match=r"has 3 partitions .*has 2.*which widens both"):
            await stage.lease(store)
        await stage.transport.widen({stage.changelog().topic: 3})
        assert await stage.claim(store, await stage.lease(store), 1) == ["done"]
        await stage.handle(store, await stage.lease(store, 2), 7)


async def test_a_missing_changelog_is_refused(kafka: str) -> None:
    """It is never made on the fly, where a typing error in a group's name would go unseen."""
    async with ChangelogStage(kafka) as stage:
        other = f"{stage.input}-other"
        await stage.transport.create_topics([TopicSpec(other, 1)])
        store = await stage.store()
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="is missing: run `choreo topics apply`"):
                await store.acquire(stage.group, [stage.partition()._replace(topic=other)], "one")
        assert changelog_topic(stage.group, other) not in await stage.transport.topics()


async def test_a_foreign_record_is_named_and_the_partition_not_taken(kafka: str) -> None:
    """A partition whose keys are not all known must not be handled."""
    async with ChangelogStage(kafka) as stage:
        where = stage.changelog(1)
        await stage.transport.send([ProducerRecord(where.topic, b"theirs", b"{}", (), where.partition)])
        store = await stage.store()
        with pytest.raises(StoreError, match=f"{where}@0 is no record of idempotency keys"):
            await store.acquire(stage.group, [stage.partition(0), stage.partition(1)], "one")
        assert (await store.stats())[stage.group].keys == 0
        await stage.handle(store, await stage.lease(store, 0), 1)


async def test_a_released_partition_is_let_go(kafka: str) -> None:
    """Its lease is no longer one, and its memory is free."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        p, q = await stage.lease(store, 0), await stage.lease(store, 1)
        await stage.handle(store, p, 1)
        await stage.claim(store, p, 2)
        await store.release([p])
        assert (await store.commit(stage.request(p, 2))).refused == {p.partition}
        with pytest.raises(LeaseLost):
            await stage.claim(store, p, 2)
        assert (await store.stats())[stage.group][:2] == (0, 0)
        await stage.handle(store, q, 3)


async def test_there_is_no_database(kafka: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nor any other group than its own; and a restore is spoken of."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        with pytest.raises(ConfigurationError, match="wants a database"):
            await store.run(lambda connection: None)
        with pytest.raises(ConfigurationError, match="somebody else's was asked for"):
            await store.acquire("somebody else's", [stage.partition()], "one")
        with caplog.at_level(logging.INFO, "choreo.changelog"):
            await stage.lease(store)
        assert "0 keys of 1 partitions restored" in caplog.text


@pytest.mark.parametrize("before", ["fence", "read", "end"])
async def test_a_zombies_commit_at_any_moment_of_a_takeover_is_either_known_or_refused(
    kafka: str, before: Literal["fence", "read", "end"]
) -> None:
    """Were the keys read before the fence, a commit between the two would be neither: each event handled twice."""
    async with ChangelogStage(kafka) as stage:
        zombie = await stage.store()
        old = await stage.lease(zombie)
        await stage.claim(zombie, old, 1)
        told: list[str] = []

        async def late(moment: str) -> None:
            told.append(moment)
            if moment == before:
                await zombie.commit(stage.request(old, 1))

        owner = await stage.store(stage.transport)
        stage.transport.unsure.moment = late
        new = await stage.lease(owner, 0, "two")
        await late("end")
        assert sorted(told) == ["end", "fence", "read"]
        verdict = await stage.claim(owner, new, 1)
        assert verdict == (["done"] if before == "fence" else ["fresh"])
        await owner.commit(stage.request(new, 1))
        assert await stage.emitted() == [1]


async def test_a_cancelled_commit_of_two_partitions_is_written_once(kafka: str) -> None:
    """As when a drain runs out of time: both are in doubt, both are looked up before anything is written again."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store(stage.transport)
        p, q = await stage.lease(store, 0), await stage.lease(store, 1)
        await stage.claim(store, p, 1)
        await stage.claim(store, q, 2, 3)
        leases, offsets = {p.partition: p, q.partition: q}, {p.partition: 2, q.partition: 4}
        finished = [stage.finished(p, 1), stage.finished(q, 2)]
        stage.transport.unsure.next = "hangs"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await store.commit(CommitRequest(leases, finished, {p.partition: 2, q.partition: 3}))
        again = CommitRequest(leases, [*finished, stage.finished(q, 3)], offsets)
        assert not (await store.commit(again)).refused
        assert sorted(await stage.emitted()) == [1, 2, 3]
        await stage.stands_at(2, 4)
        assert not (await store.commit(again)).refused
        assert [len(await stage.kept(number)) for number in (0, 1)] == [1, 2]


async def test_a_restore_that_is_interrupted_goes_on_where_it_stood(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not begun anew; interrupted too often, the partition is not taken."""
    monkeypatch.setattr(changelog_partition, "READ_AGAIN_S", 0.0)
    async with ChangelogStage(kafka) as stage:
        first = await stage.store()
        await stage.handle(first, await stage.lease(first), 1, 2)
        second = await stage.store(stage.transport)
        unsure = stage.transport.unsure
        unsure.breaks = 1
        lease = await stage.lease(second)
        assert unsure.read_from == [0, 1]
        assert await stage.claim(second, lease, 1, 2, 3) == ["done", "done", "fresh"]
        monkeypatch.setattr(changelog_partition, "READ_ATTEMPTS_MAX", 1)
        unsure.breaks = 1
        with pytest.raises(TransportError):
            await stage.lease(second)
        with pytest.raises(LeaseLost):
            await stage.claim(second, lease, 1)
