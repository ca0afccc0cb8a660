"""One commit of `SqliteStore`: leases and claims checked, handlers invoked, everything written in one transaction."""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence

from choreo.errors import LeaseLost, StoreError
from choreo.instances import INSTANCES
from choreo.parked import Leaves, Waits
from choreo.ports import CommitRequest, CommitResult, Finished, Transacted
from choreo.record import ProducerRecord, TopicPartition
from choreo.sqlite import batched, leases, log
from choreo.sqlite.connection import SqliteConnection
from choreo.stores.sqlite import parked
from choreo.stores.sqlite.digests import Digests
from choreo.stores.sqlite.instances import SqliteInstances

LOCK_S_MAX = 0.05
"""Handlers are invoked under the write lock for so long at most; the rest of a run waits for the next commit."""
FILE_FAILED = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM)
"""The file's fault, and not the event's: the whole commit is tried again, and no attempt is counted."""
OUR_CLAIM = '"group" = ? AND topic = ? AND "partition" = ? AND epoch = ?'
_FINISH = """UPDATE choreo_key SET done = 1, outcome = v.column2, attempts = v.column3, duration_s = v.column4,
    done_ms = v.column5 FROM (VALUES {rows}) v WHERE id = v.column1 AND done = 0 AND "group" = v.column6
    AND topic = v.column7 AND "partition" = v.column8 AND epoch = v.column9"""


