"""Bad days of handlers and producers: broken SQL, swallowed cancellation, ids used twice, nightmares for names."""

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from choreo import App, Service
from choreo.core.emission import derived_id
from choreo.core.messages import Limits
from choreo.core.retry import RetryPolicy
from choreo.running import Running
from choreo.runtime.fetching import FETCH_RECORDS_MAX
from tests.integration.bad_days import Desk, Mode, Ordered, Served, order, query, running, until

MODES: tuple[Mode, ...] = ("one_file", "two_files")
LIMITS = Limits(failure_s=0.05)


@pytest.fixture(params=MODES)
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    """A desk in each mode."""
    return Desk(tmp_path, request.param)


# ---- the handler's own SQL


@pytest.mark.parametrize(
    "statement", ["BEGIN", "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK", "END", "executescript", "with", "commit()"]
)
async def test_transaction_of_the_handlers_own_is_refused(desk: Desk, statement: str) -> None:
    """It is an error like any other: attempts, a dead letter, none of its rows, and the partition goes on."""

    def meddle(ordered: Ordered, db: sqlite3.Connection) -> None:
        if ordered.name != "Bob":
            return
        db.execute("INSERT INTO served VALUES ('before', 'Bob')")
        if statement == "executescript":
            db.executescript("INSERT INTO served VALUES ('script', 'Bob');")
        elif statement == "with":
            with db:
                db.execute("INSERT INTO served VALUES ('with', 'Bob')")
        elif statement == "commit()":
            db.commit()
        else:
            db.execute(statement)

    desk.before = meddle
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([order("Ada"), order("Bob"), order("Cyd")])
        await until(lambda: desk.counts(found)["handled"] + desk.counts(found)["dead_letters"] == 3)
        (letter,) = await desk.letters(found)
        assert desk.rows() == ["Ada", "Cyd"]
        assert await desk.all_emitted(found, ["Ada", "Cyd"])
    assert (letter["reason"], letter["attempts"]) == ("handler_failed", "3")
    assert letter["detail"].split()[0] in ("DatabaseError", "OperationalError"), "by choreo, or by SQLite itself"
    assert desk.asked.count("Bob") == 3


async def test_unique_violation_is_dead_lettered_and_the_partition_goes_on(desk: Desk) -> None:
    """One event's constraint undoes that event and no other of its batch."""
    desk.service.on_start(lambda db: db.execute("CREATE TABLE IF NOT EXISTS seat (number INTEGER UNIQUE)"))
    desk.before = lambda ordered, db: db.execute("INSERT INTO seat VALUES (?)", (int(ordered.note),))
    async with desk.running(limits=LIMITS) as found:
        seats = [(f"guest {n:02}", str(7 if n == 5 else n)) for n in range(20)]
        # One key, one partition: order decides who has seat 7 first.
        records = [order(name, note=seat)._replace(key=b"one") for name, seat in seats]
        await found.transport.send(records)
        await until(lambda: desk.counts(found)["handled"] + desk.counts(found)["dead_letters"] == 20)
        (letter,) = await desk.letters(found)
        assert len(desk.rows()) == 19
        assert "guest 07" not in desk.rows()
    assert (letter["reason"], letter["attempts"]) == ("handler_failed", "3")
    assert letter["detail"].startswith("IntegrityError SQLITE_CONSTRAINT_UNIQUE")
    assert "guest" not in letter["detail"]


# ---- cancellation


async def test_handler_that_swallows_cancellation_commits_nothing_when_it_is_too_late(desk: Desk) -> None:
    """The stop ends at its deadline; what the handler returns afterwards is dropped, and the event comes again."""
    service = Service("desk", retry=RetryPolicy(attempts_max=1))
    swallowed: list[str] = []

    async def serve(ordered: Ordered) -> Served:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            swallowed.append(ordered.name)
        return Served(name="too late")

    service.handler(Ordered, name="serve")(serve)
    app = App(service)
    async with running(app, desk.mode, desk.log_path, desk.store_path, drain_s=0.3) as found:
        await found.transport.send([order("Ada")])
        await until(lambda: found.workers["desk"].engine.running == 1)
        since_s = time.monotonic()
    assert time.monotonic() - since_s < 3
    assert swallowed == ["Ada"]
    async with desk.running(limits=LIMITS) as again:
        await until(lambda: desk.rows() == ["Ada"])
        assert await desk.all_emitted(again, ["Ada"])
        assert await desk.letters(again) == []


# ---- ids used twice


async def test_same_id_from_two_sources_is_two_events(desk: Desk) -> None:
    """The key has the source in it: CloudEvents makes ids unique within one."""
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([order("Ada", id="1", source="/a"), order("Bob", id="1", source="/b")])
        await until(lambda: desk.rows() == ["Ada", "Bob"])
        assert desk.counts(found)["duplicates"] == 0


