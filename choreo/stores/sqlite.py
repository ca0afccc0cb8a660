"""Idempotency keys, leases and outbox in one SQLite file, safe for several processes of one host.

Beside the embedded log in the same file the emits and the committed offset are part of the same transaction, and
there is no outbox. The handler's own rows are part of it in both cases.
"""

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from choreo.errors import LeaseLost, StoreError
from choreo.ports import (
    Carries,
    Claimed,
    ClaimRequest,
    Clock,
    CommitRequest,
    CommitResult,
    Finished,
    Lease,
    Transacted,
)
from choreo.record import ProducerRecord, TopicPartition
from choreo.sqlite import leases, log
from choreo.sqlite.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS choreo_key (
    digest BLOB PRIMARY KEY, done INTEGER NOT NULL, fingerprint BLOB NOT NULL, "group" TEXT NOT NULL,
    topic TEXT NOT NULL, "partition" INTEGER NOT NULL, epoch INTEGER NOT NULL, deliveries INTEGER NOT NULL,
    handler TEXT NOT NULL, offset INTEGER NOT NULL, correlation_id TEXT NOT NULL, timestamp_ms INTEGER NOT NULL,
    outcome TEXT NOT NULL, attempts INTEGER NOT NULL, duration_s REAL NOT NULL, done_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS choreo_key_claimed ON choreo_key ("group", topic, "partition") WHERE done = 0;
CREATE INDEX IF NOT EXISTS choreo_key_flow ON choreo_key (correlation_id);
CREATE TABLE IF NOT EXISTS choreo_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, "group" TEXT NOT NULL, topic TEXT NOT NULL, "partition" INTEGER NOT NULL,
    to_topic TEXT NOT NULL, key BLOB, value BLOB, headers BLOB NOT NULL
);
"""
LOCK_S_MAX = 0.05
"""Handlers are invoked under the write lock for so long at most; the rest of a run waits for the next commit."""
_OUR_CLAIM = '"group" = ? AND topic = ? AND "partition" = ? AND epoch = ?'


class SqliteStore:
    """`IdempotencyStore` on a `Database`.

    Args:
        database: The file; shared with the embedded transport or a service's own.
        clock: Whose time leases are measured by; all processes of one host share it.
        with_log: The embedded log is in the same file, and emits go straight onto it.
        lease_s: How long a lease lives without being renewed, in seconds.
    """

    transaction_type: type | None = sqlite3.Connection

    def __init__(self, database: Database, clock: Clock, *, with_log: bool, lease_s: float = 30.0) -> None:
        self.name = "sqlite"
        self.carries: frozenset[Carries] = (
            frozenset({"offset", "emits", "rows"}) if with_log else frozenset({"outbox", "rows"})
        )
        self._db = database
        self._clock = clock
        self._with_log = with_log
        self._lease_s = lease_s

    async def open(self) -> None:
        """Open the file and create choreo's tables."""
        await self._db.open(SCHEMA + leases.SCHEMA)

    async def acquire(self, group: str, partitions: Sequence[TopicPartition], owner: str) -> Sequence[Lease]:
        """Take the partitions, each with a newer epoch."""
        until_ms = self._now_ms() + int(self._lease_s * 1000)
        return await self._db.write(
            lambda db: [leases.take(db, group, partition, owner, until_ms) for partition in partitions]
        )

    async def renew(self, held: Sequence[Lease], lease_s: float) -> frozenset[TopicPartition]:
        """Keep the leases; returns those that are lost."""
        until_ms = self._now_ms() + int(lease_s * 1000)
        return await self._db.write(
            lambda db: frozenset(lease.partition for lease in held if not leases.renew(db, lease, until_ms))
        )

    async def claim(self, held: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """Claim in one transaction."""
        by_partition = {lease.partition: lease for lease in held}
        now_ms = self._now_ms()

        def change(db: sqlite3.Connection) -> list[Claimed]:
            for lease in held:
                if not leases.holds(db, lease):
                    raise LeaseLost(f"a newer owner has {lease.partition} of the group {lease.group}")
            return [_claim(db, by_partition[request.partition], request, now_ms) for request in requests]

        return await self._db.write(change)

    async def commit(self, request: CommitRequest) -> CommitResult:
        """Keys, emits or outbox, offsets and handlers' rows in one transaction."""
        return await self._db.write(lambda db: _Commit(db, request, self._with_log, self._now_ms()).run())

    async def pending(self, lease: Lease) -> Sequence[tuple[int, ProducerRecord]]:
        """What a former owner left in the outbox."""
        return await self._db.read(lambda db: _outbox(db, lease))

    async def sent(self, rows: Sequence[int]) -> None:
        """Delete outbox rows that are on the log."""
        if rows:
            await self._db.write(
                lambda db: db.executemany("DELETE FROM choreo_outbox WHERE id = ?", [(row,) for row in rows])
            )

    async def release(self, held: Sequence[Lease]) -> None:
        """Give up leases, and claims that were not finished."""

        def change(db: sqlite3.Connection) -> None:
            for lease in held:
                db.execute(
                    f"DELETE FROM choreo_key WHERE done = 0 AND {_OUR_CLAIM}",
                    (lease.group, *lease.partition, lease.epoch),
                )
                leases.give_up(db, lease)

        await self._db.write(change)

    async def run(self, function: Callable[[Any], object]) -> None:
        """Run `function(connection)` in a transaction."""

        def guarded(db: sqlite3.Connection) -> None:
            db.set_authorizer(_no_transaction_control)  # `executescript` would commit what came before it
            try:
                function(db)
            finally:
                db.set_authorizer(None)

        await self._db.write(guarded)

    async def history(self, correlation_id: str) -> Sequence[dict[str, Any]]:
        """Who handled what of one flow: handler, coordinates, outcome, attempts, duration_s, in order of time."""

        def query(db: sqlite3.Connection) -> list[dict[str, Any]]:
            cursor = db.execute(
                'SELECT handler, topic, "partition", offset, done, outcome, attempts, deliveries, '
                "duration_s, done_ms "
                "FROM choreo_key WHERE correlation_id = ? ORDER BY done_ms",
                (correlation_id,),
            )
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

        return await self._db.read(query)

    async def close(self) -> None:
        """Close the file if nobody else uses it."""
        await self._db.close()

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)


