"""Redis is down, killed, emptied, full, slow, set up badly: each on a server of the test's own."""

import asyncio
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from choreo.errors import ConfigurationError, LeaseLost, StoreError
from choreo.ports import ClaimRequest, CommitRequest, Finished, Lease
from choreo.stores.redis import RedisStore
from choreo.testing.conformance_shelf import Shelf
from choreo.testing.conformance_store import AGAIN, FRESH
from tests.redis_server import LocalCluster, LocalRedis, started

Result = TypeVar("Result")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalRedis]:
    """A Redis that may be killed."""
    server = LocalRedis(tmp_path)
    with started(server):
        yield server


@pytest.fixture
async def shelf(server: LocalRedis) -> AsyncIterator[Shelf]:
    """One group on it, by a client that waits for 2 s at most."""
    async with opened(server.url, timeout_s=2.0) as store:
        yield Shelf(store, "inventory")


@asynccontextmanager
async def opened(url: str, *, timeout_s: float = 10.0, cluster: bool = False) -> AsyncIterator[RedisStore]:
    """A store that is closed whatever happens."""
    store = RedisStore(url, timeout_s=timeout_s, cluster=cluster)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def claims(lease: Lease, keys: list[bytes]) -> list[ClaimRequest]:
    """One unit a key."""
    return [ClaimRequest(lease.partition, key, b"12345678", "service.handler", 7, "flow", 0) for key in keys]


def finished(lease: Lease, keys: list[bytes]) -> CommitRequest:
    """A flush of one partition."""
    units = [Finished(lease.partition, 7, key, (), "handled") for key in keys]
    return CommitRequest({lease.partition: lease}, units, {lease.partition: 8})


async def test_a_redis_that_is_down_is_told_at_open(server: LocalRedis) -> None:
    """With the address and what to check; when it is there, the same store opens."""
    server.kill()
    store = RedisStore(server.url)
    with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{server.port}/0 cannot be reached: check that it runs"):
        await store.open()
    server.start()
    await store.open()
    await store.close()


async def test_a_redis_killed_in_mid_batch_has_everything_it_answered_for(server: LocalRedis, shelf: Shelf) -> None:
    """Every call fails with an error to be repeated until it is back; the same commits then go through, once."""
    lease, committed, failures = await shelf.lease(shelf.p), list[bytes](), 0
    enough, back = asyncio.Event(), asyncio.Event()

    async def kill() -> None:
        await enough.wait()
        server.kill()
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.start)
        back.set()

    async def until_it_works(call: Callable[[], Awaitable[Result]]) -> Result:
        nonlocal failures
        while True:
            try:
                return await call()
            except StoreError:
                failures += 1
                await asyncio.sleep(0.02)

    killing = asyncio.create_task(kill())
    while not (back.is_set() and failures and len(committed) >= 1_000):
        keys = [os.urandom(16) for _ in range(50)]
        await until_it_works(partial(shelf.store.claim, [lease], claims(lease, keys)))
        assert not (await until_it_works(partial(shelf.store.commit, finished(lease, keys)))).refused
        committed += keys
        if len(committed) >= 500:
            enough.set()
    await killing
    verdicts = await shelf.store.claim([lease], claims(lease, committed))
    assert {each.verdict for each in verdicts} == {"done"}
    assert (await shelf.store.stats())["inventory"][:2] == (len(committed), 0)


async def test_an_emptied_redis_forgets_keys_but_no_zombie_comes_back(server: LocalRedis, shelf: Shelf) -> None:
    """What was handled is fresh again; leases are lost and taken anew, with epochs newer than any before."""
    zombie, key, other = await shelf.lease(shelf.p, "zombie"), os.urandom(16), os.urandom(16)
    await shelf.claim(zombie, other)
    old = await shelf.lease(shelf.p, "old")
    await shelf.claim(old, key)
    await shelf.store.commit(finished(old, [key]))
    server.call("FLUSHALL")
    assert await shelf.store.renew([old], 30.0) == {shelf.p}
    with pytest.raises(LeaseLost):
        await shelf.claim(old, key)
    assert (await shelf.store.commit(finished(old, [key]))).refused == {shelf.p}
    await shelf.store.release([old])
    new = await shelf.lease(shelf.p, "new")
    assert new.epoch > old.epoch > zombie.epoch
    assert await shelf.claim(new, key) == FRESH, "it was forgotten"
    assert await shelf.claim(new, other) == FRESH
    for former in (zombie, old):
        assert (await shelf.store.commit(finished(former, [other]))).refused == {shelf.p}
    assert not (await shelf.store.commit(finished(new, [key, other]))).refused


async def test_a_full_redis_says_so_and_goes_on_when_it_has_room(server: LocalRedis, shelf: Shelf) -> None:
    """Nothing is written in part: neither by the claim that failed nor by the commit. Purging works while full."""
    lease, held = await shelf.lease(shelf.p), list[bytes]()
    server.call("CONFIG", "SET", "maxmemory", "5mb")

    async def fill() -> None:
        for _ in range(200):
            keys = [os.urandom(16) for _ in range(1_000)]
            await shelf.store.claim([lease], claims(lease, keys))
            held.extend(keys)

    with pytest.raises(StoreError, match="is full: raise maxmemory, or purge the store"):
        await fill()
    assert held
    server.call("CONFIG", "SET", "maxmemory", "4mb")  # what the failed claim was sent in has its room back
    with pytest.raises(StoreError, match="is full"):
        await shelf.store.commit(finished(lease, held[:10]))
    assert (await shelf.store.stats())["inventory"][:2] == (0, len(held))
    server.call("CONFIG", "SET", "maxmemory", "0")
    assert not (await shelf.store.commit(finished(lease, held))).refused
    await shelf.store.renew([lease], 30.0, {shelf.p: 3_600_000})
    server.call("CONFIG", "SET", "maxmemory", "1mb")
    assert await shelf.store.purge("inventory", [shelf.p.topic], 0) > 0


