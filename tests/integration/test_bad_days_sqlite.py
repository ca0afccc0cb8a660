"""Bad days of the file: away, lost, slow, full, too new, too old, shared. Nothing is lost, nothing there twice."""

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from choreo import App, Service
from choreo.core.emission import fingerprint, key_digest
from choreo.core.messages import Limits
from choreo.errors import ChoreoError, ConfigurationError, StoreError
from choreo.record import TopicPartition
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from tests.integration.bad_days import Desk, Mode, Ordered, failing, order, query, room, running, slow, until
from tests.sqlite_versions import make_first

MODES: tuple[Mode, ...] = ("one_file", "two_files")
NAMES = [f"guest {number:03}" for number in range(60)]
LIMITS = Limits(failure_s=0.05)


@pytest.fixture(params=MODES)
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    """A desk in each mode."""
    return Desk(tmp_path, request.param)


async def all_served(desk: Desk, names: list[str], *, limits: Limits = LIMITS) -> None:
    """In another process, everything is there once, and nothing more comes."""
    async with desk.running(limits=limits) as found:
        await until(lambda: desk.rows() == sorted(names))
        await asyncio.sleep(0.3)
        assert await desk.emitted(found) == desk.rows() == sorted(names)
        assert await desk.letters(found) == []


# ---- down at start


