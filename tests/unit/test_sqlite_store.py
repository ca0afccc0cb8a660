"""Keys, leases and outbox in one SQLite database, in memory but for the test of two processes' files."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from choreo.errors import LeaseLost, StoreError, TransportError
from choreo.instances import INSTANCES
from choreo.ports import (
    Claimed,
    ClaimRequest,
    CommitRequest,
    Finished,
    Lease,
    TopicSpec,
    Transacted,
)
from choreo.record import ProducerRecord, TopicPartition
from choreo.sqlite import log
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from choreo.stores.sqlite.store import _runs

P = TopicPartition("orders", 0)
Q = TopicPartition("orders", 1)
KEY, OTHER = b"k" * 16, b"o" * 16
EMIT = ProducerRecord("stock", b"order 1", b"{}", (("ce_id", b"1"), ("null", None)))


class FakeClock:
    """Time that stands still."""

    def __init__(self) -> None:
        self.s = 1_000.0

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return self.s

    def monotonic_s(self) -> float:
        """The same."""
        return self.s

    async def sleep(self, delay_s: float) -> None:
        """Later, at once."""
        self.s += delay_s


class Shelf:
    """A store and its clock, and how a worker uses it."""

    def __init__(self, path: str = ":memory:", *, with_log: bool = False) -> None:
        self.clock = FakeClock()
        self.db = Database(path)
        self.store = SqliteStore(self.db, self.clock, with_log=with_log, lease_s=30.0)

    async def lease(self, partition: TopicPartition = P, owner: str = "one", group: str = "inventory") -> Lease:
        """Take one partition."""
        (lease,) = await self.store.acquire(group, [partition], owner)
        return lease

    async def claim(
        self, lease: Lease, key: bytes = KEY, *, print_: bytes = b"12345678", solo: bool = False
    ) -> Claimed:
        """Claim one key."""
        request = ClaimRequest(lease.partition, key, print_, "inventory.reserve", 7, "flow", 0, solo)
        (answer,) = await self.store.claim([lease], [request])
        return answer

    async def rows(self, query: str) -> list[tuple[object, ...]]:
        """What is in a table."""
        return await self.db.read(lambda db: db.execute(query).fetchall())


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    """A store beside a log that is elsewhere."""
    shelf = Shelf()
    await shelf.store.open()
    yield shelf
    await shelf.store.close()


@pytest.fixture
async def logged() -> AsyncIterator[Shelf]:
    """A store beside the embedded log, with one topic."""
    shelf = Shelf(with_log=True)
    await shelf.db.open(log.SCHEMA)
    await shelf.store.open()
    await shelf.db.write(lambda db: log.create_topics(db, [TopicSpec("stock", 1, 1, ())]))
    yield shelf
    await shelf.store.close()
    await shelf.store.close()


def finished(lease: Lease, key: bytes = KEY, *emits: ProducerRecord) -> Finished:
    """A handled unit."""
    return Finished(lease.partition, 7, key, emits, "handled")


def request(lease: Lease, *units: Finished, transacted: Sequence[Transacted] = ()) -> CommitRequest:
    """A flush of one partition."""
    return CommitRequest({lease.partition: lease}, units, {lease.partition: 8}, transacted)


def inside(lease: Lease, key: bytes, call: Callable[[sqlite3.Connection], object], lane: object) -> Transacted:
    """A handler that writes rows in the commit."""

    def invoke(connection: sqlite3.Connection, _: object) -> Finished:
        call(connection)
        return finished(lease, key, EMIT)

    return Transacted(lease.partition, key, lane, "sqlite3.Connection", False, invoke)


def insert(text: str) -> Callable[[sqlite3.Connection], object]:
    """A handler's own row."""
    return lambda connection: connection.execute("INSERT INTO hold VALUES (?)", (text,))


async def create_hold(shelf: Shelf) -> None:
    """A service's own table, as `on_start` creates it."""
    await shelf.store.run(lambda db: db.execute("CREATE TABLE hold (sku TEXT)"))


async def test_a_key_is_fresh_once_and_done_when_it_is_committed(shelf: Shelf) -> None:
    """The second record of an event finds it done, in whichever partition it comes."""
    lease, other = await shelf.lease(P), await shelf.lease(Q)
    assert await shelf.claim(lease) == Claimed("fresh", 1)
    assert (await shelf.store.commit(request(lease, finished(lease)))).refused == frozenset()
    assert await shelf.claim(lease) == Claimed("done")
    assert await shelf.claim(other) == Claimed("done")


