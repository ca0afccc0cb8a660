"""An OTLP receiver within the test's own process: real spans and metrics over real HTTP, and no collector.

    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        ...
        spans = await receiver.wait_for(4)
        assert tree(spans) == [("web", "send orders", "PRODUCER", [...])]

It knows OTLP and HTTP, and nothing of how choreo makes spans.
"""

import asyncio
import gzip
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from choreo.testing.otlp_reading import ReceivedPoint, ReceivedSpan, parse_metrics, spans_of

BODY_BYTES_MAX = 64 * 1024 * 1024
TRACES, METRICS = "/v1/traces", "/v1/metrics"
ANSWERS = {
    TRACES: ExportTraceServiceResponse().SerializeToString(),
    METRICS: ExportMetricsServiceResponse().SerializeToString(),
}
_POLL_S = 0.01


class Branch(NamedTuple):
    """A span and what is below it; equal to a plain tuple of the same, so that a test can write it down."""

    service: str
    name: str
    kind: str
    children: list["Branch"]


MISSING = "(missing)"
"""Name of the branch above spans whose parent never arrived."""


class OtlpReceiver:
    """Accepts `POST /v1/traces` and `/v1/metrics` in protobuf, plain, gzip or deflate, on a port of 127.0.0.1.

    A context manager, usable in plain and in asynchronous tests alike; requests are served from threads.

    Attributes:
        status: What is answered; set it to 503 to play a collector that is in trouble. Spans are kept with 200 only.
        requests: Requests answered so far, with the status of each.
    """

    def __init__(self) -> None:
        self.status = 200
        self.requests: list[int] = []
        self._spans: list[ReceivedSpan] = []
        self._unread: deque[ExportTraceServiceRequest] = deque()  # who sends is not to be slowed down by our reading
        self._points: list[ReceivedPoint] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": _POLL_S}, name="otlp-receiver", daemon=True
        )

    @property
    def endpoint(self) -> str:
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def spans(self) -> list[ReceivedSpan]:
        """What has arrived so far, in order of arrival."""
        while self._unread:
            self._spans += spans_of(self._unread.popleft())
        return list(self._spans)

    def points(self, name: str) -> list[ReceivedPoint]:
        """The data points of one metric, in order of arrival: of each of its series the last one is how it stands."""
        return [point for point in self._points if point.name == name]

    async def wait_for(
        self, wanted: int | Callable[[Sequence[ReceivedSpan]], bool], timeout_s: float = 10.0
    ) -> list[ReceivedSpan]:
        """All spans, as soon as there are `wanted` or `wanted(spans)` is true.

        Raises:
            TimeoutError: They are not after `timeout_s`; the message names those that did arrive.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            spans = self.spans()
            if len(spans) >= wanted if isinstance(wanted, int) else wanted(spans):
                return spans
            if time.monotonic() > deadline_s:
                names = ", ".join(f"{span.service}: {span.name}" for span in spans) or "none"
                raise TimeoutError(f"the spans waited for did not arrive within {timeout_s} s; there are: {names}")
            await asyncio.sleep(_POLL_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, path: str, body: bytes, encoding: str) -> int:
        try:
            if encoding == "gzip":
                body = gzip.decompress(body)
            elif encoding == "deflate":
                body = zlib.decompress(body)
            spans = ExportTraceServiceRequest.FromString(body) if path == TRACES else None
            points = list(parse_metrics(body)) if path == METRICS else []
        except Exception:  # whatever is wrong with it, it is no request
            return 400
        if self.status == 200:
            if spans is not None:
                self._unread.append(spans)
            self._points += points
        return self.status


def tree(spans: Iterable[ReceivedSpan]) -> list[Branch]:
    """The spans as trees, each level in order of service, name and kind, to be compared with a literal.

    A span whose parent is not there hangs below a branch named MISSING, so that a broken trace never looks whole.
    """
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    below: dict[tuple[str, str] | None, list[ReceivedSpan]] = {}
    for span in by_id.values():
        below.setdefault((span.trace_id, span.parent_id) if span.parent_id else None, []).append(span)

    def branches(key: tuple[str, str] | None) -> list[Branch]:
        return sorted(
            Branch(span.service, span.name, span.kind, branches((span.trace_id, span.span_id)))
            for span in below.get(key, [])
        )

    missing = [Branch("", MISSING, "", branches(key)) for key in below if key is not None and key not in by_id]
    return branches(None) + sorted(missing)


def _handler(receiver: OtlpReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request a connection, as HTTP/1.0 has it: no thread is left waiting for a next one."""

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            if self.path not in ANSWERS:
                status = 404
            elif self.headers.get("content-type", "").split(";")[0].strip() != "application/x-protobuf":
                status = 415
            elif length > BODY_BYTES_MAX:
                status = 413
            else:
                encoding = self.headers.get("content-encoding", "")
                status = receiver._take(self.path, self.rfile.read(length), encoding)
            receiver.requests.append(status)
            answer = ANSWERS[self.path] if status == 200 else b""
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """A test's output is not the place."""

    return Handler