@pytest.mark.parametrize("mode", MODES)
async def test_store_in_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, mode: Mode) -> None:
    """The error names the file and what to check; nothing is left open."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "store.db"
    desk = Desk(tmp_path, mode)
    log = path if mode == "one_file" else desk.log_path
    with pytest.raises(StoreError, match=r"file/store.db cannot be opened: .*check that its folder can be written"):
        async with running(desk.app, mode, log, path):
            pass


@pytest.mark.parametrize("mode", MODES)
async def test_store_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, mode: Mode) -> None:
    """A file of something else is not overwritten."""
    desk = Desk(tmp_path, mode)
    desk.store_path.write_text("a letter to my aunt\n" * 100)
    with pytest.raises(StoreError, match="cannot be opened: file is not a database"):
        async with desk.running():
            pass
    assert desk.store_path.read_text().startswith("a letter")


# ---- lost in mid-batch


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_store_lost_in_mid_batch_loses_nothing(desk: Desk, after: bool) -> None:
    """Every commit fails for a second, or ends without anybody being told; then the file is back."""
    lost = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(ordered: Ordered, db: sqlite3.Connection) -> None:
        if len(desk.asked) == len(NAMES) // 2:
            loop.call_soon_threadsafe(lost.set)
        time.sleep(0.005)

    desk.before = tell
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([order(name) for name in NAMES])
        async with asyncio.timeout(10):
            await lost.wait()
        with failing(desk.store_path, after=after) as counts:
            await asyncio.sleep(1.0)
        assert counts["failed"] > 3
        await until(lambda: desk.rows() == NAMES)
        assert await desk.all_emitted(found, NAMES)
    await all_served(desk, NAMES)


async def test_store_away_at_the_stop_ends_the_stop(desk: Desk) -> None:
    """A drain that cannot commit ends after `drain_s`; what was not committed is handled by the next process."""
    async with desk.running(limits=LIMITS, drain_s=0.5) as found:
        await found.transport.send([order(name) for name in NAMES[:10]])
        await until(lambda: desk.asked)
        stack = failing(desk.store_path)
        stack.__enter__()
        since_s = time.monotonic()
        stopping = asyncio.gather(*(w._consumer.close() for w in found.workers.values() if w._consumer))
        await asyncio.wait([stopping], timeout=5)
        stack.__exit__(None, None, None)
        assert stopping.done()
        assert time.monotonic() - since_s < 4
        assert stopping.exception() is None or isinstance(stopping.exception(), ChoreoError)
    await all_served(desk, NAMES[:10])


# ---- slow


async def test_store_that_takes_two_seconds_a_call_keeps_its_leases(tmp_path: Path) -> None:
    """Leases outlive the calls, no partition is lost, nothing fails, and everything is handled once."""
    desk = Desk(tmp_path, "two_files")
    names = NAMES[:12]
    async with desk.running(lease_s=9.0) as found:
        worker = found.workers["desk"]
        await until(lambda: len(worker.leases) == 4)
        epochs = dict(worker.leases)
        with slow(desk.store_path, 2.0) as counts:
            await found.transport.send([order(name) for name in names])
            await until(lambda: desk.rows() == names, 40)
        assert counts["slow"] > 2
        assert worker.leases == epochs
        assert await desk.all_emitted(found, names)
        await until(lambda: desk.counts(found)["handled"] == len(names))
        assert desk.counts(found)["failed_attempts"] == 0


# ---- full


async def test_full_store_goes_on_when_there_is_room(desk: Desk) -> None:
    """SQLITE_FULL is no fault of the event: nothing is dead-lettered, and with room again all of it is handled."""
    names = NAMES[:20]
    async with desk.running(limits=LIMITS) as found:
        # All on the log before the file is full, which is the log's file too in one mode.
        desk.before = lambda ordered, db: db.execute(
            "INSERT INTO served SELECT 'filler', hex(zeroblob(40000)) FROM (SELECT 1 UNION SELECT 2 UNION SELECT 3)"
        )
        await room(found, "desk", 60)
        await found.transport.send([order(name) for name in names])
        await asyncio.sleep(2.0)
        assert len([name for name in desk.rows() if name.startswith("guest")]) < len(names)
        handled = desk.counts(found)["handled"]
        await room(found, "desk", 0)
        await until(lambda: desk.counts(found)["handled"] + desk.counts(found)["dead_letters"] == len(names))
        assert handled < len(names)
        assert await desk.letters(found) == []
        assert await desk.all_emitted(found, names)
        assert [name for name in desk.rows() if name.startswith("guest")] == names
        assert len(desk.rows()) == 4 * len(names)


async def test_disk_full_that_a_handler_swallows_commits_nothing(desk: Desk) -> None:
    """SQLite has rolled the transaction back by itself: what the handler does after it must not be committed."""

    def swallow(ordered: Ordered, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO served VALUES ('first', ?)", (ordered.name,))
        try:
            db.execute("INSERT INTO served VALUES ('filler', hex(zeroblob(400000)))")
        except sqlite3.OperationalError:
            pass

    desk.before = swallow
    async with desk.running(limits=LIMITS) as found:
        await room(found, "desk", 40)
        await found.transport.send([order("Ada")])
        await until(lambda: len(desk.asked) > 3)
        assert desk.rows() == []
        assert query(desk.store_path, "SELECT * FROM choreo_key WHERE done = 1") == []
        await room(found, "desk", 0)
        await until(lambda: desk.counts(found)["handled"])
        assert len(desk.rows()) == 3
        assert await desk.all_emitted(found, ["Ada"])


async def test_full_log_refuses_the_publisher_and_recovers(tmp_path: Path) -> None:
    """The publisher's error names the file and the reason; the service goes on once there is room."""
    desk = Desk(tmp_path, "one_file")
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([order("Ada")])
        await until(lambda: desk.counts(found)["handled"] == 1)
        await room(found, "desk", 2)
        with pytest.raises(StoreError, match=r"log\.db failed: database or disk is full"):
            await found.publish(Ordered(name="big", note="x" * 500_000))
        await room(found, "desk", 0)
        await found.publish(Ordered(name="Bob"), id="Bob")
        await until(lambda: "Bob" in desk.rows())
        assert all(worker.failure is None for worker in found.workers.values())


# ---- shared, paused, set wrong


async def test_two_services_share_one_file_and_one_table(tmp_path: Path) -> None:
    """Both handle every event once: a key is a service's own."""
    one, two = Desk(tmp_path, "two_files", name="one"), Desk(tmp_path, "two_files", name="two")
    app = App(one.service, two.service)
    async with running(app, "two_files", one.log_path, one.store_path, limits=LIMITS) as found:
        await found.transport.send([order(name) for name in [*NAMES, *NAMES]])
        await until(lambda: one.rows() == sorted([*NAMES, *NAMES]))
        await until(lambda: one.counts(found)["duplicates"] == two.counts(found)["duplicates"] == len(NAMES))
        assert one.counts(found)["handled"] == two.counts(found)["handled"] == len(NAMES)
        for worker in found.workers.values():
            await worker.teller.tell()
        stats = await found.stores["one"].stats()
        assert {group: (each.keys, each.claims, each.outbox) for group, each in stats.items()} == {
            "one": (60, 0, 0),
            "two": (60, 0, 0),
        }


