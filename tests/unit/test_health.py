"""`/livez`, `/readyz` and `/metrics`: what is answered while a service runs, hangs, drains, or is asked badly."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from choreo import App, ConfigurationError, Event, Service
from choreo.running import Running
from choreo.telemetry import endpoint
from choreo.telemetry.endpoint import REQUEST_BYTES_MAX, Answer, serving
from tests.integration.tracing import unset_otel


class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    """Somebody wants tea."""

    who: str


@dataclass
class Kettle:
    """Boils until it is told to stop."""

    on: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


kitchen = Service("kitchen")


@kitchen.handler(Asked)
async def pour(asked: Asked, kettle: Kettle) -> None:
    """Wait for the kettle."""
    kettle.on.set()
    await kettle.done.wait()


async def ask(port: int, path: str, *, raw: bytes | None = None) -> tuple[int, str, str]:
    """Status, content type and body, nothing where none came; the connection is closed by who answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() if raw is None else raw)
        async with asyncio.timeout(10.0):
            answer = (await reader.read()).decode()
    except ConnectionResetError:
        return 0, "", ""
    finally:
        writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    if not head:
        return 0, "", ""
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    return int(head.split(" ")[1]), headers["Content-Type"], body


@asynccontextmanager
async def running(kettle: Kettle) -> AsyncIterator[tuple[Running, int]]:
    """The app and the port of its endpoint."""
    app = App(kitchen, resources={Kettle: kettle})
    made: dict[str, Any] = {"create_topics": True, "create_schema": True}
    async with app.running(broker="embedded::memory:", health_port=0, **made) as run:
        assert run.health_port is not None
        yield run, run.health_port


async def until(port: int, path: str, status: int) -> str:
    """The body of the first answer with that status."""
    async with asyncio.timeout(10.0):
        while (answer := await ask(port, path))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return answer[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the surroundings' own telemetry."""
    unset_otel(monkeypatch)


async def test_a_service_is_ready_once_it_has_joined_and_until_it_drains() -> None:
    """Ready while it runs; while a handler keeps the drain waiting it is alive and not ready."""
    kettle = Kettle()
    waiting: asyncio.Task[str] | None = None
    async with running(kettle) as (run, port):
        await until(port, "/readyz", 200)
        assert (await ask(port, "/livez"))[0] == 200
        await run.publish(Asked(who="Ann"))
        await kettle.on.wait()

        async def while_draining() -> str:
            said = await until(port, "/readyz", 503)
            assert (await ask(port, "/livez"))[0] == 200
            kettle.done.set()
            return said

        waiting = asyncio.create_task(while_draining())
    assert await waiting == "kitchen: draining\n"


async def test_a_service_outside_of_its_group_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started is not joined."""
    async with running(Kettle()) as (run, port):
        await until(port, "/readyz", 200)
        monkeypatch.setattr(run.workers["kitchen"].consumer, "joined", False)
        assert await ask(port, "/readyz") == (503, "text/plain; charset=utf-8", "kitchen: not in its group yet\n")
        assert (await ask(port, "/livez"))[0] == 200, "no reason to be ended"


@pytest.mark.parametrize("loop", ["fetch", "keep"])
async def test_a_loop_that_hangs_is_not_alive(loop: str) -> None:
    """A beat older than a lease and a drain together is a reason to be started again."""
    async with running(Kettle()) as (run, port):
        await until(port, "/readyz", 200)
        worker = run.workers["kitchen"]
        assert set(worker.beats) == {"fetch", "keep"}
        worker._loops[loop == "keep"].cancel()
        worker.beats[loop] -= 49.0
        assert (await ask(port, "/livez"))[0] == 200
        worker.beats[loop] -= 2.0
        status, _, body = await ask(port, "/livez")
        assert status == 503
        assert body.startswith(f"kitchen: its {loop} loop has been silent for 5")


async def test_metrics_are_scraped() -> None:
    """Prometheus' text format, with a counter of ours under the name Prometheus gives it; gone with the run."""
    kettle = Kettle()
    kettle.done.set()
    async with running(kettle) as (run, port):
        await run.publish(Asked(who="Ann"))
        async with asyncio.timeout(10.0):
            while 'choreo_outcome="handled"' not in (scraped := await ask(port, "/metrics"))[2]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert scraped[0] == 200
    assert scraped[1].startswith("text/plain; version=")
    (line,) = [line for line in scraped[2].splitlines() if line.startswith("choreo_handler_events_total{")]
    assert 'choreo_service="kitchen"' in line
    assert line.endswith(" 1.0")
    assert "# TYPE messaging_process_duration_seconds histogram" in scraped[2]
    assert "choreo_handler_events" not in endpoint.scrape().body.decode()


async def test_without_the_extra_the_rest_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/metrics` says what to install."""
    monkeypatch.setattr(endpoint, "find_spec", lambda name: None)
    async with running(Kettle()) as (_, port):
        await until(port, "/readyz", 200)
        assert await ask(port, "/metrics") == (
            501,
            "text/plain; charset=utf-8",
            'needs a package that is not installed: pip install "choreo[prometheus]"\n',
        )


async def test_no_port_is_no_endpoint() -> None:
    """Off unless asked for."""
    app = App(kitchen, resources={Kettle: Kettle()})
    async with app.running(broker="embedded::memory:", create_topics=True, create_schema=True) as run:
        assert run.health_port is None


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"HEAD /livez HTTP/1.1\r\n\r\n", 200),
        (b"GET /livez?verbose HTTP/1.1\r\n\r\n", 200),
        (b"POST /livez HTTP/1.1\r\n\r\n", 405),
        (b"GET /secrets HTTP/1.1\r\n\r\n", 404),
        (b"\xff\xfe\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * REQUEST_BYTES_MAX, 0),
    ],
)
async def test_bad_requests_harm_nobody(raw: bytes, status: int) -> None:
    """Whatever is sent, the next one is answered."""
    async with serving("127.0.0.1", 0, {"/livez": lambda: Answer(200, b"ok\n")}) as port:
        found = await ask(port, "", raw=raw)
        assert found[0] == status
        assert (found[2] == "") == raw.startswith((b"HEAD", b"GET / "))
        assert (await ask(port, "/livez"))[2] == "ok\n"


async def test_those_who_say_nothing_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are held open are bounded in number and in time."""
    monkeypatch.setattr(endpoint, "REQUEST_S_MAX", 0.2)
    monkeypatch.setattr(endpoint, "CONNECTIONS_MAX", 2)
    async with serving("127.0.0.1", 0, {"/livez": lambda: Answer(200, b"ok\n")}) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert (await ask(port, "/livez"))[0] == 0
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), 10.0) == b""
            writer.close()
        assert (await ask(port, "/livez"))[0] == 200


async def test_a_port_that_is_taken_is_said_so() -> None:
    """With what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}.*--health-port"):
            async with serving("127.0.0.1", port, {}):
                pass
