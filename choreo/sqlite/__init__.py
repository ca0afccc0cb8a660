"""One SQLite file used by several processes: access, leases and the tables that live in it."""
