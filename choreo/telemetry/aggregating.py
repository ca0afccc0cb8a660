"""A histogram of the SDK's that takes Many durations at once, for a MeterProvider of our own.

How a histogram keeps its buckets and their sum is private API, seen in 1.45 and tried before it is relied on. Where
it is otherwise, or other buckets are wanted, there are no `views`, and a histogram is given each duration by itself.

Imports the SDK: only `choreo.telemetry.readers` imports this, once somebody wants metrics.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from choreo.telemetry.durations import Durations, Many

PROCESS = "messaging.process.duration"
_WANTED = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
_TRIAL = (1.0, 1.0, 3.0)


class _TakesMany(ExplicitBucketHistogramAggregation):
    def _create_aggregation(self, *given: Any, **named: Any) -> Any:
        made: Any = super()._create_aggregation(*given, **named)
        made.aggregate = partial(_aggregate, made, made.aggregate)
        return made


def _aggregate(made: Any, one_by_one: Any, measurement: Any, *given: Any, **named: Any) -> None:
    many = measurement.value
    if not isinstance(many, Many):
        one_by_one(measurement, *given, **named)
        return
    with made._lock:
        before = made._value or [0] * len(many.buckets)
        made._value = [one + other for one, other in zip(before, many.buckets, strict=True)]
        made._sum += many
        made._min, made._max = min(made._min, many.least), max(made._max, many.most)


def views() -> Sequence[View]:
    """For the provider whose PROCESS is to take Many; none where it cannot."""
    explicit = os.environ.get(_WANTED, "").strip().lower() in ("", "explicit_bucket_histogram")
    return [View(instrument_name=PROCESS, aggregation=_TakesMany())] if explicit and _works() else []


def _works() -> bool:
    """Whether this SDK makes the same of many as of each."""
    try:
        reader = InMemoryMetricReader()
        view = View(instrument_name="*", aggregation=_TakesMany([2.0]))
        provider = MeterProvider(
            [reader], exemplar_filter=AlwaysOffExemplarFilter(), shutdown_on_exit=False, views=[view]
        )
        meter = provider.get_meter("trial")
        together, each = meter.create_histogram("together"), meter.create_histogram("each")
        durations = Durations(together, [2.0])
        for took_s in _TRIAL:
            durations.recorder({})(took_s)
            each.record(took_s)
        durations.flush()
        data: Any = reader.get_metrics_data()
        metrics = data.resource_metrics[0].scope_metrics[0].metrics
        one, other = ((point.bucket_counts, point.sum, point.min, point.max) for (point,) in map(_points, metrics))
    except Exception:
        return False
    return bool(one == other)


def _points(metric: Any) -> Any:
    return metric.data.data_points
