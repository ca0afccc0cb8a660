"""A duplicate appended within `ttl` of the first is dropped, however long the group was down; older keys go.

The log's clock is set by hand: records are given timestamps of days ago. Nothing waits for days.
"""

import time
from pathlib import Path

import pytest

from choreo.core.messages import Limits
from choreo.ports import ClaimRequest
from choreo.record import TopicPartition
from choreo.running import Running
from choreo.runtime import fetching, keeping
from choreo.runtime.keeping import Keeper
from choreo.sqlite import leases, log
from tests.integration.bad_days import Desk, Mode, Ordered, order, query, until

MODES: tuple[Mode, ...] = ("one_file", "two_files")
DAY_S = 86_400.0
TTL_S = 7 * DAY_S
LIMITS = Limits(failure_s=0.05)


@pytest.fixture(params=MODES)
def desk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk that looks for old keys all the time, and has one record of a partition in hand at most."""
    monkeypatch.setattr(keeping, "PURGE_S", 0.05)
    monkeypatch.setattr(fetching, "FETCH_RECORDS_MAX", 1)
    return Desk(tmp_path, request.param, attempts_max=10_000)


def append(desk: Desk, name: str, days_ago: float, partition: int = 0) -> None:
    """An order as it was sent days ago; it is on the log from now on."""
    record = order(name, id=f"id of {name}")
    timestamp_ms = int((time.time() - days_ago * DAY_S) * 1000)
    place = ("orders", partition)
    ((offset,),) = query(desk.log_path, 'SELECT next FROM choreo_log_end WHERE topic = ? AND "partition" = ?', *place)
    row = (*place, offset, record.key, record.value, log.encode_headers(record.headers), timestamp_ms)
    query(desk.log_path, "INSERT INTO choreo_log VALUES (?, ?, ?, ?, ?, ?, ?)", *row)
    query(desk.log_path, 'UPDATE choreo_log_end SET next = next + 1 WHERE topic = ? AND "partition" = ?', *place)


def keys(desk: Desk) -> int:
    """Keys of handled events in the store."""
    return int(query(desk.store_path, "SELECT COUNT(*) FROM choreo_key WHERE done = 1")[0][0])


async def made(desk: Desk) -> None:
    """Files with topics in them, and a group that has been there once and has committed."""
    async with desk.running(lease_s=0.15, key_ttl_s=TTL_S, limits=LIMITS) as found:
        await until(lambda: len(found.workers["desk"].leases) == 4)
    # It was there ten days ago.
    query(desk.store_path, "UPDATE choreo_lease SET progress_ms = ?", int((time.time() - 10 * DAY_S) * 1000))


async def purges(found: Running) -> None:
    """Some rounds of renewal and purge have gone by."""
    store = found.stores["desk"]
    seen: list[int] = []
    purge = store.purge

    async def counted(*arguments: object) -> int:
        seen.append(1)
        return await purge(*arguments)  # type: ignore[arg-type]

    store.purge = counted  # type: ignore[method-assign, assignment]
    await until(lambda: len(seen) >= 3)
    store.purge = purge  # type: ignore[method-assign]


async def test_old_keys_go_while_the_group_is_caught_up(desk: Desk) -> None:
    """An event of eight days ago is forgotten, one of six days ago is not."""
    await made(desk)
    append(desk, "old", 8)
    append(desk, "young", 6)
    async with desk.running(lease_s=0.15, key_ttl_s=TTL_S, limits=LIMITS) as found:
        await until(lambda: desk.rows() == ["old", "young"])
        await until(lambda: keys(desk) == 1)
        await purges(found)
    assert query(desk.store_path, "SELECT handler, outcome FROM choreo_key") == [("desk.serve", "handled")]


async def lagging(desk: Desk) -> None:
    """Partition 1 stands still at an event of nine days ago; partition 0 is caught up, and has an old key."""
    await made(desk)
    opened = False
    append(desk, "quick", 8, partition=0)
    append(desk, "slow", 9, partition=1)
    append(desk, "quick", 7.5, partition=1)  # the duplicate behind it, half a day after the first

    def wait(ordered: Ordered, _: object) -> None:
        if ordered.name == "slow" and not opened:
            raise BlockingIOError("not yet")

    desk.before = wait
    patient = Limits(failure_s=0.05, unfinished_max=1)  # partition 1 is paused: nothing behind `slow` is fetched
    async with desk.running(lease_s=0.15, key_ttl_s=TTL_S, limits=patient) as found:
        await until(lambda: desk.rows() == ["quick"])
        await purges(found)
        opened = True
        ended = ("handled", "duplicates", "dead_letters")
        await until(lambda: sum(desk.counts(found)[each] for each in ended) == 3)


async def test_keys_stay_while_a_partition_lags(desk: Desk) -> None:
    """The duplicate of `quick` is behind the slow event of another partition, and is dropped when it comes."""
    await lagging(desk)
    assert desk.rows() == ["quick", "slow"]


async def test_progress_of_the_partition_that_lags_is_needed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the progress of a group taken to be now, the key is gone too early and the duplicate is handled."""
    monkeypatch.setattr(leases, "progress", lambda db, group, topics: int(time.time() * 1000))
    await lagging(desk)
    assert desk.rows() == ["quick", "quick", "slow"]


