"""What became of the instances of processes: a journal of every commit, as triggers of the databases saw it."""

import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from choreo.sqlite.database import Database

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

_JOURNAL = "simulation_journal"
_COLUMNS = "process, key, what, version, state, ended, at_ms, name, token, number"
_STORED = "NEW.process, NEW.key, 'stored', NEW.version, NEW.state, NEW.ended, NEW.updated_ms, '', '', 0"
_SCHEMA = (
    f"CREATE TABLE {_JOURNAL} (id INTEGER PRIMARY KEY, {_COLUMNS})",
    *(
        f"CREATE TRIGGER {_JOURNAL}_{name} AFTER {when} BEGIN "
        f"INSERT INTO {_JOURNAL} ({_COLUMNS}) VALUES ({values}); END"
        for name, when, values in (
            ("begun", "INSERT ON choreo_instance", _STORED),
            ("stored", "UPDATE ON choreo_instance", _STORED),
            (
                "set",
                "INSERT ON choreo_timer",
                "NEW.process, NEW.key, 'set', 0, '', 0, NEW.due_ms, NEW.name, NEW.token, NEW.number",
            ),
            (
                "gone",
                "DELETE ON choreo_timer",
                "OLD.process, OLD.key, 'gone', 0, '', 0, OLD.due_ms, OLD.name, OLD.token, OLD.number",
            ),
        )
    ),
)
"""A timer that fires again replaces itself, for which SQLite calls no trigger of deletes."""


class Entry(NamedTuple):
    """One change of a row, as it was committed: an instance was `stored`, a timer `set` or `gone`.

    `at_ms`: when it was stored, or when the timer is due, on the store's clock.
    """

    process: str
    key: str
    what: str
    version: int
    state: str
    ended: int
    at_ms: int
    name: str
    token: str
    number: int


def watch(database: Database) -> None:
    """Keep a journal from the moment choreo's tables are there."""
    watched = False

    def begin() -> None:
        nonlocal watched
        if not watched:
            watched = database.read_inline(_begun)

    database.on_write.append(begin)


def _begun(db: sqlite3.Connection) -> bool:
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'choreo_timer'").fetchone() is None:
        return False
    for statement in _SCHEMA:
        db.execute(statement)
    return True


def journal(world: "World") -> dict[tuple[str, str], list[Entry]]:
    """All that was committed, in order, by process and instance."""
    found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    if world.processes:
        for row in world.rows(f"SELECT {_COLUMNS} FROM {_JOURNAL} ORDER BY id"):
            entry = Entry(*row)
            found[entry.process, entry.key].append(entry)
    return found


def last_stored(world: "World", process: str) -> dict[str, Entry]:
    """Each instance as it was last stored, by key; also where it has ended and was deleted since."""
    return {
        key: entry
        for (name, key), entries in journal(world).items()
        for entry in entries
        if name == process and entry.what == "stored"
    }
