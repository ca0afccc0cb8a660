"""Keys, outbox and rows in one PostgreSQL transaction."""

from choreo.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
