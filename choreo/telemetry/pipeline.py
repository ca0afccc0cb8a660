"""One batch processor and exporter a process, shared by a provider for each service.

Spans of all services leave in the same requests and are told apart by their resource, which is how OTLP groups
them. What the SDK says of a collector that is down, a line for every retry, becomes one warning and one line when
it answers again. Closing is bounded, whatever the collector does.

Imports the SDK: only `choreo.telemetry.setup` imports this, once tracing is on.
"""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult

FLUSH_S_MAX = 2.0
"""Closing waits so long for the queued spans to be taken."""
ABORT_S_MAX = 0.5
"""And so long again for an export that was told to give up; then its daemon thread is left behind."""
QUEUE_SPANS_MAX = 16384
BATCH_SPANS_MAX = 2048
BATCH_DELAY_MS = 1000
"""Where no OTEL_BSP_* is set. Export is serial: with a backend that takes 250 ms, the SDK's own 512 spans a batch
lose half of 4000 spans/s, and these lose none."""

_log = logging.getLogger("choreo.telemetry")
_local = threading.local()
_lock = threading.Lock()
_shared: "Pipeline | None" = None


class Watched(SpanExporter):
    """An exporter that never raises, and says once that it fails and once that it works again.

    Args:
        exporter: The SDK's.
        where: What people call its other end; no secrets in it.
    """

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self._exporter = exporter
        self._where = where
        self._closed = False
        self._heard: list[str] = []
        self.lost = 0
        """Spans not taken since the exporter last worked; 0 while it works."""

    @property
    def troubled(self) -> bool:
        """Whether spans are being lost, or the export that is going on had to be repeated."""
        return bool(self.lost or self._heard)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, or count the spans as lost."""
        result = SpanExportResult.FAILURE
        heard = self._heard = []
        if not self._closed:
            _local.heard = heard
            try:
                result = self._exporter.export(spans)
            except Exception as error:
                heard.append(type(error).__qualname__)
            finally:
                _local.heard = None
        if result is not SpanExportResult.SUCCESS:
            self.note_lost(len(spans), heard[0] if heard else "choreo is closing")
        elif self.lost:
            _log.info("spans reach %s again; %d were lost", self._where, self.lost)
            self.lost = 0
        self._heard = []
        return result

    def note_lost(self, spans: int, reason: str) -> None:
        """Count spans as lost, with one warning until the exporter works again."""
        if not self.lost:
            _log.warning("spans cannot be sent to %s and are lost until they can: %s", self._where, _short(reason))
        self.lost += spans

    def shutdown(self) -> None:
        """Abort an export that is waiting to be repeated, and take no more."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is buffered here."""
        return True


class Pipeline:
    """The processors of a process and how many instruments use them."""

    def __init__(self, exporters: Sequence[Watched]) -> None:
        self.exporters = exporters
        self.processors = [_processor(exporter) for exporter in exporters]
        self.users = 0

    def close(self) -> None:
        """Flush and end, in at most FLUSH_S_MAX + ABORT_S_MAX."""
        flushes = [_start(processor.shutdown) for processor in self.processors]
        if _join(flushes, FLUSH_S_MAX):
            return
        # The SDK would wait 30 s here. Shut down, an exporter gives up between two attempts.
        aborts = [_start(exporter.shutdown) for exporter in self.exporters]
        if not _join(flushes + aborts, ABORT_S_MAX):
            for exporter, flush in zip(self.exporters, flushes, strict=True):
                if flush.is_alive():
                    exporter.note_lost(1, "no answer in time while closing")


def acquire(make_exporters: Callable[[], Sequence[Watched]]) -> Pipeline:
    """The process's pipeline, made by whoever comes first. Every one needs its `release`."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = Pipeline(make_exporters())
            _quieten()
        _shared.users += 1
        return _shared


def release() -> None:
    """One user fewer; the last one flushes and ends the pipeline."""
    global _shared
    with _lock:
        pipeline = _shared
        if pipeline is None:
            return
        pipeline.users -= 1
        if pipeline.users > 0:
            return
        _shared = None
    pipeline.close()


def provider(service: str, pipeline: Pipeline, *, alone: bool) -> TracerProvider:
    """A provider whose spans say they are `service`'s; `alone` lets OTEL_SERVICE_NAME say otherwise."""
    named = OTELResourceDetector().detect().attributes.get("service.name") if alone else None
    resource = Resource.create({"service.name": named or service})
    made = TracerProvider(resource=_HashedOnce(resource), shutdown_on_exit=False)
    for processor in pipeline.processors:
        made.add_span_processor(processor)
    return made


def exporter(name: str, protocol: str, where: str) -> Watched:
    """The exporter called `console` or `otlp`; the latter reads endpoint, headers and the rest from OTEL_*."""
    if name == "console":
        return Watched(ConsoleSpanExporter(out=sys.stdout), "the console")
    made: SpanExporter
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        made = Grpc()
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        made = Http()
    return Watched(made, where)


def _processor(exporter: Watched) -> BatchSpanProcessor:
    if any(name.startswith("OTEL_BSP_") for name in os.environ):
        return BatchSpanProcessor(exporter)
    return BatchSpanProcessor(
        exporter,
        max_queue_size=QUEUE_SPANS_MAX,
        max_export_batch_size=BATCH_SPANS_MAX,
        schedule_delay_millis=BATCH_DELAY_MS,
    )


class _HashedOnce(Resource):
    """A resource that keeps its hash: the encoder asks for it with every span, and it is a JSON dump of 6 us."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __hash__(self) -> int:
        return self._hash


class _Quiet(logging.Filter):
    """Keeps what the SDK logs from inside one of our exports, and what follows from it, off the console.

    An exporter of the application's own, for its metrics or logs, is on other threads and logs as ever.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        heard = getattr(_local, "heard", None)
        if heard is not None:
            if record.levelno >= logging.WARNING:
                heard.append(record.getMessage())
            return False
        if record.args == ("Span",) and str(record.msg).startswith("Queue full"):
            pipeline = _shared
            return pipeline is None or not any(exporter.troubled for exporter in pipeline.exporters)
        return True


_quiet = _Quiet()


def _quieten() -> None:
    # A filter is asked for its own logger's records only, not for those of the loggers below it.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("opentelemetry.exporter.", "opentelemetry.sdk._shared_internal", "urllib3.")):
            logging.getLogger(name).addFilter(_quiet)


def _start(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, name="choreo-telemetry-close", daemon=True)
    thread.start()
    return thread


def _join(threads: Sequence[threading.Thread], timeout_s: float) -> bool:
    """Whether all of them ended within `timeout_s` together."""
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def redacted(text: str) -> str:
    """An endpoint, or a sentence with one, without the user, password or query it may hold."""
    return re.sub(r"[^\s/]*@", "", re.sub(r"\?[^\s)'\"]*", "", text))


def _short(reason: str) -> str:
    errno = re.search(r"\[Errno -?\d+\] [^\"')]+", reason)
    if errno is not None:
        return errno[0]
    return " ".join(redacted(reason.split(", retrying in")[0]).split())[:200]