async def test_a_claim_repeated_by_its_owner_is_the_same_delivery(shelf: Shelf) -> None:
    """An answer that got lost is asked for again, which is nobody's death."""
    lease = await shelf.lease()
    assert await shelf.claim(lease) == Claimed("fresh", 1)
    assert await shelf.claim(lease) == Claimed("fresh", 1)


async def test_another_payload_under_a_done_key_is_a_conflict(shelf: Shelf) -> None:
    """Told by the fingerprint."""
    lease = await shelf.lease()
    await shelf.claim(lease)
    await shelf.store.commit(request(lease, finished(lease)))
    assert await shelf.claim(lease, print_=b"87654321") == Claimed("conflict")


async def test_a_key_of_a_living_owner_is_busy(shelf: Shelf) -> None:
    """Until its lease runs out; then somebody died with it."""
    lease, other = await shelf.lease(P, "one"), await shelf.lease(Q, "two")
    await shelf.claim(lease)
    assert await shelf.claim(other) == Claimed("busy")
    shelf.clock.s += 29.0
    await shelf.store.renew([other], 30.0)
    assert await shelf.claim(other) == Claimed("busy")
    shelf.clock.s += 1.0
    assert await shelf.claim(other) == Claimed("fresh", 2)


async def test_a_newer_epoch_fences_claims(shelf: Shelf) -> None:
    """The former owner learns that it is none, and the new one has the key at once, as a suspect."""
    old = await shelf.lease(owner="one")
    await shelf.claim(old)
    new = await shelf.lease(owner="two")
    assert (old.epoch, new.epoch) == (1, 2)
    with pytest.raises(LeaseLost, match="a newer owner has orders/0 of the group inventory"):
        await shelf.claim(old, OTHER)
    assert await shelf.claim(new) == Claimed("fresh", 2)
    assert await shelf.rows("SELECT COUNT(*) FROM choreo_key") == [(1,)]


async def test_a_newer_epoch_fences_commits(shelf: Shelf) -> None:
    """Nothing of the former owner is written: no key, no emit, no row of its handlers."""
    await create_hold(shelf)
    old = await shelf.lease(owner="one")
    await shelf.claim(old)
    await shelf.claim(old, OTHER)
    new = await shelf.lease(owner="two")
    result = await shelf.store.commit(
        request(old, finished(old, KEY, EMIT), transacted=[inside(old, OTHER, insert("late"), "a")])
    )
    assert result.refused == frozenset({P})
    assert (list(result.transacted), list(result.outbox)) == ([None], [])
    assert await shelf.rows("SELECT COUNT(*) FROM hold") == [(0,)]
    assert await shelf.store.pending(new) == []
    assert await shelf.claim(new) == Claimed("fresh", 2)
    assert (await shelf.store.commit(request(new, finished(new)))).refused == frozenset()


async def test_one_fenced_partition_refuses_no_other(shelf: Shelf) -> None:
    """What else is in the flush is durable."""
    lost, kept = await shelf.lease(P), await shelf.lease(Q)
    await shelf.claim(lost)
    await shelf.claim(kept, OTHER)
    await shelf.lease(P, "two")
    both = CommitRequest({P: lost, Q: kept}, [finished(lost), finished(kept, OTHER)], {P: 8, Q: 8})
    assert (await shelf.store.commit(both)).refused == frozenset({P})
    assert await shelf.claim(kept, OTHER) == Claimed("done")


async def test_a_claim_that_was_taken_over_refuses_the_commit(shelf: Shelf) -> None:
    """The lease is still the newest of its partition, but it had run out, and the key went elsewhere."""
    slow, quick = await shelf.lease(P), await shelf.lease(Q)
    await shelf.claim(slow)
    shelf.clock.s += 31.0
    await shelf.store.renew([quick], 30.0)
    assert await shelf.claim(quick) == Claimed("fresh", 2)
    assert (await shelf.store.commit(request(slow, finished(slow, KEY, EMIT)))).refused == frozenset({P})
    assert await shelf.store.pending(slow) == []
    assert (await shelf.store.commit(request(quick, finished(quick)))).refused == frozenset()


async def test_deliveries_are_counted_for_what_ran_alone(shelf: Shelf) -> None:
    """Of a batch whose process died only the one that ran alone is charged with it."""
    lease = await shelf.lease()
    await shelf.claim(lease)
    await shelf.claim(lease, OTHER)
    lease = await shelf.lease(owner="after the first death")
    assert [await shelf.claim(lease, key) for key in (KEY, OTHER)] == [Claimed("fresh", 2)] * 2
    for death in range(2, 5):
        lease = await shelf.lease(owner=f"after death {death}")
        assert await shelf.claim(lease, OTHER) == Claimed("fresh", 3)
        assert await shelf.claim(lease) == Claimed("fresh", death + 1)
        assert await shelf.claim(lease, solo=True) == Claimed("fresh", death + 1)


