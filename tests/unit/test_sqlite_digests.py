"""Keys of a SQLite file are found whether they are in memory or in the index, whoever made or deleted them."""

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from choreo.errors import StoreError
from choreo.ports import ClaimRequest, CommitRequest, Finished, Lease
from choreo.record import TopicPartition
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore, digests
from tests.sqlite_versions import make_first

RUN = 8
TTL_MS = 60


class Member:
    """One process's store, and the partition it owns."""

    def __init__(self, path: Path, number: int) -> None:
        self.database = Database(str(path))
        self.store = SqliteStore(self.database, SystemClock(), with_log=False)
        self.partition = TopicPartition("orders", number)
        self.lease = Lease("g", self.partition, 0, "")
        self.offset = 0
        self.begun: list[bytes] = []
        """Claimed, and neither committed nor released."""

    async def open(self) -> None:
        await self.store.open()
        await self.take()

    async def take(self) -> None:
        (self.lease,) = await self.store.acquire("g", [self.partition], "me")

    async def claim(self, found: Sequence[bytes], at_ms: int) -> list[str]:
        requests = [
            ClaimRequest(self.partition, digest, b"12345678", "h", self.offset + n, "flow", at_ms)
            for n, digest in enumerate(found)
        ]
        self.offset += len(found)
        return [each.verdict for each in await self.store.claim([self.lease], requests)]

    async def commit(self, done: Sequence[bytes]) -> None:
        finished = [Finished(self.partition, 0, digest, (), "handled") for digest in done]
        result = await self.store.commit(CommitRequest({self.partition: self.lease}, finished, {}))
        assert not result.refused

    async def indexed(self) -> int:
        """Digests in the index; each is of a row that is there."""
        assert await self.database.read(
            lambda db: db.execute(
                "SELECT COUNT(*) FROM choreo_digest d LEFT JOIN choreo_key k "
                "ON k.id = d.id AND substr(k.digest, 1, 8) = d.prefix WHERE k.id IS NULL"
            ).fetchone()
        ) == (0,)
        rows = await self.database.read(lambda db: db.execute("SELECT COUNT(*) FROM choreo_digest").fetchone())
        return int(rows[0])


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "RUN_KEYS", RUN)


@pytest.mark.parametrize("seed", range(8))
async def test_two_members_of_one_file_find_each_others_keys(tmp_path: Path, seed: int) -> None:
    """Random claims, commits, releases and purges by turns; every answer is that of a dict."""
    chance = random.Random(seed)
    members = [Member(tmp_path / "s.db", number) for number in range(2)]
    for member in members:
        await member.open()
    done: dict[bytes, int] = {}
    forgotten: list[bytes] = []
    indexed = 0
    for now_ms in range(1_000, 1_300):
        member = chance.choice(members)
        fresh = [chance.randbytes(16) for _ in range(chance.randrange(5))]
        # Colliding prefixes too: another key in the run that is searched.
        fresh += [each[:8] + chance.randbytes(8) for each in chance.sample(sorted(done), min(len(done), 1))]
        fresh += chance.sample(forgotten, min(len(forgotten), 2))
        forgotten = [each for each in forgotten if each not in fresh]
        known = chance.sample(sorted(done), min(len(done), 4))
        asked = [*fresh, *known]
        assert await member.claim(asked, now_ms) == ["fresh"] * len(fresh) + ["done"] * len(known)
        member.begun += fresh
        if chance.random() < 0.3:
            await member.store.release([member.lease])
            await member.take()
            forgotten += member.begun
            member.begun.clear()
        elif chance.random() < 0.5:
            await member.commit(member.begun)
            done.update(dict.fromkeys(member.begun, now_ms))
            member.begun.clear()
        if chance.random() < 0.2:
            for each in members:
                await each.store.renew([each.lease], 30.0, {each.partition: now_ms})
            await chance.choice(members).store.purge("g", ["orders"], TTL_MS)
            rows = await member.database.read(lambda db: db.execute("SELECT digest FROM choreo_key").fetchall())
            left = {row[0] for row in rows}
            assert all(digest in left for digest, at_ms in done.items() if at_ms >= now_ms)
            forgotten += [digest for digest in done if digest not in left]
            done = {digest: at_ms for digest, at_ms in done.items() if digest in left}
        indexed = max(indexed, await member.indexed())
    assert indexed > 5 * RUN
    for member in members:
        await member.store.close()


