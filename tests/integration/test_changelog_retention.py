"""Keys that are too old go: out of memory at once, off the log by tombstones and the broker's own compaction."""

import asyncio
import time

import pytest

from choreo.errors import TransportError
from choreo.ports import CommitRequest
from choreo.record import Record
from choreo.stores.changelog.packing import first_digest
from tests.integration.changelog_stage import ChangelogStage, digest

COMPACTED_WITHIN_S = 90.0
"""The broker's cleaner looks every 15 s, and a tombstone goes with the second pass."""
AT_ONCE = {
    "segment.ms": "200",
    "min.cleanable.dirty.ratio": "0.001",
    "max.compaction.lag.ms": "300",
    "delete.retention.ms": "100",
}


def alive(records: list[Record]) -> list[int]:
    """Numbers of the first keys of records that no tombstone follows, in order."""
    values = {each.key: each for each in records}
    return [int.from_bytes(first_digest(each)[:8], "big") for each in values.values() if each.value is not None]


async def test_old_keys_go_with_the_next_commit(kafka: str) -> None:
    """Counted in log time, by the partition's own progress; their tombstones share a transaction with what comes."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store(stage.transport)
        lease = await stage.lease(store)
        for number in range(4):
            await stage.handle(store, lease, number, log_ms=1_000 * number)
        assert await store.purge(stage.group, [stage.input], 1_000) == 0, "its progress is not known"
        await store.renew([lease], 30.0, {lease.partition: 3_000})
        assert await store.purge(stage.group, ["another-topic"], 1_000) == 0
        assert await store.purge(stage.group, [stage.input], 1_000) == 2
        assert await stage.claim(store, lease, 0, 1, 2, 3) == ["fresh", "fresh", "done", "done"]
        assert alive(await stage.kept()) == [0, 1, 2, 3], "nothing was committed since"
        await stage.handle(store, lease, 9, log_ms=3_000)
        assert alive(await stage.kept()) == [2, 3, 9]
        (held,) = (await store.stats()).values()
        assert (held.keys, held.oldest_ms, held.progress_ms) == (3, 2_000, 3_000)
        second = await stage.store()
        assert await stage.claim(second, await stage.lease(second), 0, 1, 2) == ["fresh", "fresh", "done"]


async def test_old_keys_of_an_idle_partition_go_by_themselves(kafka: str) -> None:
    """In a transaction of their own, when the next call finds that nothing was committed; not again after it."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store()
        lease = await stage.lease(store)
        await stage.handle(store, lease, 0, 1, log_ms=1_000)
        await stage.handle(store, lease, 2, log_ms=9_000)
        await store.renew([lease], 30.0, {lease.partition: 20_000})
        assert [await store.purge(stage.group, [stage.input], 15_000) for _ in range(3)] == [2, 0, 0]
        found = await stage.kept()
        assert alive(found) == [2]
        assert [each.value is None for each in found] == [False, False, True]
        await stage.stands_at(3)


async def test_a_key_handled_anew_outlives_the_tombstone_of_its_former_record(kafka: str) -> None:
    """Of the same record key, as when a group is set back beyond its ttl; also if the commit's outcome is unknown."""
    async with ChangelogStage(kafka) as stage:
        store = await stage.store(stage.transport)
        lease = await stage.lease(store)
        await stage.handle(store, lease, 5, log_ms=1_000)
        await store.renew([lease], 30.0, {lease.partition: 20_000})
        assert await store.purge(stage.group, [stage.input], 10_000) == 1
        await stage.claim(store, lease, 5, log_ms=1_000)
        stage.transport.unsure.next = "committed"
        request = stage.request(lease, 5)
        with pytest.raises(TransportError):
            await store.commit(request)
        assert not (await store.commit(request)).refused
        await stage.handle(store, lease, 6)
        assert [each.value is None for each in await stage.kept()] == [False, True, False, False]
        second = await stage.store()
        assert await stage.claim(second, await stage.lease(second), 5, 6) == ["done", "done"]
        assert await stage.emitted() == [5, 5, 6]


async def test_compaction_by_the_broker_keeps_what_is_alive(kafka: str) -> None:
    """Two commits with one first offset among it; what was buried is gone from the log itself, tombstones too."""
    async with ChangelogStage(kafka, config=AT_ONCE) as stage:
        store = await stage.store()
        lease = await stage.lease(store)
        for number in range(6):
            await stage.handle(store, lease, number, log_ms=1_000 if number < 3 else 9_000)
        for number in (20, 21):  # two handlers of one record, in two flushes
            await stage.claim(store, lease, number, log_ms=9_000)
            unit = stage.finished(lease, number, offset=20)
            await store.commit(CommitRequest({lease.partition: lease}, [unit], {}))
        await store.renew([lease], 30.0, {lease.partition: 20_000})
        assert [await store.purge(stage.group, [stage.input], 15_000) for _ in range(2)] == [3, 0]
        began_s, last = time.monotonic(), 100
        while True:
            last += 1
            await stage.handle(
                store, lease, last, log_ms=9_000
            )  # begins a new segment: the last one is never cleaned
            found = await stage.kept()
            gone = {digest(number) for number in range(3)}.isdisjoint(first_digest(each) for each in found)
            if gone or time.monotonic() - began_s > COMPACTED_WITHIN_S:
                break
            await asyncio.sleep(1.0)
        assert gone, f"not compacted within {COMPACTED_WITHIN_S:g} s"
        second = await stage.store()
        verdicts = await stage.claim(second, await stage.lease(second), *range(6), 20, 21, *range(101, last + 1))
        assert verdicts == ["fresh"] * 3 + ["done"] * (len(verdicts) - 3)
