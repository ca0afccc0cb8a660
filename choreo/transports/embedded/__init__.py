"""The embedded log: one SQLite file, for one host and no broker."""

from choreo.transports.embedded.transport import EmbeddedTransport

__all__ = ["EmbeddedTransport"]
