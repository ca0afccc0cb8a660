"""Many rows by few statements. Python gives the interpreter to another thread at each step of a statement, and may
wait for it 5 ms where that one is busy: a row a step would be as many waits, and is the dearer statement, too.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

_AT_ONCE = tuple(1 << power for power in range(9, -1, -1))
"""Rows of a statement: whatever their number is, it is few of these, and each statement is prepared once. Few enough
for the 32,766 parameters that SQLite takes since 3.32."""


def change(db: sqlite3.Connection, statement: str, row: str, rows: Sequence[Sequence[Any]]) -> int:
    """Execute a statement that takes rows of `VALUES`; returns how many rows it changed.

    Args:
        statement: With `{rows}` where they are to stand.
        row: One of them, `(?, ?)`.
        rows: The parameters of each, in the order they are to be in.
    """
    return sum(cursor.rowcount for cursor in _executed(db, statement, row, rows))


def insert(db: sqlite3.Connection, statement: str, row: str, rows: Sequence[Sequence[Any]]) -> int:
    """Insert rows, as `change`; returns the id of the last one, 0 if there is none."""
    last = 0
    for cursor in _executed(db, statement, row, rows):
        last = cursor.lastrowid or 0
    return last


def _executed(
    db: sqlite3.Connection, statement: str, row: str, rows: Sequence[Sequence[Any]]
) -> Iterator[sqlite3.Cursor]:
    at = 0
    for count in _AT_ONCE:
        while len(rows) - at >= count:
            yield db.execute(filled(statement, row, count), list(chain.from_iterable(rows[at : at + count])))
            at += count


@lru_cache(maxsize=128)
def filled(statement: str, row: str, count: int) -> str:
    """The statement with `count` rows where `{rows}` stands; the same string each time, so it is parsed once."""
    return statement.replace("{rows}", ", ".join([row] * count))
