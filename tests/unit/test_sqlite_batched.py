"""Rows of a batch are written whole, in order, however they are cut into statements."""

import sqlite3
from contextlib import closing

import pytest

from choreo.sqlite import batched

COUNTS = (0, 1, 7, 8, 9, 63, 64, 65, 64 + 8 + 1, 200)


@pytest.mark.parametrize("count", COUNTS)
def test_rows_are_in_order_and_counted(count: int) -> None:
    """Ids follow the order; an update counts only rows that were there."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER, name TEXT)")
        rows = [(number, f"n{number}") for number in range(count)]
        assert batched.execute(db, "INSERT INTO t VALUES {rows}", "(NULL, ?, ?)", rows) == count
        assert db.execute("SELECT number, name FROM t ORDER BY id").fetchall() == rows
        statement = "UPDATE t SET name = v.column2 FROM (VALUES {rows}) v WHERE number = v.column1"
        changed = [(number, "x") for number in range(-1, count, 2)]
        assert batched.execute(db, statement, "(?, ?)", changed) == count // 2
        assert [name for (name,) in db.execute("SELECT name FROM t ORDER BY id")] == [
            "x" if number % 2 else name for number, name in rows
        ]


def test_a_statement_a_run_of_rows_and_not_one_a_row() -> None:
    """Python lets go of the interpreter at each step of each statement."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (number INTEGER)")
        seen: list[str] = []
        db.set_trace_callback(seen.append)
        batched.execute(db, "INSERT INTO t VALUES {rows}", "(?)", [(number,) for number in range(1_000)])
        assert len(seen) == 15 + 5