class Commit:
    """One commit's transaction."""

    def __init__(
        self, db: SqliteConnection, digests: Digests, request: CommitRequest, with_log: bool, now_ms: int
    ) -> None:
        self._db = db
        self._digests = digests
        self._request = request
        self._held = {id_: (lease.group, *id_, lease.epoch) for id_, lease in request.leases.items()}
        self._with_log = with_log
        self._now_ms = now_ms
        self.timers_due_ms: list[int] = []
        """When timers that were set are due; of units that were rolled back, too."""
        self._outbox: list[tuple[int, ProducerRecord]] = []
        self._written: set[bytes] = set()
        self._gone: set[bytes] = set()
        self._rows: dict[bytes, int] = {}
        self._savepoint = f"choreo_{secrets.token_hex(8)}"  # a handler must not end it, so it cannot guess it

    def run(self) -> CommitResult:
        """Check every lease and claim, then write."""
        request = self._request
        self._digests.refresh(self._db)
        refused = leases.lost(self._db, request.leases.values())
        finished = request.finished
        if refused:
            finished = [unit for unit in finished if unit.partition not in refused]
        if request.transacted or not self._done_at_once(finished):
            self._look(refused)
            finished = [
                unit for unit in finished if unit.partition not in refused and unit.digest not in self._written
            ]
            self._finish(finished, self._rows)
        self._write(finished)
        transacted = self._transact(refused)
        offsets = {id_: offset for id_, offset in request.offsets.items() if id_ not in refused}
        if self._with_log and offsets:
            groups = {request.leases[id_].group for id_ in offsets}
            log.commit_offsets(self._db, groups.pop(), offsets)
        return CommitResult(frozenset(refused), transacted, self._outbox)

    def _done_at_once(self, units: Sequence[Finished]) -> bool:
        """Their keys are done, without a look at each; none is if one of them is not ours, or is done already."""
        ids = self._digests.find_all(self._db, [unit.digest for unit in units])
        self._db.execute(f"SAVEPOINT {self._savepoint}")
        done = self._finish(units, ids)
        all_done = done == len(units) or not units
        if not all_done:
            self._db.execute(f"ROLLBACK TO {self._savepoint}")
        self._db.execute(f"RELEASE {self._savepoint}")
        return all_done

    def _look(self, refused: set[TopicPartition]) -> None:
        """Find out of each unit whether its key is ours, and done; `refused` grows by partitions that were lost."""
        units: list[Finished | Transacted] = [*self._request.finished, *self._request.transacted]
        for each in units:
            state = self._state(each.partition, each.digest)
            if state is None:  # its claim was taken over: our lease had run out
                refused.add(each.partition)
                self._gone.add(each.digest)
            elif state:
                self._written.add(each.digest)  # by this very request, which is repeated

    def _state(self, partition: TopicPartition, digest: bytes) -> bool | None:
        """Whether a key of ours is done; None if it is not ours."""
        lease = self._request.leases[partition]
        id_ = self._digests.find(self._db, digest)
        if id_ is None:
            return None
        row = self._db.execute(
            f"SELECT done FROM choreo_key WHERE id = ? AND {OUR_CLAIM}",
            (id_, lease.group, *lease.partition, lease.epoch),
        ).fetchone()
        if row is None:
            return None
        self._rows[digest] = id_
        return bool(row[0])

    def _finish(self, units: Sequence[Finished], ids: Mapping[bytes, int]) -> int:
        """Their keys are done; how many were ours, and were not."""
        now_ms, held = self._now_ms, self._held
        rows = [
            (ids.get(digest), outcome, attempts, duration_s, now_ms, *held[partition])
            for partition, _, digest, _, outcome, attempts, duration_s, _ in units
        ]
        return batched.change(self._db, _FINISH, "(?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _write(self, units: Sequence[Finished]) -> None:
        """Their emits stand in the log or the outbox, in order."""
        emits: list[tuple[TopicPartition, ProducerRecord]] = []
        for partition, _, _, records, _, _, _, parking in units:
            for record in records:
                emits.append((partition, record))
            if parking is not None:
                emits += [(partition, record) for record in self._park(partition, parking)]
        if emits:
            self._emit(emits)

    def _park(self, partition: TopicPartition, parking: Waits | Leaves) -> list[ProducerRecord]:
        if isinstance(parking, Leaves):
            return parked.leave(self._db, parking, closes=not self._with_log)
        if parking.due_s is not None:
            self.timers_due_ms.append(self._now_ms + int(parking.due_s * 1000))
        return parked.wait(self._db, self._request.leases[partition].group, parking, self._now_ms)

    def _emit(self, emits: Sequence[tuple[TopicPartition, ProducerRecord]]) -> None:
        if self._with_log:
            log.append(self._db, [record for _, record in emits], self._now_ms)
            return
        inputs = {id_: (lease.group, *id_) for id_, lease in self._request.leases.items()}
        last = batched.insert(
            self._db,
            'INSERT INTO choreo_outbox ("group", topic, "partition", to_topic, key, value, headers) VALUES {rows}',
            "(?, ?, ?, ?, ?, ?, ?)",
            [
                (*inputs[id_], topic, key, value, log.encode_headers(headers))
                for id_, (topic, key, value, headers, _) in emits
            ],
        )
        # Nobody else writes meanwhile, so their ids are in a row.
        rows = range(last - len(emits) + 1, last + 1)
        self._outbox += [(row, record) for row, (_, record) in zip(rows, emits, strict=True)]

    def _transact(self, refused: set[TopicPartition]) -> list[Finished | BaseException | None]:
        results: list[Finished | BaseException | None] = []
        if not self._request.transacted:
            return results
        blocked: set[int] = set()
        until_s = time.monotonic() + LOCK_S_MAX
        self._db.lend()
        try:
            for unit in self._request.transacted:
                if unit.partition in refused or id(unit.lane) in blocked or time.monotonic() > until_s:
                    blocked.add(id(unit.lane))
                    results.append(LeaseLost("its claim was taken over") if unit.digest in self._gone else None)
                    continue
                results.append(self._invoke(unit))
                if isinstance(results[-1], BaseException):
                    blocked.add(id(unit.lane))
        finally:
            self._db.take_back()
        return results

    def _invoke(self, unit: Transacted) -> Finished | BaseException:
        """One unit under a savepoint: its rows, key and emits, or nothing of it."""
        if unit.digest in self._written:
            return Finished(unit.partition, 0, unit.digest, (), "duplicate")
        self._db.execute(f"SAVEPOINT {self._savepoint}")
        try:
            transaction = self._instances() if unit.wants == INSTANCES else self._db
            finished: Finished = unit.invoke(transaction, self._db)
            if not self._db.in_transaction:
                raise StoreError("SQLite rolled it back, and the handler caught the error; the disk may be full")
            self._finish([finished], self._rows)
            self._write([finished])
        except (Exception, asyncio.CancelledError) as error:  # a plain handler's own: nobody cancels a thread
            if _file_failed(error) or not self._db.in_transaction:
                raise StoreError(f"the transaction was lost: {error}") from error
            self._db.execute(f"ROLLBACK TO {self._savepoint}")
            self._db.execute(f"RELEASE {self._savepoint}")
            return error
        self._db.execute(f"RELEASE {self._savepoint}")
        return finished

    def _instances(self) -> SqliteInstances:
        return SqliteInstances(self._db, self._now_ms, self.timers_due_ms)


def _file_failed(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in FILE_FAILED
