"""Keeps a collector that is down from filling the log: one warning while it is, one line when it answers again.

And closes what exports to it in bounded time, whatever the collector does.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import WeakSet

from choreo.telemetry.attributes import type_name

FLUSH_S_MAX = 2.0
"""Closing waits so long for what is queued to be taken."""
ABORT_S_MAX = 0.5
"""And so long again for an export that was told to give up; then its daemon thread is left behind."""

T = TypeVar("T")

_log = logging.getLogger("choreo.telemetry")
_local = threading.local()
_watches: "WeakSet[Watch]" = WeakSet()
_warned: set[str] = set()


class Watch:
    """What becomes of the exports of one exporter.

    Args:
        what: `spans` or `metrics`.
        where: What people call the other end; no secrets in it.
        unit: What is counted when it is lost, such as ` exports`, where that is not `what`.
    """

    def __init__(self, what: str, where: str, unit: str = "") -> None:
        self._what = what
        self._where = where
        self._unit = unit
        self._heard: list[str] = []
        self.lost = 0
        """Not taken since the exporter last worked; 0 while it works."""
        _watches.add(self)

    @property
    def troubled(self) -> bool:
        """Whether something is being lost, or the export that is going on had to be repeated."""
        return bool(self.lost or self._heard)

    def take(self, export: Callable[[], T] | None, *, success: T, failure: T, count: Callable[[], int]) -> T:
        """Export, or count as lost; never raises. `export` is None once the exporter is closed."""
        result = failure
        heard = self._heard = []
        if export is not None:
            _local.heard = heard
            try:
                result = export()
            except Exception as error:
                heard.append(type(error).__qualname__)
            finally:
                _local.heard = None
        if result is not success:
            self.note_lost(count(), heard[0] if heard else "choreo is closing")
        elif self.lost:
            _log.info("%s reach %s again; %d%s were lost", self._what, self._where, self.lost, self._unit)
            self.lost = 0
        self._heard = []
        return result

    def note_lost(self, count: int, reason: str) -> None:
        """Count something as lost, with one warning until the exporter works again."""
        if not self.lost:
            what, where = self._what, self._where
            _log.warning("%s cannot be sent to %s and are lost until they can: %s", what, where, _short(reason))
        self.lost += count


class _Quiet(logging.Filter):
    """Keeps what the SDK logs from inside one of our exports, and what follows from it, off the console.

    An exporter of the application's own is on other threads and logs as ever.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        heard = getattr(_local, "heard", None)
        if heard is not None:
            if record.levelno >= logging.WARNING:
                heard.append(record.getMessage())
            return False
        if record.args == ("Span",) and str(record.msg).startswith("Queue full"):
            return not any(watch.troubled for watch in _watches)
        return True


_quiet = _Quiet()


def quieten() -> None:
    """Once the exporters are imported: their loggers say nothing of what a Watch says."""
    # A filter is asked for its own logger's records only, not for those of the loggers below it.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("opentelemetry.exporter.", "opentelemetry.sdk._shared_internal", "urllib3.")):
            logging.getLogger(name).addFilter(_quiet)


def contain(moment: str, error: Exception) -> None:
    """Say once a moment that tracing failed there; the service goes on."""
    level = logging.DEBUG if moment in _warned else logging.WARNING
    _warned.add(moment)
    _log.log(level, "tracing failed at %s and the service goes on: %s", moment, type_name(error))


def close(flushes: Sequence[tuple[Callable[[], object], Callable[[], object], Watch]]) -> None:
    """Flush and end exporters in at most FLUSH_S_MAX + ABORT_S_MAX.

    Args:
        flushes: How to flush and end each, how to make it give up, and its watch.
    """
    flushing = [_start(flush) for flush, _, _ in flushes]
    if _join(flushing, FLUSH_S_MAX):
        return
    # The SDK would wait 30 s here. Shut down, an exporter gives up between two attempts.
    aborting = [_start(abort) for _, abort, _ in flushes]
    if not _join(flushing + aborting, ABORT_S_MAX):
        for (_, _, watch), thread in zip(flushes, flushing, strict=True):
            if thread.is_alive():
                watch.note_lost(1, "no answer in time while closing")


def redacted(text: str) -> str:
    """An endpoint, or a sentence with one, without the user, password or query it may hold."""
    return re.sub(r"[^\s/]*@", "", re.sub(r"\?[^\s)'\"]*", "", text))


def _start(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, name="choreo-telemetry-close", daemon=True)
    thread.start()
    return thread


def _join(threads: Sequence[threading.Thread], timeout_s: float) -> bool:
    """Whether all of them ended within `timeout_s` together."""
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _short(reason: str) -> str:
    errno = re.search(r"\[Errno -?\d+\] [^\"')]+", reason)
    if errno is not None:
        return errno[0]
    return " ".join(redacted(reason.split(", retrying in")[0]).split())[:200]