async def test_a_released_lease_gives_up_its_claims(shelf: Shelf) -> None:
    """After an orderly end nobody is suspected, and what was done stays done."""
    lease = await shelf.lease()
    await shelf.claim(lease)
    await shelf.claim(lease, OTHER)
    await shelf.store.commit(request(lease, finished(lease)))
    await shelf.store.release([lease])
    lease = await shelf.lease(owner="two")
    assert await shelf.claim(lease) == Claimed("done")
    assert await shelf.claim(lease, OTHER) == Claimed("fresh", 1)


async def test_a_late_release_takes_nothing_from_the_new_owner(shelf: Shelf) -> None:
    """Its epoch is not the newest any more."""
    old = await shelf.lease(owner="one")
    new = await shelf.lease(owner="two")
    await shelf.claim(new)
    await shelf.store.release([old])
    assert await shelf.store.renew([old, new], 30.0) == frozenset({P})
    assert await shelf.claim(new) == Claimed("fresh", 1)


async def test_groups_do_not_fence_each_other(shelf: Shelf) -> None:
    """One partition may be read by many groups."""
    one, two = await shelf.lease(group="one"), await shelf.lease(group="two")
    assert (one.epoch, two.epoch) == (1, 1)
    assert await shelf.store.renew([one, two], 30.0) == frozenset()


async def test_a_commit_repeated_writes_nothing_twice(shelf: Shelf) -> None:
    """Its emits are in the outbox once, and are found there by whoever resends."""
    lease = await shelf.lease()
    await shelf.claim(lease)
    flush = request(lease, finished(lease, KEY, EMIT, EMIT))
    first = await shelf.store.commit(flush)
    assert [record for _, record in first.outbox] == [EMIT, EMIT]
    again = await shelf.store.commit(flush)
    assert again.refused == frozenset()
    assert list(await shelf.store.pending(lease)) == list(first.outbox)


async def test_the_outbox_is_left_to_the_next_owner(shelf: Shelf) -> None:
    """Emits in order with their headers, until they are on the log; of other partitions nothing."""
    lease, other = await shelf.lease(P), await shelf.lease(Q)
    await shelf.claim(lease)
    second = EMIT._replace(key=None, value=None, headers=(("\udcff", b"\x00"),))
    outbox = (await shelf.store.commit(request(lease, finished(lease, KEY, EMIT, second)))).outbox
    successor = await shelf.lease(P, "two")
    assert [record for _, record in await shelf.store.pending(successor)] == [EMIT, second]
    assert await shelf.store.pending(other) == []
    await shelf.store.sent([outbox[0][0]])
    await shelf.store.sent([])
    assert [record for _, record in await shelf.store.pending(successor)] == [second]


async def test_beside_the_log_emits_and_offset_are_part_of_the_commit(logged: Shelf) -> None:
    """No outbox, and a repeated commit appends nothing twice."""
    lease = await logged.lease()
    await logged.claim(lease)
    flush = request(lease, finished(lease, KEY, EMIT))
    for _ in range(2):
        assert (await logged.store.commit(flush)).outbox == []
    stock = await logged.db.read(lambda db: log.read(db, TopicPartition("stock", 0), 0, 10))
    assert [(record.key, record.value, record.headers) for record in stock] == [EMIT[1:4]]
    assert await logged.rows('SELECT topic, "partition", next FROM choreo_offset') == [("orders", 0, 8)]


async def test_an_emit_that_cannot_be_appended_undoes_the_whole_commit(logged: Shelf) -> None:
    """The key is not done and no offset is committed."""
    lease = await logged.lease()
    await logged.claim(lease)
    with pytest.raises(TransportError, match="there is no topic 'nowhere'"):
        await logged.store.commit(request(lease, finished(lease, KEY, EMIT._replace(topic="nowhere"))))
    assert await logged.rows("SELECT done FROM choreo_key") == [(0,)]
    assert await logged.rows("SELECT * FROM choreo_offset") == []


