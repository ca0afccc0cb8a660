"""What Redis alone has to show: many at once, hostile names, large batches, forgetting, two groups."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from choreo.errors import ConfigurationError, LeaseLost
from choreo.ports import Claimed, ClaimRequest, CommitRequest, Finished, Lease
from choreo.record import TopicPartition
from choreo.stores.redis.store import PURGE_KEYS_MAX, RedisStore
from choreo.testing.conformance_shelf import Shelf
from choreo.testing.conformance_store import AGAIN, FRESH
from tests.redis_server import LocalCluster, started

HOSTILE = ("a", "a}b", "{", "}", "{}", "a:b", "a%3Ab", "quote\"'", "nul\0", "nul", "\U0001f600", "\udcff", "")


@pytest.fixture
async def store(redis: str) -> AsyncIterator[RedisStore]:
    """A store with keys of its own."""
    store = RedisStore(redis, prefix=uuid4().hex, bucket_ms=1_000)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def shelf(store: RedisStore) -> Shelf:
    """One group of it."""
    return Shelf(store, "inventory")


def requests(partition: TopicPartition, keys: list[bytes], log_ms: int = 0) -> list[ClaimRequest]:
    """One unit a key."""
    return [ClaimRequest(partition, key, b"12345678", "service.handler", 7, "flow", log_ms) for key in keys]


def finished(lease: Lease, keys: list[bytes]) -> CommitRequest:
    """A flush of one partition."""
    units = [Finished(lease.partition, 7, key, (), "handled") for key in keys]
    return CommitRequest({lease.partition: lease}, units, {lease.partition: 8})


async def test_of_ten_thousand_duplicates_at_once_one_partition_has_it(store: RedisStore) -> None:
    """Five hundred tasks over twenty partitions: all others wait, and when it is committed all are duplicates."""
    key, partitions = os.urandom(16), [TopicPartition("orders", number) for number in range(20)]
    leases = await store.acquire("inventory", partitions, "one")
    slices = [(lease, requests(lease.partition, [key] * 20)) for lease in leases for _ in range(25)]
    answers = await asyncio.gather(*(store.claim([lease], units) for lease, units in slices))
    owners = {lease for (lease, _), each in zip(slices, answers, strict=True) if FRESH in each}
    assert len(owners) == 1
    counted = Counter(verdict for each in answers for verdict in each)
    assert counted == {FRESH: 500, Claimed("busy"): 9_500}
    assert not (await store.commit(finished(owners.pop(), [key]))).refused
    answers = await asyncio.gather(*(store.claim([lease], units) for lease, units in slices))
    assert {verdict for each in answers for verdict in each} == {Claimed("done")}


async def test_a_holder_paused_beyond_its_lease_cannot_commit(shelf: Shelf) -> None:
    """It sleeps, its partition is taken, its keys are handled; awake, it writes nothing and knows it."""
    old, keys = await shelf.lease(shelf.p, "sleeper"), [os.urandom(16), os.urandom(16)]
    await shelf.store.claim([old], requests(shelf.p, keys))
    await shelf.store.renew([old], 0.02)
    await asyncio.sleep(0.05)
    new = await shelf.lease(shelf.p, "awake")
    assert await shelf.claim(new, keys[0]) == AGAIN
    await shelf.store.commit(finished(new, keys[:1]))
    assert (await shelf.store.commit(finished(old, keys))).refused == {shelf.p}
    assert await shelf.store.renew([old], 30.0) == {shelf.p}
    assert await shelf.claim(new, keys[1]) == AGAIN, "the sleeper finished it after all"


async def test_a_key_finished_by_another_partition_refuses_the_commit(shelf: Shelf) -> None:
    """The lease is still its partition's newest, and yet the key is not what this owner has done."""
    slow, quick, key = await shelf.lease(shelf.p), await shelf.lease(shelf.q), os.urandom(16)
    await shelf.claim(slow, key)
    await shelf.store.renew([slow], 0.01)
    await asyncio.sleep(0.03)
    assert await shelf.claim(quick, key) == AGAIN
    await shelf.store.commit(finished(quick, [key]))
    assert (await shelf.store.commit(finished(slow, [key]))).refused == {shelf.p}
    assert not (await shelf.store.commit(finished(quick, [key]))).refused, "its own again"


