"""Many rows by few statements. Python gives the interpreter to another thread at each step of a statement, and may
wait for it 5 ms where that one is busy: a row a step would be as many waits, and is the dearer statement, too.
"""

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

_AT_ONCE = (64, 8, 1)
"""Rows of a statement; few enough for 999 parameters."""


def execute(db: sqlite3.Connection, statement: str, row: str, rows: Sequence[Sequence[Any]]) -> int:
    """Execute a statement that takes rows of `VALUES`; returns how many rows it changed.

    Args:
        statement: With `{rows}` where they are to stand.
        row: One of them, `(?, ?)`.
        rows: The parameters of each, in the order they are to be in.
    """
    changed = at = 0
    for count in _AT_ONCE:
        filled = _filled(statement, row, count)
        while len(rows) - at >= count:
            changed += db.execute(filled, list(chain.from_iterable(rows[at : at + count]))).rowcount
            at += count
    return changed


@lru_cache(maxsize=64)
def _filled(statement: str, row: str, count: int) -> str:
    return statement.replace("{rows}", ", ".join([row] * count))
