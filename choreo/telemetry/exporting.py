"""OTLP exporters whose batches may hold spans that are not the SDK's: `choreo.telemetry.quick`.

Private API of the exporters, seen in 1.35 to 1.45: the HTTP one calls a global of its module, `encode_spans`, and the
gRPC one a method, `_translate_data`. Where that is not so, ENCODED is false and every span is the SDK's.
"""

from collections.abc import Sequence
from types import FunctionType
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from choreo.telemetry.attributes import SCHEMA_URL
from choreo.telemetry.encoding import before
from choreo.telemetry.quick import Queued, Quick
from choreo.telemetry.watching import contain

ENCODED = "encode_spans" in Http.export.__code__.co_names
_SCOPE = InstrumentationScope("choreo", schema_url=SCHEMA_URL)


class Request:
    """The request of a batch, in place of the message that the exporter would make of it."""

    def __init__(self, spans: Sequence[Any]) -> None:
        self._spans = spans

    def SerializePartialToString(self) -> bytes:
        """As the message has it. A request behind another is, in protobuf, one request of both."""
        others, by_service = [], {}  # type: tuple[list[Any], dict[Quick, list[bytes]]]
        for span in self._spans:
            if not isinstance(span, Queued):
                others.append(span)
                continue
            try:
                encoded = span.encoded()
            except Exception as error:  # what cannot be told; the others of its batch do not die of it
                contain("end", error)
            else:
                by_service.setdefault(span.service, []).append(encoded)
        found = [piece for service, spans in by_service.items() for piece in _of_service(service, spans)]
        if others:
            found.append(bytes(encode_spans(others).SerializePartialToString()))
        return b"".join(found)


def _of_service(service: Quick, spans: Sequence[bytes]) -> Sequence[bytes]:
    """`ResourceSpans`, around which the SDK's own encoder puts resource and scope."""
    stand_in = ReadableSpan(
        "", SpanContext(1, 1, False), resource=service.provider.resource, instrumentation_scope=_SCOPE
    )
    (resource_spans,) = encode_spans([stand_in]).resource_spans
    (scope_spans,) = resource_spans.scope_spans
    del scope_spans.spans[:], resource_spans.scope_spans[:]
    scope, resource = scope_spans.SerializeToString(), resource_spans.SerializeToString()
    within = len(scope) + sum(map(len, spans))
    inner = before(2, within)
    outer = before(1, len(resource) + len(inner) + within)
    return outer, resource, inner, scope, *spans


def otlp(protocol: str) -> SpanExporter:
    """The exporter, which reads endpoint, headers and the rest from OTEL_*."""
    if protocol != "grpc":
        return _Http()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

    class _Grpc(Grpc):
        def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
            request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(
                Request(data).SerializePartialToString()
            )
            return request

    return _Grpc()


class _Http(Http):
    if ENCODED:
        export = FunctionType(
            Http.export.__code__,
            {**Http.export.__globals__, "encode_spans": Request},
            "export",
            Http.export.__defaults__,
        )
