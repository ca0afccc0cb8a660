"""A connection lent to a handler: transactions are neither begun nor ended, and nothing is parsed for that."""

import sqlite3
from collections.abc import Callable, Iterator

import pytest

from choreo.sqlite.connection import SqliteConnection


def opened() -> SqliteConnection:
    """In memory, with a table and all that choreo says parsed already."""
    db = sqlite3.connect(":memory:", isolation_level=None, factory=SqliteConnection)
    db.execute("CREATE TABLE served (name TEXT)")
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO served VALUES (?)", ("Ada",))
    db.commit()
    return db


@pytest.fixture
def db() -> Iterator[SqliteConnection]:
    """Lent, in an open transaction."""
    db = opened()
    db.execute("BEGIN IMMEDIATE")
    db.lend()
    yield db
    db.take_back()
    db.close()


def _leave(db: SqliteConnection) -> None:
    with db:
        db.execute("INSERT INTO served VALUES ('Bob')")


def _none(db: SqliteConnection) -> None:
    db.isolation_level = None  # which commits


@pytest.mark.parametrize(
    "end",
    [
        lambda db: db.execute("COMMIT"),
        lambda db: db.execute("ROLLBACK"),
        lambda db: db.execute("BEGIN IMMEDIATE"),
        lambda db: db.cursor().execute("COMMIT"),
        lambda db: db.cursor().executescript("SELECT 1"),
        lambda db: db.executescript("SELECT 1"),
        lambda db: db.commit(),
        lambda db: db.rollback(),
        _leave,
        _none,
    ],
    ids=[
        "COMMIT",
        "ROLLBACK",
        "BEGIN",
        "cursor",
        "its script",
        "script",
        "commit()",
        "rollback()",
        "with",
        "isolation",
    ],
)
def test_a_borrower_neither_ends_nor_begins_a_transaction(
    db: SqliteConnection, end: Callable[[SqliteConnection], object]
) -> None:
    """Also where choreo has said the same before, and Python keeps what it parsed."""
    with pytest.raises(sqlite3.DatabaseError):
        end(db)
    assert db.in_transaction
    db.take_back()
    db.rollback()
    assert db.execute("SELECT name FROM served").fetchall() == [("Ada",)]


@pytest.mark.parametrize("how", ["execute", "executemany", "executescript"])
def test_a_borrower_does_nothing_outside_of_the_transaction(db: SqliteConnection, how: str) -> None:
    """SQLite has rolled it back by itself: what is executed now would be committed at once, by whichever object."""
    insert, cursor = "INSERT INTO served VALUES (?)", db.cursor()
    db.execute(insert, ("Bob",))
    db.take_back()
    db.rollback()
    db.lend()
    arguments = {"execute": (insert, ("Bob",)), "executemany": (insert, [("Bob",)]), "executescript": (insert,)}[how]
    for each in (db, cursor, db.cursor()):
        with pytest.raises(sqlite3.DatabaseError, match="rolled the transaction back"):
            getattr(each, how)(*arguments)
    db.take_back()
    assert db.execute("SELECT name FROM served").fetchall() == [("Ada",)]


def test_a_borrowers_authorizer_is_asked_too_and_gone_with_it(db: SqliteConnection) -> None:
    """It replaces nothing."""
    db.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_INSERT else sqlite3.SQLITE_OK
    )
    with pytest.raises(sqlite3.DatabaseError):
        db.execute("INSERT INTO served VALUES ('Bob')")
    with pytest.raises(sqlite3.DatabaseError):
        db.commit()
    db.take_back()
    db.execute("INSERT INTO served VALUES ('Cid')")


def test_nothing_is_parsed_anew_for_a_borrower(monkeypatch: pytest.MonkeyPatch) -> None:
    """An authorizer is asked when a statement is parsed: of one that was executed before, by nobody again."""
    asked: list[int] = []
    real = SqliteConnection._authorize

    def counting(self: SqliteConnection, action: int, *details: object) -> int:
        asked.append(action)
        return real(self, action, *details)

    monkeypatch.setattr(SqliteConnection, "_authorize", counting)
    db = opened()
    for _ in range(3):
        db.execute("BEGIN IMMEDIATE")
        asked.clear()
        db.lend()
        db.execute("INSERT INTO served VALUES (?)", ("Bob",))
        db.take_back()
        assert asked == []
        db.commit()
    db.close()