def _claim(db: sqlite3.Connection, lease: Lease, request: ClaimRequest, now_ms: int) -> Claimed:
    row = db.execute(
        'SELECT done, fingerprint, "group", topic, "partition", epoch, deliveries FROM choreo_key WHERE digest = ?',
        (request.digest,),
    ).fetchone()
    owner = (lease.group, *lease.partition, lease.epoch)
    if row is None:
        db.execute(
            "INSERT INTO choreo_key VALUES (?, 0, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, '', 0, 0, 0)",
            (
                request.digest,
                request.fingerprint,
                *owner,
                request.handler,
                request.offset,
                request.correlation_id,
                request.timestamp_ms,
            ),
        )
        return Claimed("fresh")
    done, fingerprint, group, topic, partition, epoch, deliveries = row
    if done:
        return Claimed("done" if fingerprint == request.fingerprint else "conflict")
    ours = (group, topic, partition, epoch) == owner
    if not ours and leases.live(db, group, TopicPartition(topic, partition), epoch, now_ms):
        return Claimed("busy")
    if ours and not request.solo:
        return Claimed("fresh", deliveries)
    # Somebody died with it. The first death is counted for the whole batch; after it only a delivery about to run
    # alone is, since the others of its batch are innocent.
    counts = request.solo or deliveries == 1
    db.execute(
        'UPDATE choreo_key SET fingerprint = ?, "group" = ?, topic = ?, "partition" = ?, epoch = ?, deliveries = ?, '
        "offset = ? WHERE digest = ?",
        (request.fingerprint, *owner, deliveries + counts, request.offset, request.digest),
    )
    return Claimed("fresh", deliveries + 1)


def _outbox(db: sqlite3.Connection, lease: Lease) -> list[tuple[int, ProducerRecord]]:
    rows = db.execute(
        'SELECT id, to_topic, key, value, headers FROM choreo_outbox WHERE "group" = ? AND topic = ? '
        'AND "partition" = ? ORDER BY id',
        (lease.group, *lease.partition),
    )
    return [(row[0], ProducerRecord(row[1], row[2], row[3], log.decode_headers(row[4]))) for row in rows]


