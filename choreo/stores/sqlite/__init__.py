"""Keys, outbox and rows in one SQLite file."""

from choreo.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
