"""Instances of processes and their timers in an SQLite file: within a unit's transaction, and from outside."""

import sqlite3
from collections.abc import Collection, Sequence

from choreo.instances import COUNT_KEYS_MAX, Count, Instance, Intervention, Timer, check_key, overtaken

_INSTANCE = "process, key, version, state, data, ended, deferred, correlation_id, revision, updated_ms"
_TIMER = "process, key, name, token, due_ms, number, correlation_id, traceparent"
_INTERVENTION = "process, key, what, who, why, correlation_id, at_ms"
_CENSUS = f"""WITH row AS (
    SELECT version, state, ended, NULL AS timer, key FROM choreo_instance WHERE process = :process
    UNION ALL SELECT i.version, i.state, i.ended, t.name, t.key FROM choreo_timer t
    JOIN choreo_instance i USING (process, key) WHERE process = :process
), numbered AS (
    SELECT *, COUNT(*) OVER (PARTITION BY version, state, ended, timer) AS number,
        ROW_NUMBER() OVER (PARTITION BY version, state, ended, timer ORDER BY key) AS at FROM row
) SELECT version, state, ended, timer, number, key FROM numbered WHERE at <= {COUNT_KEYS_MAX}
ORDER BY version, state, ended, timer, at"""


class SqliteInstances:
    """`Instances` in an open transaction, which holds the write lock.

    Args:
        db: Where it is open.
        now_ms: The store's clock.
        due_ms: Is told when each timer that is set is due.
    """

    def __init__(self, db: sqlite3.Connection, now_ms: int, due_ms: list[int]) -> None:
        self._db = db
        self._now_ms = now_ms
        self._due_ms = due_ms

    @property
    def now_ms(self) -> int:
        """The store's clock."""
        return self._now_ms

    def load(self, process: str, key: str) -> Instance | None:
        """The instance, as the last commit left it."""
        check_key(process, key)
        return load(self._db, process, key)

    def save(self, instance: Instance) -> None:
        """Store it, unless it was stored since it was loaded."""
        new = instance._replace(revision=instance.revision + 1, updated_ms=self._now_ms)
        if instance.revision:
            query = f"UPDATE choreo_instance SET ({_INSTANCE}) = ({_marks(new)}) {_OF_KEY} AND revision = ?"
            done = self._db.execute(query, (*new, instance.process, instance.key, instance.revision))
        else:
            query = f"INSERT INTO choreo_instance ({_INSTANCE}) VALUES ({_marks(new)}) ON CONFLICT DO NOTHING"
            done = self._db.execute(query, new)
        if not done.rowcount:
            raise overtaken(instance)

    def timers(self, process: str, key: str) -> Sequence[Timer]:
        """Its timers, by name."""
        return timers(self._db, process, key)

    def set_timer(self, timer: Timer) -> None:
        """Set it, instead of the one of its name."""
        self._db.execute(
            f"INSERT OR REPLACE INTO choreo_timer ({_TIMER}, wake_ms) VALUES ({_marks(timer)}, ?)",
            (*timer, timer.due_ms),
        )
        self._due_ms.append(timer.due_ms)

    def cancel_timers(self, process: str, key: str, names: Collection[str] | None = None) -> None:
        """Those of these names, or all."""
        if names is None:
            self._db.execute(f"DELETE FROM choreo_timer {_OF_KEY}", (process, key))
        else:
            rows = [(process, key, name) for name in names]
            self._db.executemany(f"DELETE FROM choreo_timer {_OF_KEY} AND name = ?", rows)


_OF_KEY = "WHERE process = ? AND key = ?"
_OF_TIMER = f"{_OF_KEY} AND name = ? AND token = ? AND number = ?"


def load(db: sqlite3.Connection, process: str, key: str) -> Instance | None:
    """One instance."""
    row = db.execute(f"SELECT {_INSTANCE} FROM choreo_instance {_OF_KEY}", (process, key)).fetchone()
    return None if row is None else _instance(row)


def timers(db: sqlite3.Connection, process: str, key: str) -> list[Timer]:
    """The timers of one instance, by name."""
    rows = db.execute(f"SELECT {_TIMER} FROM choreo_timer {_OF_KEY} ORDER BY name", (process, key))
    return [Timer(*row) for row in rows]


def instances(db: sqlite3.Connection, process: str, state: str | None, after: str, limit: int) -> list[Instance]:
    """In order of their keys, above `after`."""
    where, arguments = ("", ()) if state is None else ("AND state = ?", (state,))
    rows = db.execute(
        f"SELECT {_INSTANCE} FROM choreo_instance WHERE process = ? AND key > ? {where} ORDER BY key LIMIT ?",
        (process, after, *arguments, limit),
    )
    return [_instance(row) for row in rows]


