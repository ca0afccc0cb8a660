"""deploy/collector.yaml in a real collector: failed and slow flows get through whole, of others none or all.

Jaeger 2 is a build of the OpenTelemetry Collector with all that the file names: it is the collector here, and where
the spans go.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from deploy.kafka.node import free_ports
from tests.jaeger_server import Jaeger, jaeger_server

CONFIG = Path(__file__).parents[2] / "deploy" / "collector.yaml"
MS, SLOW_MS = 1_000_000, 5_000


@contextmanager
def collector(folder: Path, jaeger: Jaeger, others_percent: int) -> Iterator[str]:
    """The file as it is but for the ports; yields where to send spans."""
    http, grpc = free_ports(2)
    sets = {
        "receivers.otlp.protocols.http.endpoint": f"127.0.0.1:{http}",
        "receivers.otlp.protocols.grpc.endpoint": f"127.0.0.1:{grpc}",
        "service.telemetry.metrics.level": "none",
    }
    environment = {
        **os.environ,
        "JAEGER_OTLP": jaeger.otlp_grpc,
        "OTHERS_PERCENT": str(others_percent),
        "DECISION_WAIT": "1s",
    }
    command = [os.environ["JAEGER_BINARY"], "--config", str(CONFIG), *(f"--set={key}={sets[key]}" for key in sets)]
    with open(folder / "collector.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until_s = time.monotonic() + 30
        while not listens(f"http://127.0.0.1:{http}"):
            said = (folder / "collector.log").read_text(errors="replace")[-2000:]
            assert process.poll() is None and time.monotonic() < until_s, said  # noqa: PT018
            time.sleep(0.1)
        yield f"http://127.0.0.1:{http}/v1/traces"
    finally:
        process.terminate()
        process.wait(20)


def listens(url: str) -> bool:
    """Whether anybody answers there, be it with an error."""
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def kept(jaeger: Jaeger, service: str) -> dict[str, int]:
    """Spans that got through, by the name of their trace's root."""
    with urllib.request.urlopen(f"{jaeger.query}/api/traces?service={service}&limit=100", timeout=10) as answer:
        traces = json.load(answer)["data"]
    roots = {
        trace["traceID"]: next(s["operationName"] for s in trace["spans"] if not s["references"]) for trace in traces
    }
    return {roots[trace["traceID"]]: len(trace["spans"]) for trace in traces}


@pytest.mark.parametrize("others_percent", [0, 100])
def test_what_went_wrong_is_kept_whole(tmp_path: Path, others_percent: int) -> None:
    """And spans that come after the decision go where those before them went."""
    with jaeger_server(tmp_path) as jaeger, collector(tmp_path, jaeger, others_percent) as url:
        provider = TracerProvider(resource=Resource({"service.name": "orders"}))
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(url)))
        tracer = provider.get_tracer("test")
        begin_ns = time.time_ns() - 10_000 * MS

        def flow(name: str, *, took_ms: int = 10, failed: bool = False, attempts: int = 1) -> Span:
            root = tracer.start_span(name, start_time=begin_ns)
            root.end(begin_ns + MS)
            child = tracer.start_span("process", set_span_in_context(root), start_time=begin_ns + MS)
            child.set_attribute("choreo.attempts", attempts)
            if failed:
                child.set_status(Status(StatusCode.ERROR))
            child.end(begin_ns + took_ms * MS)
            return root

        roots = [
            flow("ordinary"),
            flow("failed", failed=True),
            flow("slow", took_ms=SLOW_MS + 100),
            flow("tried again", attempts=2),
        ]
        expected = {"failed": 2, "slow": 2, "tried again": 2, **({"ordinary": 2} if others_percent else {})}
        until_s = time.monotonic() + 30
        while kept(jaeger, "orders") != expected:
            assert time.monotonic() < until_s, kept(jaeger, "orders")
            time.sleep(0.3)
        for root in roots:
            tracer.start_span("late", set_span_in_context(root), start_time=begin_ns).end(begin_ns + MS)
        whole = dict.fromkeys(expected, 3)
        while kept(jaeger, "orders") != whole:
            assert time.monotonic() < until_s, kept(jaeger, "orders")
            time.sleep(0.3)
        time.sleep(2.5)  # a decision of its own for the late span of a dropped flow would come by now
        assert kept(jaeger, "orders") == whole
        provider.shutdown()
