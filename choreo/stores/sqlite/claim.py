"""Claims of `SqliteStore`: who may handle the units of a batch, by the keys there are."""

import sqlite3
from collections.abc import Mapping, Sequence

from choreo.errors import LeaseLost
from choreo.ports import Claimed, ClaimRequest, Lease
from choreo.record import TopicPartition
from choreo.sqlite import batched, leases
from choreo.stores.sqlite.digests import Digests
from choreo.stores.sqlite.parked import is_parked

FRESH = Claimed("fresh")
_Row = tuple[int, bytes, str, str, int, int, int]
_Columns = tuple[bytes, bytes, str, str, int, int, str, int, str, int]


def claim(
    db: sqlite3.Connection, digests: Digests, held: Sequence[Lease], requests: Sequence[ClaimRequest], now_ms: int
) -> list[Claimed]:
    """As the port says, in the caller's transaction.

    Raises:
        LeaseLost: Somebody has taken one of the partitions over.
    """
    if gone := sorted(leases.lost(db, held)):
        raise LeaseLost(f"a newer owner has {', '.join(map(str, gone))} of the group {held[0].group}")
    by_partition = {lease.partition: lease for lease in held}
    owners = {lease.partition: (lease.group, *lease.partition, lease.epoch) for lease in held}
    digests.refresh(db)
    there = digests.find_all(db, [request.digest for request in requests])
    made: dict[bytes, int] = {}
    new: dict[bytes, _Columns] = {}  # written together
    answers = []
    for request in requests:
        partition, digest, fingerprint, handler, offset, correlation_id, timestamp_ms, _, queue = request
        if digest in new:
            made |= _insert(db, new)
            new = {}
        id_ = made.get(digest) or there.get(digest)
        row = None if id_ is None else _row(db, id_)
        if id_ is None or row is None:
            owner = owners[partition]
            new[digest] = (digest, fingerprint, *owner, handler, offset, correlation_id, timestamp_ms)
            answer = FRESH
        else:
            answer = _again(db, id_, row, by_partition[partition], request, now_ms)
        if queue is not None and is_parked(db, queue):
            answer = answer._replace(parked=True)
        answers.append(answer)
    digests.expect(made | _insert(db, new))
    return answers


def _row(db: sqlite3.Connection, id_: int) -> _Row | None:
    row: _Row | None = db.execute(
        'SELECT done, fingerprint, "group", topic, "partition", epoch, deliveries FROM choreo_key WHERE id = ?',
        (id_,),
    ).fetchone()
    return row


def _insert(db: sqlite3.Connection, new: Mapping[bytes, _Columns]) -> dict[bytes, int]:
    """The ids of the new keys."""
    if not new:
        return {}
    last = batched.insert(
        db,
        "INSERT INTO choreo_key VALUES {rows}",
        "(NULL, ?, 0, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, '', 0, 0, 0)",
        list(new.values()),
    )
    # Nobody else writes meanwhile, so their ids are in a row.
    return dict(zip(new, range(last - len(new) + 1, last + 1), strict=True))


def _again(db: sqlite3.Connection, id_: int, row: _Row, lease: Lease, request: ClaimRequest, now_ms: int) -> Claimed:
    """What a key that is there already says."""
    done, fingerprint, group, topic, partition, epoch, deliveries = row
    if done:
        return Claimed("done" if fingerprint == request.fingerprint else "conflict")
    owner = (lease.group, *lease.partition, lease.epoch)
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
        "offset = ? WHERE id = ?",
        (request.fingerprint, *owner, deliveries + counts, request.offset, id_),
    )
    return Claimed("fresh", deliveries + 1)