async def test_a_commit_refused_for_one_claim_writes_none_of_its_partition(shelf: Shelf) -> None:
    """Not even those that one script reads two thousand keys before the one that was taken over."""
    slow, quick = await shelf.lease(shelf.p), await shelf.lease(shelf.q)
    keys = [os.urandom(16) for _ in range(2_500)]
    await shelf.store.claim([slow], requests(shelf.p, keys))
    await shelf.store.renew([slow], 0.01)
    await asyncio.sleep(0.03)
    assert await shelf.claim(quick, keys[-1]) == AGAIN
    await shelf.store.renew([slow], 30.0)
    assert (await shelf.store.commit(finished(slow, keys))).refused == {shelf.p}
    verdicts = Counter(each.verdict for each in await shelf.store.claim([slow], requests(shelf.p, keys)))
    assert verdicts == {"fresh": 2_499, "busy": 1}
    assert not (await shelf.store.commit(finished(slow, keys[:-1]))).refused
    assert (await shelf.store.stats())["inventory"][:2] == (2_499, 1)


async def test_thousands_of_units_and_partitions_are_divided(store: RedisStore) -> None:
    """Claim, renewal, commit and release of more than one script takes."""
    partitions = [TopicPartition("orders", number) for number in range(1_100)]
    leases = await store.acquire("inventory", partitions, "one")
    assert len({lease.epoch for lease in leases}) == 1_100
    assert await store.renew(leases, 30.0) == frozenset()
    keys = [os.urandom(16) for _ in range(3_300)]
    units = [unit for n, key in enumerate(keys) for unit in requests(partitions[n % 1_100], [key])]
    assert set(await store.claim(leases, units)) == {FRESH}
    done = [Finished(unit.partition, 7, unit.digest, (), "handled") for unit in units[:1_100]]
    assert not (await store.commit(CommitRequest({each.partition: each for each in leases}, done, {}))).refused
    assert (await store.stats())["inventory"][:2] == (1_100, 2_200)
    await store.release(leases)
    assert (await store.stats())["inventory"][:2] == (1_100, 0)
    answers = await store.claim(leases, units)
    assert [each.verdict for each in answers] == ["done"] * 1_100 + ["fresh"] * 2_200


async def each_has_it_for_itself(url: str, *, cluster: bool) -> None:
    """One key, by every pair of a prefix and a group."""
    suffix, key, partition = uuid4().hex, os.urandom(16), TopicPartition("or:d\0er}s\U0001f600", 0)
    stores = [RedisStore(url, prefix=prefix + suffix, cluster=cluster) for prefix in ("", "x:", "{x}", "x%3A")]
    for store in stores:
        for group in HOSTILE:
            (lease,) = await store.acquire(group, [partition], "own\ner \0")
            assert await store.claim([lease], requests(partition, [key])) == [FRESH]
            await store.commit(finished(lease, [key]))
            assert await store.renew([lease], 30.0, {partition: 77}) == frozenset()
    for store in stores:
        stats = await store.stats()
        assert set(stats) == set(HOSTILE)
        assert {each[:2] for each in stats.values()} == {(1, 0)}
        assert {each.progress_ms for each in stats.values()} == {77}
        await store.close()


async def test_hostile_names_do_not_mix_two_groups(redis: str) -> None:
    """Quotes, NUL, braces, emoji, half a surrogate, nothing; and names that look like others encoded."""
    await each_has_it_for_itself(redis, cluster=False)


async def test_hostile_names_do_not_end_the_tag_of_a_cluster(tmp_path: Path) -> None:
    """All keys of a group stay in one slot: else its scripts are refused."""
    cluster = LocalCluster(tmp_path, 3)
    with started(cluster):
        await each_has_it_for_itself(cluster.url, cluster=True)


async def test_two_groups_in_one_redis_do_not_fence_each_other(store: RedisStore) -> None:
    """One partition, read by both."""
    one, two = Shelf(store, "one"), Shelf(store, "two")
    p, key = TopicPartition("orders", 0), os.urandom(16)
    first, second = await one.lease(p), await two.lease(p)
    assert await store.renew([first, second], 30.0) == frozenset()
    assert [await one.claim(first, key), await two.claim(second, key)] == [FRESH, FRESH]
    await store.release([first])
    assert not (await store.commit(finished(second, [key]))).refused