@pytest.mark.parametrize("when", ["at_once", "later", "later_elsewhere", "after_a_restart"])
async def test_same_id_with_another_payload_is_dead_lettered(desk: Desk, when: str) -> None:
    """The first is handled; the other, whenever and wherever it comes, is no duplicate, not lost, stops nothing."""
    first, other = order("Ada", id="1"), order("Ada", id="1", note="another")
    if when == "later_elsewhere":
        first, other = first._replace(partition=0), other._replace(partition=1)
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([first, other] if when == "at_once" else [first])
        await until(lambda: desk.counts(found)["handled"] == 1)
        if when.startswith("later"):
            await found.transport.send([other, other])
            await until(lambda: desk.counts(found)["dead_letters"] == 1 and desk.counts(found)["duplicates"] == 1)
        if when != "after_a_restart":
            await check_collision(desk, found)
    if when == "after_a_restart":
        async with desk.running(limits=LIMITS) as found:
            await found.transport.send([other])
            await check_collision(desk, found)


async def check_collision(desk: Desk, found: Running) -> None:
    """One dead letter, one row, and the service handles what comes next in every partition."""
    names = [f"next {number}" for number in range(20)]
    await found.transport.send([order(name) for name in names])
    await until(lambda: desk.rows() == sorted(["Ada", *names]), 3)
    async with asyncio.timeout(3):
        while not (letters := await desk.letters(found)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert [letter["reason"] for letter in letters] == ["id_collision"]


async def test_derived_id_with_another_payload_is_a_duplicate(desk: Desk) -> None:
    """A re-run of the service before may carry a new time: dropped and counted, not dead-lettered."""
    id_ = derived_id("kitchen", "cook", "/guests", "1", "meal.ordered", 0)
    headers = [("ce_causationid", "1")]
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([order("Ada", id=id_, headers=headers)])
        await until(lambda: desk.counts(found)["handled"] == 1)
        await found.transport.send([order("Ada", id=id_, note="a re-run", headers=headers)])
        await until(lambda: desk.counts(found)["duplicates"] == 1)
        assert await desk.letters(found) == []
        assert desk.rows() == ["Ada"]


async def test_ten_thousand_duplicates_at_once_have_one_effect(desk: Desk) -> None:
    """One row, one emit, 9,999 counted duplicates; while the first is at work, a bounded number is taken in."""
    one, taken = order("Ada"), list[int]()
    desk.before = lambda ordered, db: time.sleep(1.5)
    async with desk.running(limits=LIMITS) as found:
        worker, since_s = found.workers["desk"], time.monotonic()
        await found.transport.send([one._replace(key=b"%d" % number) for number in range(10_000)])
        while desk.counts(found)["duplicates"] < 9_999:
            taken += [partition.unfinished for partition in worker.engine.partitions.values()]
            assert time.monotonic() - since_s < 60, desk.counts(found)
            await asyncio.sleep(0.01)
        await until(lambda: worker.engine.unfinished() == 0)
        assert desk.counts(found)["handled"] == 1
        assert await desk.all_emitted(found, ["Ada"])
    assert 0 < max(taken) < LIMITS.unfinished_max + FETCH_RECORDS_MAX
    assert desk.asked == desk.rows() == ["Ada"]
    assert query(desk.store_path, "SELECT COUNT(*) FROM choreo_key") == [(1,)]


# ---- names

NIGHTMARES = [
    "'; DROP TABLE choreo_key; --",
    'a "quoted" name',
    "`tick`",
    "nul\0in it",
    "\N{PILE OF POO}",
    "%s ? :x $1",
]


async def test_keys_and_ids_out_of_a_nightmare_are_handled_once(desk: Desk) -> None:
    """Quotes, NUL and emoji in keys, ids, sources and correlation ids: kept as they are, and known again."""
    records = [order(name, id=name, source=f"/{name}", headers=[("ce_correlationid", name)]) for name in NIGHTMARES]
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([*records, *records])
        ended = ("handled", "duplicates", "dead_letters")
        await until(lambda: sum(desk.counts(found)[each] for each in ended) == 2 * len(NIGHTMARES))
        assert [desk.counts(found)[each] for each in ended] == [len(NIGHTMARES), len(NIGHTMARES), 0]
        assert desk.rows() == sorted(NIGHTMARES)
        assert await desk.all_emitted(found, NIGHTMARES)
        store = found.stores["desk"]
        for name in NIGHTMARES:
            (row,) = await store.history(name)  # type: ignore[attr-defined]
            assert row["outcome"] == "handled"


async def test_table_and_topic_names_out_of_a_nightmare(tmp_path: Path) -> None:
    """The handler's own tables are its affair; a file's name may hold what a file system takes."""
    folder = tmp_path / 'it\'s a "folder" \N{PILE OF POO} %s'
    folder.mkdir()
    desk = Desk(folder, "two_files")
    table = '"od""d \'table\' \N{PILE OF POO}"'
    desk.service.on_start(lambda db: db.execute(f"CREATE TABLE IF NOT EXISTS {table} (name TEXT)"))
    desk.before = lambda ordered, db: db.execute(f"INSERT INTO {table} VALUES (?)", (ordered.name,))
    async with desk.running(limits=LIMITS) as found:
        await found.transport.send([order("Ada")])
        await until(lambda: desk.rows() == ["Ada"])
    assert query(desk.store_path, f"SELECT name FROM {table}") == [("Ada",)]
