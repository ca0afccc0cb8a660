"""A small HTTP endpoint for orchestrators and Prometheus: a few paths, GET and HEAD, one request a connection.

    GET /livez    200, or 503 and why, a line each
    GET /readyz   200, or 503 and why
    GET /metrics  Prometheus' text format, of its default registry

It runs on the event loop that it speaks for: where that hangs, nobody answers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import NamedTuple

from choreo.errors import ConfigurationError

REQUEST_BYTES_MAX = 8192
REQUEST_S_MAX = 5.0
CONNECTIONS_MAX = 16
_TEXT = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    type: str = _TEXT


Page = Callable[[], Answer]


def scrapable() -> bool:
    """Whether there is what Prometheus' text format is made by: the extra `prometheus`."""
    return find_spec("prometheus_client") is not None and find_spec("opentelemetry.exporter.prometheus") is not None


def verdict(reasons: Sequence[str]) -> Answer:
    """200 where there is nothing to say, else 503."""
    return Answer(503, "".join(f"{reason}\n" for reason in reasons).encode()) if reasons else Answer(200, b"ok\n")


def scrape() -> Answer:
    """All that is in Prometheus' default registry: choreo's metrics, the interpreter's, the application's."""
    if not scrapable():
        return Answer(501, b'needs a package that is not installed: pip install "choreo[prometheus]"\n')
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return Answer(200, generate_latest(), CONTENT_TYPE_LATEST)


@asynccontextmanager
async def serving(host: str, port: int, pages: Mapping[str, Page]) -> AsyncIterator[int]:
    """Serve `pages` by path until the block ends; yields the port, which the system chooses for 0.

    Raises:
        ConfigurationError: It cannot listen there.
    """
    open_: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_.add(writer)
        try:
            if len(open_) <= CONNECTIONS_MAX:
                async with asyncio.timeout(REQUEST_S_MAX):
                    await _answer(reader, writer, pages)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # who asks badly gets no answer
        finally:
            open_.discard(writer)
            writer.close()

    try:
        server = await asyncio.start_server(connected, host, port, limit=REQUEST_BYTES_MAX)
    except OSError as error:
        raise ConfigurationError(
            f"the health endpoint cannot listen on {host}:{port}: {error.strerror}; give another --health-port"
        ) from error
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in tuple(open_):
            writer.transport.abort()
        await server.wait_closed()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Mapping[str, Page]) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    page = pages.get(path)
    if method not in ("GET", "HEAD"):
        answer = Answer(405, b"GET it\n")
    elif page is None:
        answer = Answer(404, f"there is {', '.join(pages)}\n".encode())
    else:
        answer = page()
    lines = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        f"Content-Type: {answer.type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "Connection: close",
    )
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else answer.body))
    await writer.drain()