async def test_a_slow_redis_is_waited_for_as_long_as_was_said(server: LocalRedis) -> None:
    """Four seconds a call are slow; beyond the limit it is an error, and the connection is fit for use after it."""
    async with opened(server.url) as patient, opened(server.url, timeout_s=0.5) as hasty:
        slept = asyncio.create_task(asyncio.to_thread(server.call, "DEBUG", "SLEEP", "4"))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(patient.acquire("one", [Shelf(patient, "one").p], "owner"))
        with pytest.raises(StoreError, match=r"did not answer SADD within 0\.5 s: check its load"):
            await hasty.acquire("two", [Shelf(hasty, "two").p], "owner")
        shelves = [Shelf(hasty, "two") for _ in range(200)]
        crowd = await asyncio.gather(*(each.lease(each.p) for each in shelves), return_exceptions=True)
        assert {type(each) for each in crowd} == {StoreError}
        assert not slept.done(), "those that wait for their turn wait longer"
        assert len(await waiting) == 1
        await slept
        shelf = Shelf(hasty, "two")
        lease, keys = await shelf.lease(shelf.p), [os.urandom(16), os.urandom(16)]
        assert [await shelf.claim(lease, key) for key in keys] == [FRESH, FRESH], "an answer of another call"


async def test_flushed_scripts_are_loaded_again(server: LocalRedis, shelf: Shelf) -> None:
    """As after a failover: nobody notices."""
    lease, key = await shelf.lease(shelf.p), os.urandom(16)
    server.call("SCRIPT", "FLUSH")
    assert await shelf.claim(lease, key) == FRESH
    server.call("SCRIPT", "FLUSH")
    assert not (await shelf.store.commit(finished(lease, [key]))).refused
    server.call("SCRIPT", "FLUSH")
    assert await shelf.store.renew([lease], 30.0) == frozenset()


async def test_idle_connections_that_were_cut_are_not_an_error(server: LocalRedis, shelf: Shelf) -> None:
    """A proxy or the server's `timeout` closes them; a claim is repeated on a new one, and counted once."""
    key = os.urandom(16)
    await shelf.claim(await shelf.lease(shelf.p), key)
    lease = await shelf.lease(shelf.p)
    for _ in range(3):
        server.call("CLIENT", "KILL", "TYPE", "normal")
        assert await shelf.claim(lease, key) == AGAIN


async def test_a_redis_that_evicts_is_refused(server: LocalRedis) -> None:
    """Only with a limit: without one it never does. A cluster is asked node by node."""
    server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with opened(server.url):
        pass
    server.call("CONFIG", "SET", "maxmemory", "100mb")
    with pytest.raises(ConfigurationError, match="set maxmemory-policy noeviction"):
        async with opened(server.url):
            pass
    server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    async with opened(server.url):
        pass


async def test_a_user_who_may_not_ask_for_settings_is_served(server: LocalRedis) -> None:
    """As on most managed servers; one who may not write is told by name."""
    server.call("ACL", "SETUSER", "guest", "on", ">hid/den", "~*", "+@all", "-config", "-info")
    async with opened(f"redis://guest:hid%2Fden@127.0.0.1:{server.port}/0") as store:
        await Shelf(store, "one").lease(Shelf(store, "one").p)
        server.call("ACL", "SETUSER", "guest", "-evalsha")
        with pytest.raises(StoreError, match="does not let this user do it: check its ACL"):
            await Shelf(store, "one").lease(Shelf(store, "one").p)


async def test_a_wrong_password_is_told_and_never_shown(server: LocalRedis) -> None:
    """Neither in the error, nor in what it came from, nor in the store's own name."""
    server.call("CONFIG", "SET", "requirepass", "right")
    for user, said in ((":hidden@", "does not take the user or password"), ("", "wants a password")):
        url = f"redis://{user}127.0.0.1:{server.port}/0"
        with pytest.raises(StoreError, match=said) as caught:
            async with opened(url):
                pass
        assert "hidden" not in "".join(traceback.format_exception_only(caught.value)) + repr(RedisStore(url))
        cause = caught.value.__cause__
        assert cause is not None
        assert "hidden" not in repr(cause)


async def test_a_replica_is_told_as_such(server: LocalRedis, shelf: Shelf) -> None:
    """After a failover the old address may be one."""
    server.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreError, match="is a replica: give the address of the primary"):
        await shelf.lease(shelf.p)


async def test_a_cluster_is_told_from_one_server(server: LocalRedis, tmp_path: Path) -> None:
    """Either mistake is a setting to be corrected; each node's eviction is looked at."""
    with pytest.raises(ConfigurationError, match="is no Redis Cluster: open the store with cluster=False"):
        async with opened(server.url, cluster=True):
            pass
    (tmp_path / "cluster").mkdir()
    cluster = LocalCluster(tmp_path / "cluster", 2)
    with started(cluster):
        with pytest.raises(
            ConfigurationError, match="is a node of a Redis Cluster: open the store with cluster=True"
        ):
            async with opened(cluster.url):
                pass
        async with opened(cluster.url, cluster=True):
            pass
        cluster.nodes[1].call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        cluster.nodes[1].call("CONFIG", "SET", "maxmemory", "100mb")
        with pytest.raises(ConfigurationError, match="set maxmemory-policy noeviction"):
            async with opened(cluster.url, cluster=True):
                pass