async def test_a_claim_that_was_rolled_back_leaves_nothing_in_memory(tmp_path: Path) -> None:
    """Its ids are given to other keys, which the next claims find."""
    one, two = Member(tmp_path / "s.db", 0), Member(tmp_path / "s.db", 1)
    await one.open()
    await two.open()
    request = ClaimRequest(one.partition, b"a" * 16, b"12345678", "h", 0, "flow", 1)
    await one.database.write(
        lambda db: db.execute(
            "CREATE TRIGGER no BEFORE INSERT ON choreo_key WHEN NEW.offset = 7 BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    )
    with pytest.raises(Exception, match="no"):
        await one.store.claim([one.lease], [request, request._replace(digest=b"b" * 16, offset=7)])
    assert await two.claim([b"c" * 16], 1) == ["fresh"]
    await two.commit([b"c" * 16])
    assert await one.claim([b"c" * 16, b"a" * 16, b"b" * 16], 1) == ["done", "fresh", "fresh"]
    for member in (one, two):
        await member.store.close()


@pytest.mark.parametrize("between", [True, False])
async def test_a_claim_that_was_not_committed_leaves_nothing_in_memory_either(tmp_path: Path, between: bool) -> None:
    """Its ids are given to other keys: of another member, or of its own."""
    one, two = Member(tmp_path / "s.db", 0), Member(tmp_path / "s.db", 1)
    await one.open()
    await two.open()
    await one.database.write(
        lambda db: [
            db.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)"),
            db.execute("CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"),
            db.execute(
                "CREATE TRIGGER no AFTER INSERT ON choreo_key WHEN NEW.handler = 'no' "
                "BEGIN INSERT INTO child VALUES (1); END"
            ),
        ]
    )
    assert await one.claim([b"o" * 16], 1) == ["fresh"]
    request = ClaimRequest(one.partition, b"a" * 16, b"12345678", "no", 1, "flow", 1)
    with pytest.raises(StoreError, match="FOREIGN KEY"):  # by the COMMIT
        await one.store.claim([one.lease], [request])
    other = two if between else one
    assert await other.claim([b"c" * 16], 1) == ["fresh"]
    await other.commit([b"c" * 16])
    assert await one.claim([b"c" * 16, b"a" * 16, b"o" * 16], 1) == ["done", "fresh", "fresh"]
    for member in (one, two):
        await member.store.close()


async def test_keys_deleted_before_they_are_sorted_in_leave_memory_too(tmp_path: Path) -> None:
    """Or a file with a short retention would fill it."""
    member = Member(tmp_path / "s.db", 0)
    await member.open()
    for at_ms in range(1_000, 1_040):
        keys = [random.randbytes(16) for _ in range(RUN // 4)]
        assert set(await member.claim(keys, at_ms)) == {"fresh"}
        await member.commit(keys)
        await member.store.renew([member.lease], 30.0, {member.partition: at_ms})
        await member.store.purge("g", ["orders"], 0)
    assert len(member.store._digests._ids) <= 2 * RUN
    assert await member.indexed() < RUN
    await member.store.close()


async def test_the_same_key_twice_in_one_claim_is_one_key(tmp_path: Path) -> None:
    """The second is ours already."""
    member = Member(tmp_path / "s.db", 0)
    await member.open()
    assert await member.claim([b"a" * 16, b"a" * 16], 1) == ["fresh", "fresh"]
    assert (await member.store.stats())["g"].claims == 1
    await member.store.close()


async def test_a_file_of_an_older_version_is_indexed_when_it_is_opened(tmp_path: Path) -> None:
    """And not read into memory."""
    make_first(tmp_path / "s.db", group="g")
    member = Member(tmp_path / "s.db", 0)
    await member.store.open()
    await member.store.apply()
    await member.take()
    old = [b"%016d" % number for number in range(3 * RUN)]
    assert set(await member.claim(old, 1)) == {"fresh"}
    await member.commit(old)
    await member.database.write(
        lambda db: [db.execute("DELETE FROM choreo_digest"), db.execute("UPDATE choreo_run SET end = 0")]
    )
    await member.store.close()
    again = Member(tmp_path / "s.db", 0)
    await again.open()
    assert await again.indexed() == 3 * RUN
    assert set(await again.claim(old, 1)) == {"done"}
    await again.store.close()


async def test_keys_are_told_by_their_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Done, claimed, or not there, whether they are in the index or newer than it."""
    monkeypatch.setattr(digests, "RUN_KEYS", RUN)
    member = Member(tmp_path / "keys.db", 0)
    await member.open()
    old, new, open_ = [bytes([n]) * 16 for n in range(RUN)], bytes([100]) * 16, bytes([101]) * 16
    await member.claim(old, 0)
    await member.commit(old)
    while await member.database.write(digests.sort_in):
        pass
    await member.claim([new, open_], 0)
    await member.commit([new])
    asked = [*old, new, open_, bytes([102]) * 16]
    assert await member.store.keys("g", asked) == {**dict.fromkeys([*old, new], True), open_: False}
    await member.store.close()


async def test_a_run_grows_with_the_keys_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its keys would else change a page of a large index for itself; what was purged does not count."""
    monkeypatch.setattr(digests, "RUN_SHARE", 2)
    monkeypatch.setattr(digests, "RUN_KEYS_MAX", 3 * RUN)
    member = Member(tmp_path / "keys.db", 0)
    await member.open()

    async def runs(at_ms: int, rounds: int) -> list[int]:
        ends = []
        for _ in range(rounds):
            keys = [random.randbytes(16) for _ in range(RUN // 2)]
            await member.claim(keys, at_ms)
            await member.commit(keys)
            rows = await member.database.read(lambda db: db.execute("SELECT end FROM choreo_run").fetchone())
            ends.append(int(rows[0]))
        ordered = sorted({*ends})
        return [after - before for before, after in pairwise(ordered)]

    lengths = await runs(1, 40)
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (RUN, 3 * RUN)
    await member.store.renew([member.lease], 30.0, {member.partition: 2})
    await member.store.purge("g", ["orders"], 0)
    assert (await runs(2, 12))[0] == RUN
    await member.store.close()
