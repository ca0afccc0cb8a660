"""The MeterProvider of a process that has none of its own: who reads it, and how it ends.

Imports the SDK: only `choreo.telemetry.setup` imports this, once somebody wants metrics.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from choreo.telemetry import aggregating, watching
from choreo.telemetry.watching import Watch


class Made(NamedTuple):
    """A provider, how to flush and end it in bounded time, and whether it takes many durations at once."""

    provider: MeterProvider
    close: Callable[[], None]
    many: bool


class WatchedMetrics(MetricExporter):
    """An exporter that never raises, and whose losses are said by its Watch."""

    def __init__(self, exporter: MetricExporter, watch: Watch) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._closed = False
        self.watch = watch

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Export, or count the export as lost; what is cumulative is in the next one."""
        export = None if self._closed else lambda: self._exporter.export(metrics_data, timeout_millis, **kwargs)
        return self.watch.take(
            export, success=MetricExportResult.SUCCESS, failure=MetricExportResult.FAILURE, count=lambda: 1
        )

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Abort an export that is waiting to be repeated, and take no more."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown(timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is buffered here."""
        return True


def provider(process: str, names: Sequence[str], protocol: str, where: str, *, scraped: bool) -> Made:
    """A provider read by the exporters called `names`, and by Prometheus' default registry if `scraped`.

    Its `service.name` is `process`, unless OTEL_SERVICE_NAME says otherwise.
    """
    exporters = [_exporter(name, protocol, where) for name in names]
    periodic = [PeriodicExportingMetricReader(exporter) for exporter in exporters]  # interval by OTEL_METRIC_EXPORT_*
    readers: list[MetricReader] = [*periodic]
    if scraped:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader

        readers.append(PrometheusMetricReader(scope_info_enabled=False))
    named = OTELResourceDetector().detect().attributes.get("service.name")
    views = aggregating.views()
    made = MeterProvider(
        readers,
        resource=Resource.create({"service.name": named or process}),
        exemplar_filter=AlwaysOffExemplarFilter(),
        shutdown_on_exit=False,
        views=views,
    )
    watching.quieten()

    def close() -> None:
        for reader in readers[len(periodic) :]:
            reader.shutdown()
        pairs = zip(periodic, exporters, strict=True)
        watching.close([(reader.shutdown, exporter.shutdown, exporter.watch) for reader, exporter in pairs])

    return Made(made, close, bool(views))


def _exporter(name: str, protocol: str, where: str) -> WatchedMetrics:
    if name == "console":
        return WatchedMetrics(ConsoleMetricExporter(out=sys.stdout), Watch("metrics", "the console", " exports"))
    made: MetricExporter
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        made = Grpc()
    else:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

        made = Http()
    return WatchedMetrics(made, Watch("metrics", where, " exports"))
