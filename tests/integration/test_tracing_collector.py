"""What becomes of a service when its collector is down, deaf, in trouble, or speaks gRPC."""

import logging
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent import futures
from functools import partial

import grpc  # type: ignore[import-untyped]
import pytest

from choreo.testing.otlp import OtlpReceiver
from choreo.testing.otlp_reading import ReceivedSpan, parse
from tests.integration.tracing import instruments, trace_one, unset_otel, warnings_of

CLOSE_S_MAX = 3.0


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the surroundings' own tracing."""
    unset_otel(monkeypatch)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """A collector, with the environment pointing at it."""
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def answered(receiver: OtlpReceiver, requests: int, spans: Sequence[ReceivedSpan]) -> bool:
    """Whether the receiver has answered so many requests, whatever it kept of them."""
    return len(receiver.requests) >= requests


def test_grpc_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_PROTOCOL=grpc reaches a collector that speaks it."""
    received: list[ReceivedSpan] = []

    def take(body: bytes, context: object) -> bytes:
        received.extend(parse(body))
        return b""

    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    method = grpc.unary_unary_rpc_method_handler(take)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        with instruments("inventory") as (inventory,):
            trace_one(inventory)
    finally:
        server.stop(None).wait()
    assert [span.name for span in received] == ["send stock", "process orders"]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("port_of", ["closed_port", "mute_port"])
def test_closing_is_bounded_and_quiet_without_a_collector(
    protocol: str,
    port_of: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nobody answers: closing returns in time, with one warning and no stack trace, and no secret in it."""
    port = request.getfixturevalue(port_of)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://me:secret@127.0.0.1:{port}")
    began_s = time.monotonic()
    with instruments("inventory", "shipping") as (inventory, _):
        trace_one(inventory)
    assert time.monotonic() - began_s < CLOSE_S_MAX
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"spans cannot be sent to http://127.0.0.1:{port} and are lost until they can: ")
    assert "secret" not in warning
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


async def test_collector_that_fails_and_recovers_is_said_once_each(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lost batches are one warning, and the next one that arrives is one line."""
    caplog.set_level(logging.INFO, "choreo.telemetry")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    receiver.status = 400
    with instruments("inventory") as (inventory,):
        for failures in (1, 2):
            trace_one(inventory)
            await receiver.wait_for(partial(answered, receiver, failures))
        receiver.status = 200
        trace_one(inventory)
        await receiver.wait_for(2)
    warning, recovery = (record.getMessage() for record in caplog.records)
    assert warning.endswith("Failed to export spans batch code: 400, reason: Bad Request")
    assert re.search(r"again; [2-4] were lost$", recovery)


def test_queue_that_overflows_in_an_outage_is_no_further_warning(
    closed_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK's word of a full queue says nothing new while nobody takes spans."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    with instruments("inventory") as (inventory,):
        trace_one(inventory)
        time.sleep(0.5)  # the first batch is refused and waits to be sent again
        for _ in range(100):
            trace_one(inventory)
    (warning,) = warnings_of(caplog)
    assert "Connection refused" in warning


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/v1/logs", {"content-type": "application/x-protobuf"}, b"", 404),
        ("/v1/metrics", {"content-type": "application/x-protobuf"}, b"\xff", 400),
        ("/v1/traces", {"content-type": "application/json"}, b"{}", 415),
        ("/v1/traces", {"content-type": "application/x-protobuf"}, b"\xff", 400),
        ("/v1/traces", {"content-type": "application/x-protobuf", "content-encoding": "gzip"}, b"plain", 400),
        ("/v1/traces", {"content-type": "application/x-protobuf"}, b"", 200),
    ],
)
def test_receiver_refuses_what_is_no_trace(
    receiver: OtlpReceiver, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    """A test of somebody's exporter learns what is wrong by the status."""
    request = urllib.request.Request(receiver.endpoint + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            found = answer.status
    except urllib.error.HTTPError as error:
        error.close()
        found = error.code
    assert found == status
    assert receiver.spans() == []