class _Commit:
    """One commit's transaction."""

    def __init__(self, db: sqlite3.Connection, request: CommitRequest, with_log: bool, now_ms: int) -> None:
        self._db = db
        self._request = request
        self._with_log = with_log
        self._now_ms = now_ms
        self._outbox: list[tuple[int, ProducerRecord]] = []
        self._savepoint = f"choreo_{secrets.token_hex(8)}"  # a handler must not end it, so it cannot guess it

    def run(self) -> CommitResult:
        """Check every lease and claim, then write."""
        request = self._request
        refused = {id_ for id_, lease in request.leases.items() if not leases.holds(self._db, lease)}
        written: set[bytes] = set()
        for unit in request.finished:
            state = self._state(unit.partition, unit.digest)
            if state is None:
                refused.add(unit.partition)  # its claim was taken over: our lease had run out
            elif state:
                written.add(unit.digest)  # by this very request, which is repeated
        for unit in request.finished:
            if unit.partition not in refused and unit.digest not in written:
                self._finish(unit)
        transacted = self._transact(refused)
        offsets = {id_: offset for id_, offset in request.offsets.items() if id_ not in refused}
        if self._with_log and offsets:
            groups = {request.leases[id_].group for id_ in offsets}
            log.commit_offsets(self._db, groups.pop(), offsets)
        return CommitResult(frozenset(refused), transacted, self._outbox)

    def _state(self, partition: TopicPartition, digest: bytes) -> bool | None:
        """Whether a key of ours is done; None if it is not ours."""
        lease = self._request.leases[partition]
        row = self._db.execute(
            f"SELECT done FROM choreo_key WHERE digest = ? AND {_OUR_CLAIM}",
            (digest, lease.group, *lease.partition, lease.epoch),
        ).fetchone()
        return None if row is None else bool(row[0])

    def _finish(self, unit: Finished) -> None:
        self._db.execute(
            "UPDATE choreo_key SET done = 1, outcome = ?, attempts = ?, duration_s = ?, done_ms = ? WHERE digest = ?",
            (unit.outcome, unit.attempts, unit.duration_s, self._now_ms, unit.digest),
        )
        self._emit(unit.partition, unit.emits)

    def _emit(self, partition: TopicPartition, emits: Iterable[ProducerRecord]) -> None:
        if self._with_log:
            log.append(self._db, tuple(emits), self._now_ms)
            return
        lease = self._request.leases[partition]
        for record in emits:
            cursor = self._db.execute(
                'INSERT INTO choreo_outbox ("group", topic, "partition", to_topic, key, value, headers) '
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    lease.group,
                    *partition,
                    record.topic,
                    record.key,
                    record.value,
                    log.encode_headers(record.headers),
                ),
            )
            assert cursor.lastrowid is not None
            self._outbox.append((cursor.lastrowid, record))

    def _transact(self, refused: set[TopicPartition]) -> list[Finished | BaseException | None]:
        results: list[Finished | BaseException | None] = []
        if not self._request.transacted:
            return results
        blocked: set[int] = set()
        until_s = time.monotonic() + LOCK_S_MAX
        self._db.set_authorizer(_no_transaction_control)
        try:
            for unit in self._request.transacted:
                if unit.partition in refused or id(unit.lane) in blocked or time.monotonic() > until_s:
                    blocked.add(id(unit.lane))
                    results.append(None)
                    continue
                results.append(self._invoke(unit))
                if isinstance(results[-1], BaseException):
                    blocked.add(id(unit.lane))
        finally:
            self._db.set_authorizer(None)
        return results

    def _invoke(self, unit: Transacted) -> Finished | BaseException:
        """One unit under a savepoint: its rows, key and emits, or nothing of it."""
        done = self._state(unit.partition, unit.digest)
        if done is None:
            return LeaseLost("its claim was taken over")
        if done:  # by this very request, which is repeated
            return Finished(unit.partition, 0, unit.digest, (), "duplicate")
        self._db.execute(f"SAVEPOINT {self._savepoint}")
        try:
            finished = unit.invoke(self._db)
            self._finish(finished)
        except Exception as error:
            if isinstance(error, sqlite3.OperationalError) and not self._db.in_transaction:
                raise StoreError(f"the transaction was lost: {error}") from error  # disk full, for one
            self._db.execute(f"ROLLBACK TO {self._savepoint}")
            self._db.execute(f"RELEASE {self._savepoint}")
            return error
        self._db.execute(f"RELEASE {self._savepoint}")
        return finished


def _no_transaction_control(action: int, *_: object) -> int:
    """A handler must not end the transaction its key commits in: COMMIT and ROLLBACK are refused to it."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION else sqlite3.SQLITE_OK
