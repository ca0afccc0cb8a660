"""One batch processor and exporter of spans a process, shared by a provider for each service.

Spans of all services leave in the same requests and are told apart by their resource, which is how OTLP groups
them.

Imports the SDK: only `choreo.telemetry.setup` imports this, once tracing is on.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler

from choreo.telemetry import watching
from choreo.telemetry.attributes import Attributes
from choreo.telemetry.quick import SENDS_MAX, Queued, Quick
from choreo.telemetry.sampling import FlowRatio
from choreo.telemetry.setup import flow_ratio_wanted
from choreo.telemetry.watching import Watch

QUEUE_MAX = 8192
BATCH_MAX = 2048
BATCH_DELAY_MS = 1000
"""Where no OTEL_BSP_* is set; a process span and what it sent, if that is no more than SENDS_MAX, count as one.
Export is serial: with a backend that takes 250 ms, the SDK's own 512 spans a batch lose half of 4000 spans/s, and
these lose none. A request costs 2 ms, whatever is in it."""
GRPC_BATCH_MAX = 1024
"""It takes 4 MiB at most."""

_FOLLOW_PARENTS = ("", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio")

_lock = threading.Lock()
_shared: "Pipeline | None" = None


class Watched(SpanExporter):
    """An exporter that never raises, and whose losses are said by its Watch.

    Args:
        encoded: It takes what is not the SDK's, too.
        batch_max: How much of it at once.
    """

    def __init__(
        self, exporter: SpanExporter, watch: Watch, *, encoded: bool = False, batch_max: int = BATCH_MAX
    ) -> None:
        self.encoded = encoded
        self.batch_max = batch_max
        self._exporter = exporter
        self._closed = False
        self.watch = watch

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, or count the spans as lost."""
        export = None if self._closed else lambda: self._exporter.export(spans)
        return self.watch.take(
            export,
            success=SpanExportResult.SUCCESS,
            failure=SpanExportResult.FAILURE,
            count=lambda: sum(span.count if isinstance(span, Queued) else 1 for span in spans),
        )

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
        """Flush and end, in bounded time."""
        pairs = zip(self.processors, self.exporters, strict=True)
        watching.close([(processor.shutdown, exporter.shutdown, exporter.watch) for processor, exporter in pairs])


def acquire(make_exporters: Callable[[], Sequence[Watched]]) -> Pipeline:
    """The process's pipeline, made by whoever comes first. Every one needs its `release`."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = Pipeline(make_exporters())
            watching.quieten()
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
    made = TracerProvider(sampler=_sampler(), resource=_HashedOnce(resource), shutdown_on_exit=False)
    for processor in pipeline.processors:
        made.add_span_processor(processor)
    return made


def exporter(name: str, protocol: str, where: str) -> Watched:
    """The exporter called `console` or `otlp`; the latter reads endpoint, headers and the rest from OTEL_*."""
    if name == "console":
        return Watched(ConsoleSpanExporter(out=sys.stdout), Watch("spans", "the console"))
    from choreo.telemetry import exporting

    batch_max = GRPC_BATCH_MAX if protocol == "grpc" else BATCH_MAX
    return Watched(exporting.otlp(protocol), Watch("spans", where), encoded=exporting.ENCODED, batch_max=batch_max)


def quick(made: TracerProvider, pipeline: Pipeline, always: Attributes) -> Quick | None:
    """What records the usual spans of `made` in the quick way; None where more than it does is asked for."""
    follows_parents = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() in _FOLLOW_PARENTS
    limited = any(name.startswith("OTEL_") and name.endswith("_LIMIT") for name in os.environ)
    puts = [put for put in map(_put, pipeline.processors) if put is not None]
    encoded = len(puts) == len(pipeline.exporters) and all(each.encoded for each in pipeline.exporters)
    if limited or not follows_parents or not encoded:
        return None
    return Quick(always, made, puts, 0 if _configured() else SENDS_MAX)


def _put(processor: BatchSpanProcessor) -> Callable[[Any], object] | None:
    """What takes into its queue what is not the SDK's: private API, seen in 1.35 to 1.45."""
    return getattr(getattr(processor, "_batch_processor", None), "emit", None)


def _sampler() -> Sampler | None:
    """Where a ratio is asked for, one that agrees across a flow's traces; else the SDK's, by the same variables."""
    wanted = flow_ratio_wanted(os.environ)
    if wanted is None:
        return None
    ratio, follows_parents = wanted
    return ParentBased(FlowRatio(ratio)) if follows_parents else FlowRatio(ratio)


def _configured() -> bool:
    """Whether somebody counts what goes into the queue, and means spans."""
    return any(name.startswith("OTEL_BSP_") for name in os.environ)


def _processor(exporter: Watched) -> BatchSpanProcessor:
    if _configured():
        return BatchSpanProcessor(exporter)
    return BatchSpanProcessor(
        exporter,
        max_queue_size=QUEUE_MAX,
        max_export_batch_size=exporter.batch_max,
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