class Shifted(SystemClock):
    """A clock that is wrong by so many seconds."""

    def __init__(self, by_s: float) -> None:
        self._by_s = by_s

    def now_s(self) -> float:
        """The wrong time."""
        return super().now_s() + self._by_s


@pytest.mark.parametrize("by_s", [-600.0, 600.0])
async def test_newer_epoch_fences_whatever_the_clocks_say(tmp_path: Path, by_s: float) -> None:
    """A member whose clock is ten minutes off, and that took over, has the partition; the former one is refused."""
    partition = TopicPartition("orders", 0)
    path = str(tmp_path / "store.db")
    former = SqliteStore(Database(path), SystemClock(), with_log=False)
    newer = SqliteStore(Database(path), Shifted(by_s), with_log=False)
    await former.open()
    await newer.open()
    try:
        (old,) = await former.acquire("desk", [partition], "former")
        (new,) = await newer.acquire("desk", [partition], "newer")
        assert new.epoch == old.epoch + 1
        assert await former.renew([old], 30.0) == {partition}
        assert await newer.renew([new], 30.0) == frozenset()
        with pytest.raises(ChoreoError, match="a newer owner has orders/0"):
            await former.claim([old], [])
    finally:
        await former.close()
        await newer.close()


async def test_member_paused_for_longer_than_its_lease_is_refused(desk: Desk) -> None:
    """It sleeps inside a handler without renewing, another takes over; waking, it commits nothing."""
    gate = asyncio.Event()
    service = Service("desk", retry=desk.retry)
    woke: list[str] = []

    async def serve(ordered: Ordered) -> None:
        await gate.wait()
        woke.append(ordered.name)

    service.handler(Ordered, name="serve")(serve)
    paused = App(service)
    async with running(paused, desk.mode, desk.log_path, desk.store_path, lease_s=0.4, drain_s=0.2) as frozen:
        worker = frozen.workers["desk"]
        await frozen.transport.send([order("Ada")])
        await until(lambda: worker.engine.running == 1)
        for task in worker._loops:  # as a process that is stopped: it fetches and renews no more
            task.cancel()
        await asyncio.sleep(0.5)
        async with desk.running(lease_s=5.0) as other:
            await until(lambda: desk.rows() == ["Ada"], 15)
            gate.set()
            await until(lambda: woke)
            await asyncio.sleep(0.5)
            assert worker.counts["handled"] == 0
            assert desk.counts(other)["handled"] == 1
            assert await desk.emitted(other) == ["Ada"]


# ---- the schema


@pytest.mark.parametrize("mode", MODES)
async def test_schema_that_is_newer_is_refused(tmp_path: Path, mode: Mode) -> None:
    """It says which version is there, which one this choreo knows, and what to do; nothing is changed."""
    desk = Desk(tmp_path, mode)
    async with desk.running():
        pass
    query(desk.store_path, "UPDATE choreo_schema SET version = 99")
    with pytest.raises(
        ConfigurationError, match=r"schema version 99, and this choreo knows \d+: run the newer choreo"
    ):
        async with desk.running():
            pass
    assert query(desk.store_path, "SELECT version FROM choreo_schema") == [(99,)]


async def test_schema_that_is_older_is_refused_until_it_is_applied_and_keeps_its_keys(tmp_path: Path) -> None:
    """The error names the command; after it, a duplicate of what the older choreo handled is dropped."""
    desk, known = Desk(tmp_path, "two_files"), order("Ada")
    digest = key_digest("desk", "serve", "/guests", "id of Ada")
    make_first(desk.store_path, group="desk", digest=digest, fingerprint=fingerprint(known.value or b""))
    with pytest.raises(ConfigurationError, match=r"older than this choreo.*store plan --sql.*choreo store apply"):
        async with desk.running():
            pass
    store = SqliteStore(Database(str(desk.store_path)), SystemClock(), with_log=False)
    await store.open()
    await store.apply()
    await store.close()
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([known, order("Bob")])
        await until(lambda: desk.rows() == ["Bob"])
        await until(lambda: desk.counts(found)["duplicates"] == 1)


async def test_embedded_broker_brings_its_own_file_up_to_date(tmp_path: Path) -> None:
    """The file is choreo's own: nobody else looks after its schema."""
    desk = Desk(tmp_path, "one_file")
    make_first(desk.store_path)
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([order("Ada")])
        await until(lambda: desk.rows() == ["Ada"])
