"""Where the key of a digest is: the newest in memory, older ones in an index that takes them in sorted runs.

Digests are random, so each would change a page of its own in an index kept in their order: at 10^6 keys an event cost
2.7 times what it did at 10^3, a page of the write-ahead log and once more of the file. A run changes each page once
for all of its keys that go there: at least four, up to 10^7 keys.

The rows above `choreo_run.end` are in no run yet, and every process keeps their digests. It learns them, and the end
of the last run, only at the start of a transaction that holds the write lock, when all there is to see is committed:
what is rolled back was never in memory. No id is given twice, so none is missed.
"""

import sqlite3
from collections.abc import Iterable, Sequence

from choreo.sqlite import batched

RUN_KEYS, RUN_KEYS_MAX = 65_536, 262_144
"""In memory some 10 to 45 MB; sorting them in holds the write lock for 0.2 s at 10^6 keys, for a second at 10^7."""
RUN_SHARE = 40
"""In between a run is such a part of the keys there are."""
_GIVEN_AND_END = (  # the last id that a committed key was given, and the last one that is in a run
    "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'choreo_key'), 0), (SELECT end FROM choreo_run)"
)
_INDEXED = (
    "SELECT k.id FROM choreo_digest d CROSS JOIN choreo_key k ON k.id = d.id "
    "WHERE d.prefix = substr(?1, 1, 8) AND k.digest = ?1"
)
# A statement each would be the larger part of what it costs to find nothing.
_FEW, _MANY = 64, 512
_ALL_INDEXED = """SELECT v.column1, k.id FROM (VALUES {rows}) v
    CROSS JOIN choreo_digest d ON d.prefix = substr(v.column1, 1, 8)
    CROSS JOIN choreo_key k ON k.id = d.id AND k.digest = v.column1"""


class Digests:
    """One process's view of a file; its methods run in transactions that hold the write lock."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._run_end = self._seen = 0
        self._run_keys = RUN_KEYS
        self._expected: dict[bytes, int] = {}
        self._version = 0

    @property
    def full(self) -> bool:
        """Whether a whole run is in memory; some of it may be deleted already."""
        return self._seen >= self._run_end + self._run_keys

    def expect(self, made: dict[bytes, int]) -> None:
        """These keys are all that this transaction inserts, with ids in a row; whether it commits is seen later."""
        self._expected = made

    def refresh(self, db: sqlite3.Connection) -> None:
        """Take note of what was committed since; before anything is changed in this transaction."""
        expected, self._expected = self._expected, {}
        version = db.execute("PRAGMA data_version").fetchone()[0]  # another one once somebody else has committed
        given, run_end = db.execute(_GIVEN_AND_END).fetchone()
        if expected and version == self._version and given == (last := max(expected.values())):
            self._ids |= expected
            self._seen = last
        self._version = version
        if run_end > self._run_end:
            self._ids = {digest: id_ for digest, id_ in self._ids.items() if id_ > run_end}
            self._run_end, self._seen = run_end, max(run_end, self._seen)
            self._run_keys = _run_keys(db, run_end)
        if given > self._seen:
            newest = db.execute("SELECT id, digest FROM choreo_key WHERE id > ? ORDER BY id", (self._seen,))
            for id_, digest in newest:
                self._ids[digest] = self._seen = id_

    def find(self, db: sqlite3.Connection, digest: bytes) -> int | None:
        """The id of its key at `refresh`; that row may be gone."""
        id_ = self._ids.get(digest)
        if id_ is not None or not self._run_end:
            return id_
        row = db.execute(_INDEXED, (digest,)).fetchone()
        return None if row is None else int(row[0])

    def find_all(self, db: sqlite3.Connection, digests: Sequence[bytes]) -> dict[bytes, int]:
        """`find` of many: the ids of those that are there."""
        newest = self._ids
        found = {digest: newest[digest] for digest in digests if digest in newest}
        if self._run_end and len(found) < len(digests):
            older: list[bytes | None] = [digest for digest in digests if digest not in found]
            at = 0
            while at < len(older):
                count = _MANY if len(older) - at > _MANY // 2 else _FEW
                some = older[at : at + count]
                found.update(
                    db.execute(batched.filled(_ALL_INDEXED, "(?)", count), some + [None] * (count - len(some)))
                )
                at += count
        return found


def known(db: sqlite3.Connection, digests: Iterable[bytes]) -> dict[bytes, bool]:
    """Of these keys those that are there, and whether they are done; to be read without the write lock."""
    wanted = set(digests)
    newest = db.execute("SELECT digest, done FROM choreo_key WHERE id > ?", (_run_end(db),))
    found = {digest: bool(done) for digest, done in newest if digest in wanted}
    for digest in wanted - found.keys():
        if (row := db.execute(_INDEXED, (digest,)).fetchone()) is not None:
            done = db.execute("SELECT done FROM choreo_key WHERE id = ?", row).fetchone()
            found[digest] = bool(done[0])
    return found


def sort_in(db: sqlite3.Connection) -> bool:
    """Put the oldest run into the index; False if there is no whole one."""
    given, begin = db.execute(_GIVEN_AND_END).fetchone()
    end = begin + _run_keys(db, begin)
    if given < end:
        return False
    db.execute(
        "INSERT INTO choreo_digest SELECT substr(digest, 1, 8) AS prefix, id FROM choreo_key "
        "WHERE id > ? AND id <= ? ORDER BY prefix",
        (begin, end),
    )
    db.execute("UPDATE choreo_run SET end = ?", (end,))
    return True


def forget(db: sqlite3.Connection, gone: Iterable[tuple[int, bytes]]) -> None:
    """Take deleted keys, as ids with their digests, out of the index."""
    run_end = _run_end(db)
    db.executemany(
        "DELETE FROM choreo_digest WHERE prefix = ? AND id = ?",
        sorted((digest[:8], id_) for id_, digest in gone if id_ <= run_end),
    )


def _run_keys(db: sqlite3.Connection, end: int) -> int:
    """How long the run behind `end` is to be."""
    (first,) = db.execute("SELECT MIN(id) FROM choreo_key").fetchone()
    return max(RUN_KEYS, min((end - (first or end)) // RUN_SHARE, RUN_KEYS_MAX))


def _run_end(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT end FROM choreo_run").fetchone()[0])