async def test_a_fenced_commit_moves_no_offset(logged: Shelf) -> None:
    """The new owner starts from what is committed and not from what was lost."""
    old = await logged.lease(owner="one")
    await logged.claim(old)
    await logged.lease(owner="two")
    await logged.store.commit(request(old, finished(old, KEY, EMIT)))
    assert await logged.rows("SELECT * FROM choreo_offset") == []
    assert await logged.rows("SELECT * FROM choreo_log") == []


async def test_rows_of_a_handler_are_part_of_the_commit(shelf: Shelf) -> None:
    """Its row, its key and its emit, all at once."""
    await create_hold(shelf)
    lease = await shelf.lease()
    await shelf.claim(lease)
    result = await shelf.store.commit(request(lease, transacted=[inside(lease, KEY, insert("sku 1"), "a")]))
    assert list(result.transacted) == [finished(lease, KEY, EMIT)]
    assert [record for _, record in result.outbox] == [EMIT]
    assert await shelf.rows("SELECT sku FROM hold") == [("sku 1",)]
    assert await shelf.claim(lease) == Claimed("done")


async def test_a_handler_that_raises_is_rolled_back_alone(shelf: Shelf) -> None:
    """Its own rows go, its lane waits behind it, other lanes and earlier results stay."""
    await create_hold(shelf)
    lease = await shelf.lease()
    keys = [bytes([n]) * 16 for n in range(4)]
    for key in keys:
        await shelf.claim(lease, key)
    broken = RuntimeError("boom")

    def fail(connection: sqlite3.Connection) -> None:
        insert("half")(connection)
        raise broken

    result = await shelf.store.commit(
        request(
            lease,
            finished(lease, keys[0]),
            transacted=[
                inside(lease, keys[1], fail, lane := object()),
                inside(lease, keys[2], insert("behind"), lane),
                inside(lease, keys[3], insert("other"), object()),
            ],
        )
    )
    assert list(result.transacted) == [broken, None, finished(lease, keys[3], EMIT)]
    assert await shelf.rows("SELECT sku FROM hold") == [("other",)]
    verdicts = [(await shelf.claim(lease, key)).verdict for key in keys]
    assert verdicts == ["done", "fresh", "fresh", "done"]
    assert len(result.outbox) == 1


@pytest.mark.parametrize(
    "end",
    [
        lambda connection: connection.execute("COMMIT"),
        lambda connection: connection.execute("ROLLBACK"),
        lambda connection: connection.execute("END"),
        lambda connection: connection.execute("BEGIN"),
        lambda connection: connection.commit(),
        lambda connection: connection.rollback(),
        lambda connection: connection.executescript("CREATE TABLE escaped (x)"),
    ],
    ids=["COMMIT", "ROLLBACK", "END", "BEGIN", "commit()", "rollback()", "executescript()"],
)
async def test_a_handler_cannot_end_the_transaction(
    shelf: Shelf, end: Callable[[sqlite3.Connection], object]
) -> None:
    """It is refused, the handler's rows are undone and the rest of the flush is durable."""
    await create_hold(shelf)
    lease = await shelf.lease()
    await shelf.claim(lease)
    await shelf.claim(lease, OTHER)

    def escape(connection: sqlite3.Connection) -> None:
        insert("escaped")(connection)
        end(connection)

    result = await shelf.store.commit(
        request(
            lease, transacted=[inside(lease, KEY, escape, object()), inside(lease, OTHER, insert("kept"), object())]
        )
    )
    assert isinstance(result.transacted[0], sqlite3.Error)
    assert isinstance(result.transacted[1], Finished)
    assert await shelf.rows("SELECT sku FROM hold") == [("kept",)]
    assert await shelf.rows("SELECT name FROM sqlite_master WHERE name = 'escaped'") == []
    await shelf.store.run(lambda db: db.execute("DELETE FROM hold"))


async def test_a_handler_that_ends_our_savepoint_fails_alone(shelf: Shelf) -> None:
    """It takes nobody else's results with it, and its flush is not repeated for ever."""
    await create_hold(shelf)
    lease = await shelf.lease()
    await shelf.claim(lease)
    transacted = [inside(lease, KEY, lambda connection: connection.execute("RELEASE unit"), object())]
    result = await shelf.store.commit(request(lease, transacted=transacted))
    assert isinstance(result.transacted[0], Exception)


async def test_a_handler_may_use_savepoints_of_its_own(shelf: Shelf) -> None:
    """Part of its work may be undone by itself."""
    await create_hold(shelf)
    lease = await shelf.lease()
    await shelf.claim(lease)

    def handle(connection: sqlite3.Connection) -> None:
        insert("kept")(connection)
        connection.execute("SAVEPOINT mine")
        insert("undone")(connection)
        connection.execute("ROLLBACK TO mine")
        connection.execute("RELEASE mine")

    result = await shelf.store.commit(request(lease, transacted=[inside(lease, KEY, handle, object())]))
    assert isinstance(result.transacted[0], Finished)
    assert await shelf.rows("SELECT sku FROM hold") == [("kept",)]