async def down_for_long(desk: Desk) -> None:
    """Ten days of the log are waiting: the first of a pair at their beginning, its duplicate six days later."""
    await made(desk)
    append(desk, "pair", 10)
    for number in range(30):
        append(desk, f"between {number}", 9.5 - number / 10)
    append(desk, "pair", 4)
    append(desk, "last", 0.5)
    gate = Limits(failure_s=0.05, unfinished_max=1)
    desk.before = lambda ordered, db: time.sleep(0.02)
    async with desk.running(lease_s=0.03, key_ttl_s=TTL_S, limits=gate) as found:
        await until(lambda: "last" in desk.rows())
        await purges(found)


async def test_duplicate_within_ttl_is_dropped_however_long_the_group_was_down(desk: Desk) -> None:
    """Progress is the log's time, not the wall's: while it catches up, keys as old as the records count as young."""
    await down_for_long(desk)
    assert desk.rows().count("pair") == 1
    assert len(desk.rows()) == 32
    assert keys(desk) == 4 + 1  # younger than a week: four of those between, and the last


async def test_progress_in_log_time_is_needed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With wall time as the progress the first of the pair is forgotten at once, and its duplicate is handled."""
    monkeypatch.setattr(
        Keeper, "_progress_ms", lambda self: dict.fromkeys(self._worker.leases, int(time.time() * 1000))
    )
    await down_for_long(desk)
    assert desk.rows().count("pair") == 2


async def test_claims_in_flight_are_not_purged(desk: Desk) -> None:
    """However old their records: a commit whose claim is gone would be refused, and all of its partition with it."""
    await made(desk)
    append(desk, "old", 30)
    append(desk, "young", 0.1)
    desk.before = lambda ordered, db: time.sleep(0.05)
    async with desk.running(lease_s=0.15, key_ttl_s=TTL_S, limits=LIMITS) as found:
        store = found.stores["desk"]
        partition = TopicPartition("orders", 3)
        await until(lambda: partition in found.workers["desk"].leases)
        lease = found.workers["desk"].leases[partition]
        request = ClaimRequest(partition, b"sixteen bytes of", b"12345678", "desk.serve", 0, "flow", 1)
        assert [each.verdict for each in await store.claim([lease], [request])] == ["fresh"]
        await until(lambda: desk.rows() == ["old", "young"])
        await until(lambda: keys(desk) == 1)
        await purges(found)
        assert query(desk.store_path, "SELECT timestamp_ms FROM choreo_key WHERE done = 0") == [(1,)]
