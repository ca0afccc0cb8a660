"""Logs of `run` and `dev`: one line a message, plain or JSON, to standard error."""

import logging
import sys
from datetime import UTC, datetime

import orjson

from choreo.telemetry.correlating import FIELDS, CorrelationFilter


def configure(*, as_json: bool, level: str = "INFO") -> None:
    """Send all logs of the process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    if as_json:
        handler.addFilter(CorrelationFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)


class PlainLines(logging.Formatter):
    """Time, level, logger, message; what has several lines is put into one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        text = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return " | ".join(text.splitlines())


class JsonLines(logging.Formatter):
    """One JSON object a line; what a record is about (see CorrelationFilter) is in fields of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        found = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().encode("utf-8", "replace").decode(),
        }
        for name in FIELDS:
            if value := getattr(record, name, None):
                found[name] = value
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(found, default=str).decode()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