async def test_what_is_in_flight_is_not_forgotten_and_what_is_dead_is(shelf: Shelf) -> None:
    """A claim beyond the ttl goes when its owner is dead; until then it fences, and is looked at again."""
    live, dead = await shelf.lease(shelf.p), await shelf.lease(shelf.q)
    keys = [os.urandom(16) for _ in range(3)]
    await shelf.store.claim([live], requests(shelf.p, keys[:1]))
    await shelf.store.claim([dead], requests(shelf.q, keys[1:2]))
    await shelf.store.renew([dead], 0.01)
    await shelf.store.claim([live], requests(shelf.p, keys[2:]))
    await shelf.store.commit(finished(live, keys[2:]))
    await asyncio.sleep(0.03)
    await shelf.store.renew([live], 30.0, {shelf.p: 10_000, shelf.q: 10_000})
    assert await shelf.store.purge("inventory", [shelf.p.topic], 0) == 0, "of one partition nothing is known"
    third = await shelf.lease(shelf.q)
    await shelf.store.renew([live, third], 30.0, {shelf.p: 10_000, shelf.q: 10_000})
    assert await shelf.store.purge("inventory", [shelf.p.topic, "another"], 0) == 0, "nor of this topic"
    assert await shelf.store.purge("inventory", [shelf.p.topic], 0) == 2
    assert (await shelf.store.stats())["inventory"][:2] == (0, 1)
    assert not (await shelf.store.commit(finished(live, keys[:1]))).refused
    assert await shelf.store.purge("inventory", [shelf.p.topic], 0) == 1
    assert (await shelf.store.stats())["inventory"] == (0, 0, 0, None, 10_000)


async def test_one_call_of_purge_takes_so_many_keys_and_no_bucket_too_new(shelf: Shelf) -> None:
    """Called again it goes on, until only what is within the ttl is left."""
    lease = await shelf.lease(shelf.p)
    for log_ms, count in ((0, 7_000), (1_000, 7_000), (2_000, 500)):
        keys = [os.urandom(16) for _ in range(count)]
        await shelf.store.claim([lease], requests(shelf.p, keys, log_ms))
        await shelf.store.commit(finished(lease, keys))
    await shelf.store.renew([lease], 30.0, {shelf.p: 12_500})
    purge = [await shelf.store.purge("inventory", [shelf.p.topic], 10_000) for _ in range(3)]
    assert purge == [PURGE_KEYS_MAX, 14_000 - PURGE_KEYS_MAX, 0]
    assert (await shelf.store.stats())["inventory"] == (500, 0, 0, 2_000, 12_500)


async def test_keys_of_a_newer_choreo_are_refused(store: RedisStore, redis: str) -> None:
    """And keys that are not choreo's; applying the version twice is no harm."""
    for _ in range(2):
        await store.apply()
        assert await store.plan() == []
    for found, said in (("2", "schema version 2, and this choreo knows 1"), ("x", "is not choreo's")):
        await store._redis.command("SET", store._version_key, found)
        with pytest.raises(ConfigurationError, match=said):
            await store.plan()
        with pytest.raises(ConfigurationError, match=said):
            await store.apply()


async def test_there_is_no_transaction_to_run_in(store: RedisStore) -> None:
    """`on_start` of a service is refused, not skipped."""
    with pytest.raises(ConfigurationError, match="Redis carries no rows of a handler"):
        await store.run(print)


async def test_one_lost_lease_of_several_is_named(shelf: Shelf) -> None:
    """Nothing of the batch is claimed."""
    old, other, key = await shelf.lease(shelf.p), await shelf.lease(shelf.q), os.urandom(16)
    await shelf.lease(shelf.p, "two")
    with pytest.raises(LeaseLost, match=f"a newer owner has {shelf.p} of the group inventory"):
        await shelf.store.claim([other, old], requests(shelf.q, [key]))
    assert (await shelf.store.stats())["inventory"].claims == 0


@pytest.mark.parametrize(
    "url",
    ["http://host", "redis://", "redis://:hid/den@host:1/0", "redis://:hid#den@host:1", "redis://:hidden@host:p"],
)
def test_a_url_that_is_none_is_refused_and_not_quoted(url: str) -> None:
    """It may hold a password, whole or in part."""
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        RedisStore(url)
    assert "hid" not in f"{caught.value!r}{caught.value.__cause__!r}{caught.value.__context__!r}"


async def test_keys_are_told_by_their_digests(shelf: Shelf) -> None:
    """Done, claimed, or not there: for whoever knows the digest of what they look for."""
    done, claimed, absent = os.urandom(16), os.urandom(16), os.urandom(16)
    lease = await shelf.lease(shelf.p)
    for key in (done, claimed):
        await shelf.claim(lease, key)
    await shelf.store.commit(CommitRequest({shelf.p: lease}, [Finished(shelf.p, 7, done, (), "handled")], {}))
    assert isinstance(shelf.store, RedisStore)
    assert await shelf.store.keys(shelf.group, [done, claimed, absent]) == {done: True, claimed: False}