def census(db: sqlite3.Connection, process: str) -> list[Count]:
    """By version, state and timer."""
    found: dict[tuple[object, ...], list[str]] = {}
    for *group, key in db.execute(_CENSUS, {"process": process}):
        found.setdefault(tuple(group), []).append(key)
    return [
        Count(version, state, bool(ended), timer, number, tuple(keys))  # type: ignore[arg-type]
        for (version, state, ended, timer, number), keys in found.items()
    ]


def note(db: sqlite3.Connection, done: Sequence[Intervention]) -> None:
    """Keep what was done by hand."""
    db.executemany(f"INSERT INTO choreo_intervention ({_INTERVENTION}) VALUES ({_marks(Intervention._fields)})", done)


def interventions(
    db: sqlite3.Connection, process: str, key: str, correlation_id: str, since_ms: int | None
) -> list[Intervention]:
    """Since a time, or else of one flow, or else of one instance."""
    arguments: tuple[object, ...] = (process, key)
    where = _OF_KEY
    if since_ms is not None:
        where, arguments = "WHERE at_ms >= ?", (since_ms,)
    elif correlation_id:
        where, arguments = "WHERE correlation_id = ?", (correlation_id,)
    rows = db.execute(f"SELECT {_INTERVENTION} FROM choreo_intervention {where} ORDER BY id", arguments)
    return [Intervention(*row) for row in rows]


def purge_ended(db: sqlite3.Connection, process: str, before_ms: int, limit: int) -> int:
    """Delete instances that ended before that, the oldest first; one that is still to be woken stays."""
    return db.execute(
        "DELETE FROM choreo_instance WHERE rowid IN (SELECT i.rowid FROM choreo_instance i WHERE i.process = ? "
        "AND i.ended = 1 AND i.updated_ms < ? AND NOT EXISTS (SELECT 1 FROM choreo_timer t "
        "WHERE t.process = i.process AND t.key = i.key) ORDER BY i.updated_ms LIMIT ?)",
        (process, before_ms, limit),
    ).rowcount


def next_wake_ms(db: sqlite3.Connection, processes: Collection[str]) -> int | None:
    """When the next timer is to be sent; None if there is none."""
    query = "SELECT MIN(wake_ms) FROM choreo_timer WHERE process = ?"
    found = [db.execute(query, (process,)).fetchone()[0] for process in processes]
    return min((wake_ms for wake_ms in found if wake_ms is not None), default=None)


def overdue(db: sqlite3.Connection, processes: Collection[str], now_ms: int) -> int:
    """How many are to be sent now."""
    query = "SELECT COUNT(*) FROM choreo_timer WHERE process = ? AND wake_ms <= ?"
    return sum(db.execute(query, (process, now_ms)).fetchone()[0] for process in processes)


def timers_of(db: sqlite3.Connection, correlation_id: str) -> list[Timer]:
    """Of a flow, the next one first."""
    query = f"SELECT {_TIMER} FROM choreo_timer WHERE correlation_id = ? ORDER BY due_ms LIMIT 100"
    return [Timer(*row) for row in db.execute(query, (correlation_id,))]


def claim_due(
    db: sqlite3.Connection, processes: Collection[str], limit: int, now_ms: int, until_ms: int
) -> list[Timer]:
    """Timers to be sent now, which nobody else is to send until `until_ms`."""
    query = f"SELECT {_TIMER} FROM choreo_timer WHERE process = ? AND wake_ms <= ? ORDER BY wake_ms LIMIT ?"
    rows = [row for process in processes for row in db.execute(query, (process, now_ms, limit))]
    found = sorted((Timer(*row) for row in rows), key=lambda timer: timer.due_ms)[:limit]
    db.executemany(
        f"UPDATE choreo_timer SET wake_ms = ? {_OF_TIMER}", [(until_ms, *_version(timer)) for timer in found]
    )
    return found


def note_sent(db: sqlite3.Connection, sent: Sequence[Timer], now_ms: int, again_ms: int) -> None:
    """These need not be sent again for a while."""
    db.executemany(
        f"UPDATE choreo_timer SET wake_ms = MAX(?, 2 * ? - due_ms) {_OF_TIMER}",
        [(now_ms + again_ms, now_ms, *_version(timer)) for timer in sent],
    )


def _instance(row: tuple[object, ...]) -> Instance:
    instance = Instance(*row)  # type: ignore[arg-type]
    return instance._replace(ended=bool(instance.ended))


def _version(timer: Timer) -> tuple[object, ...]:
    return (timer.process, timer.key, timer.name, timer.token, timer.number)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
