"""Store and broker hear of what was sent and done beside the next flush, and before a partition is given up."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from choreo.errors import StoreError, TransportError
from choreo.record import TopicPartition
from choreo.running import Running
from choreo.runtime import telling
from tests.unit.test_flushing import Asked, all_said, at_work, desk, until


def once_away(found: Running) -> None:
    """The store does not hear of what was sent first."""
    store, fails = found.stores["desk"], [True]
    sent = store.sent

    async def away(rows: Sequence[int]) -> None:
        if fails:
            fails.clear()
            raise StoreError("the store is away")
        await sent(rows)

    store.sent = away  # type: ignore[method-assign]


async def test_what_is_on_the_log_is_not_sent_again_though_the_outbox_has_it_still(tmp_path: Path) -> None:
    """Whoever asks for what is left meanwhile gets nothing; the store is told of it with what is sent next."""
    async with at_work(tmp_path, desk()) as found:
        store, worker = found.stores["desk"], found.workers["desk"]
        (lease,) = worker.leases.values()
        once_away(found)
        await found.publish(Asked(who="ann", number=1))
        assert await until(lambda: all_said(found, 1))
        assert len(await store.pending(lease)) == 1
        assert await worker.outgoing.resend(lease) == set()
        await found.publish(Asked(who="ann", number=2))

        async def told() -> bool:
            return await all_said(found, 2) and not await store.pending(lease)

        assert await until(told)
        assert len(await found.transport.scan(["said"], since_ms=0)) == 2


async def test_what_is_sent_while_the_store_is_told_it_is_told_of_next(tmp_path: Path) -> None:
    """At once: not only when the lease is renewed."""
    async with at_work(tmp_path, desk()) as found:
        store, worker = found.stores["desk"], found.workers["desk"]
        (lease,) = worker.leases.values()
        sent, asked, answers = store.sent, asyncio.Event(), asyncio.Event()

        async def slow(rows: Sequence[int]) -> None:
            asked.set()
            await answers.wait()
            await sent(rows)

        store.sent = slow  # type: ignore[method-assign]
        await found.publish(Asked(who="ann", number=1))
        await asyncio.wait_for(asked.wait(), 20)
        await found.publish(Asked(who="ann", number=2))
        assert await until(lambda: all_said(found, 2))
        await asyncio.sleep(0.1)  # by now its row is noted, too
        answers.set()

        async def told() -> bool:
            return not await store.pending(lease)

        assert await until(told, within_s=worker.ports.lease_s / 6)


async def test_who_gives_a_partition_up_has_told_all_of_it(tmp_path: Path) -> None:
    """Else the next owner would send it again, and read from where the offset stood."""
    async with at_work(tmp_path, desk()) as found:
        store, worker = found.stores["desk"], found.workers["desk"]
        ((id_, lease),) = worker.leases.items()
        once_away(found)
        consumer, fails = worker.consumer, [True]
        commit = consumer.commit

        async def away(offsets: Mapping[TopicPartition, int]) -> None:
            if fails:
                fails.clear()
                raise TransportError("the broker is away")
            await commit(offsets)

        consumer.commit = away  # type: ignore[method-assign]
        await found.publish(Asked(who="ann", number=1))
        assert await until(lambda: all_said(found, 1))

        async def failed() -> bool:
            return not fails and len(await store.pending(lease)) == 1

        assert await until(failed)
        await worker.holder.revoked([id_], lost=False)
        assert await store.pending(lease) == []
        assert await worker.consumer.position(id_, "earliest") == 1


async def test_flushes_that_follow_each_other_closely_share_a_commit_of_their_offsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told at once is the first; and who gives the partition up tells of the last before."""
    monkeypatch.setattr(telling, "OFFSETS_S", 60.0)
    async with at_work(tmp_path, desk()) as found:
        worker = found.workers["desk"]
        (id_,) = worker.leases
        commit, told = worker.consumer.commit, list[int]()

        async def noted(offsets: Mapping[TopicPartition, int]) -> None:
            told.extend(offsets.values())
            await commit(offsets)

        worker.consumer.commit = noted  # type: ignore[method-assign]
        for number in (1, 2, 3):
            await found.publish(Asked(who="ann", number=number))
            assert await until(lambda number=number: all_said(found, number))  # type: ignore[misc]
        assert told == [1]
        await worker.holder.revoked([id_], lost=False)
        assert told == [1, 3]
