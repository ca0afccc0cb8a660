"""A real Jaeger on free loopback ports, with its memory store, for the binary that JAEGER_BINARY names."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy.kafka.node import free_ports

READY_S = 60.0
CONFIG = """
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {receivers: [otlp], processors: [batch], exporters: [jaeger_storage_exporter]}
  telemetry: {metrics: {level: none}, logs: {level: warn}}
extensions:
  jaeger_query:
    storage: {traces: memory_store}
    http: {endpoint: "127.0.0.1:%(query)d"}
    grpc: {endpoint: "127.0.0.1:%(grpc)d"}
  jaeger_storage: {backends: {memory_store: {memory: {max_traces: 1000}}}}
receivers:
  otlp: {protocols: {http: {endpoint: "127.0.0.1:%(otlp)d"}, grpc: {endpoint: "127.0.0.1:%(otlp_grpc)d"}}}
processors: {batch: {timeout: 100ms}}
exporters: {jaeger_storage_exporter: {trace_storage: memory_store}}
"""


class Jaeger(NamedTuple):
    """Where spans are sent to, by HTTP and by gRPC, and where they are asked for."""

    otlp: str
    query: str
    otlp_grpc: str


@contextmanager
def jaeger_server(folder: Path) -> Iterator[Jaeger]:
    """Start it and wait until it answers; the test is skipped where there is no binary, in CI too."""
    binary = os.environ.get("JAEGER_BINARY")
    if not binary:
        pytest.skip(
            "no Jaeger to test with: set JAEGER_BINARY to the executable of Jaeger 2; an OTLP receiver stands in for "
            "it in tests/integration/test_order_flow_trace.py"
        )
    otlp, query, grpc, otlp_grpc = free_ports(4)
    config = folder / "jaeger.yaml"
    config.write_text(CONFIG % {"otlp": otlp, "query": query, "grpc": grpc, "otlp_grpc": otlp_grpc})
    with open(folder / "jaeger.log", "wb") as log:
        process = subprocess.Popen([binary, "--config", str(config)], stdout=log, stderr=log)
    found = Jaeger(f"http://127.0.0.1:{otlp}", f"http://127.0.0.1:{query}", f"127.0.0.1:{otlp_grpc}")
    try:
        until_s = time.monotonic() + READY_S
        while not _answers(found):
            said = (folder / "jaeger.log").read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"Jaeger ended:\n{said}"
            assert time.monotonic() < until_s, f"Jaeger does not answer:\n{said}"
            time.sleep(0.1)
        yield found
    finally:
        process.kill()
        process.wait(10)


def _answers(jaeger: Jaeger) -> bool:
    try:
        for url in (f"{jaeger.query}/api/services", jaeger.otlp):
            with urllib.request.urlopen(url, timeout=1):
                pass
    except urllib.error.HTTPError:
        return True  # OTLP takes no GET, and says so
    except OSError:
        return False
    return True
