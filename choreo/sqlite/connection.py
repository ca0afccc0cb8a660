"""An SQLite connection that can be lent to a handler: what would end the transaction is refused meanwhile.

SQLite asks an authorizer while it parses a statement, and forgets all that it has parsed when one is set. So one is
set for good, and only listened to while handlers run; choreo's own statements are parsed once. Python keeps them by
their text, for handlers too: so choreo commits by `commit()`, which is none, and never by a text.
"""

import sqlite3
from collections.abc import Callable
from typing import Any, Self

Authorizer = Callable[..., int | None]


class SqliteConnection(sqlite3.Connection):
    """A connection that is lent or not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lent = False
        self._borrowers: Authorizer | None = None
        super().set_authorizer(self._authorize)

    def lend(self) -> None:
        """From now on transactions are neither begun nor ended, and without one nothing is executed."""
        self.lent = True

    def take_back(self) -> None:
        """A handler is done, its authorizer gone with it."""
        self.lent, self._borrowers = False, None

    def check(self) -> None:
        """Refuse what would be committed by itself: SQLite has rolled back, and the handler has caught the error."""
        if self.lent and not self.in_transaction:
            raise sqlite3.DatabaseError("SQLite has rolled the transaction back: nothing more is executed in it")

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As sqlite3's."""
        self.check()
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        """As sqlite3's."""
        self.check()
        return super().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        """As sqlite3's."""
        self.check()
        return super().executescript(sql_script)

    def cursor(self, factory: Any = None) -> Any:
        """As sqlite3's."""
        return super().cursor(factory or _Cursor)

    def set_authorizer(self, authorizer_callback: Authorizer | None) -> None:
        """As sqlite3's: a handler's own, which is asked too."""
        self._borrowers = authorizer_callback
        super().set_authorizer(self._authorize)

    def _authorize(self, action: int, *details: Any) -> int:
        if self.lent and action == sqlite3.SQLITE_TRANSACTION:
            return sqlite3.SQLITE_DENY
        own = self._borrowers
        answer = sqlite3.SQLITE_OK if own is None else own(action, *details)
        return sqlite3.SQLITE_DENY if answer is None else answer


class _Cursor(sqlite3.Cursor):
    """One that a handler has made."""

    connection: SqliteConnection

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """As sqlite3's."""
        self.connection.check()
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Self:
        """As sqlite3's."""
        self.connection.check()
        return super().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        """As sqlite3's."""
        self.connection.check()
        return super().executescript(sql_script)
