"""Spans of requests, by OTLP where OTEL_EXPORTER_OTLP_ENDPOINT is set. An event in the outbox continues them."""

import os

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def trace_requests(app: FastAPI) -> None:
    """A span a request; the provider is the whole process's, so that a relay in it exports there too."""
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        return
    provider = TracerProvider(resource=Resource.create({"service.name": "web-orders"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    FastAPIInstrumentor.instrument_app(app, excluded_urls="livez,readyz", exclude_spans=["receive", "send"])