async def test_a_transacting_unit_whose_claim_is_gone_leaves_no_rows(shelf: Shelf) -> None:
    """Somebody else has its key: it is told as lost, and its rows are undone."""
    await create_hold(shelf)
    slow, quick = await shelf.lease(P), await shelf.lease(Q)
    await shelf.claim(slow)
    shelf.clock.s += 31.0
    await shelf.claim(quick)
    result = await shelf.store.commit(request(slow, transacted=[inside(slow, KEY, insert("late"), object())]))
    assert isinstance(result.transacted[0], LeaseLost)
    assert await shelf.rows("SELECT sku FROM hold") == []


async def test_a_transacting_unit_that_is_done_is_not_done_again(shelf: Shelf) -> None:
    """A commit with an unknown end may have landed: its handler's rows are not written a second time."""
    await create_hold(shelf)
    lease = await shelf.lease()
    await shelf.claim(lease)
    flush = request(lease, transacted=[inside(lease, KEY, insert("once"), object())])
    await shelf.store.commit(flush)
    await shelf.store.commit(flush)
    assert await shelf.rows("SELECT sku FROM hold") == [("once",)]
    assert len(await shelf.store.pending(lease)) == 1


async def test_the_history_of_a_flow_is_told_in_order(shelf: Shelf) -> None:
    """Who handled what, for `choreo trace`."""
    lease = await shelf.lease()
    await shelf.claim(lease)
    await shelf.claim(lease, OTHER)
    await shelf.store.commit(request(lease, finished(lease, OTHER)))
    shelf.clock.s += 1.0
    await shelf.store.commit(request(lease, finished(lease, KEY)))
    history = await shelf.store.history("flow")
    assert [(row["handler"], row["outcome"], row["done_ms"]) for row in history] == [
        ("inventory.reserve", "handled", 1_000_000),
        ("inventory.reserve", "handled", 1_001_000),
    ]
    assert await shelf.store.history("another") == []


async def test_what_a_store_carries_depends_on_where_the_log_is(shelf: Shelf, logged: Shelf) -> None:
    """Emits and offset in the commit, or an outbox; the handler's rows in both."""
    assert shelf.store.carries == {"outbox", "rows", "parked"}
    assert logged.store.carries == {"offset", "emits", "rows", "parked"}
    assert shelf.store.transaction_types == {"sqlite3.Connection", INSTANCES}


async def test_a_closed_store_says_so() -> None:
    """With the tree's own error, which is retried."""
    shelf = Shelf()
    await shelf.store.open()
    await shelf.store.close()
    with pytest.raises(StoreError, match="the database :memory: is closed"):
        await shelf.lease()


async def test_two_processes_share_one_file(tmp_path: Path) -> None:
    """What one connection committed the other knows: a busy key, a newer epoch, a done key."""
    one, two = (Shelf(str(tmp_path / "deep" / "store.db")) for _ in range(2))
    await one.store.open()
    await two.store.open()
    old = await one.lease(P, "one")
    await one.claim(old)
    assert await two.claim(await two.lease(Q, "two")) == Claimed("busy")
    new = await two.lease(P, "two")
    assert await two.claim(new) == Claimed("fresh", 2)
    assert (await one.store.commit(request(old, finished(old)))).refused == frozenset({P})
    await two.store.commit(request(new, finished(new)))
    assert await one.claim(await one.lease(P, "three")) == Claimed("done")
    await one.store.close()
    await two.store.close()


async def test_a_file_that_is_no_database_is_told_as_such(tmp_path: Path) -> None:
    """The message names the file and says what to check."""
    path = tmp_path / "orders.jsonl"
    path.write_text("not a database, but long enough to be looked at as one\n" * 100)
    shelf = Shelf(str(path))
    with pytest.raises(StoreError, match=r"orders\.jsonl cannot be opened: .*; check that its folder"):
        await shelf.store.open()
    await shelf.store.close()


def test_rows_of_an_outbox_are_deleted_by_the_run() -> None:
    """Those between them, which are another commit's, stay."""
    assert _runs([5, 3, 4, 9, 11, 12]) == [(3, 5), (9, 9), (11, 12)]
    assert _runs([]) == []
