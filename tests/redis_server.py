"""Where tests find a Redis: a given one, else redis-server or valkey-server, else Docker; else a skip that says so.

Knows nothing of the tests. `LocalRedis` is also what tests use that have to kill, fill or slow a server of their own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.kafka.node import free_ports
from tests.kafka_server import Unavailable, docker_silence, unavailable

IMAGE = "redis:7.4-alpine"
BINARIES = ("redis-server", "valkey-server")
READY_S = 30


class LocalRedis:
    """A server on loopback, with an append-only file in a folder; started again it has what it had.

    Args:
        folder: Where its data and its log are.
        settings: Words of its command line, after those that are always given.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        binary = next(filter(None, map(shutil.which, BINARIES)), None)
        if binary is None:
            raise Unavailable(f"neither {' nor '.join(BINARIES)} is installed")
        words = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        words += ["--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "local"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*words, *self._settings], stdout=log, stderr=log)
        try:
            self._wait(time.monotonic() + READY_S)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL: what was not written is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def call(self, *words: str) -> bytes:
        """The answer to one command, a text or its first line, on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            sent = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{sent}".encode())
            with connection.makefile("rb") as answer:
                line = answer.readline().strip()
                return answer.read(int(line[1:])) if line.startswith(b"$") and line != b"$-1" else line

    def _wait(self, until_s: float) -> None:
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the Redis server ended: {(self._folder / 'log').read_text()[-2000:]}")
            try:
                if self.call("PING").startswith((b"+PONG", b"-NOAUTH")):
                    return
            except OSError:
                pass
            if time.monotonic() > until_s:
                raise RuntimeError(f"the Redis server did not answer within {READY_S} s")
            time.sleep(0.02)


class LocalCluster:
    """Primaries without replicas on loopback, the slots divided evenly between them."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.nodes: list[LocalRedis] = []
        self._bus_ports = free_ports(nodes)
        for number, bus_port in enumerate(self._bus_ports):
            own = folder / str(number)
            own.mkdir()
            self.nodes.append(LocalRedis(own, "--cluster-enabled", "yes", "--cluster-port", str(bus_port)))
        self.url = self.nodes[0].url

    def start(self) -> None:
        """Start the nodes, join them and wait until every one can serve every slot."""
        slots = 16384
        for number, node in enumerate(self.nodes):
            node.start()
            first, after = (slots * each // len(self.nodes) for each in (number, number + 1))
            node.call("CLUSTER", "ADDSLOTSRANGE", str(first), str(after - 1))
            if number:
                ports = str(self.nodes[0].port), str(self._bus_ports[0])
                node.call("CLUSTER", "MEET", "127.0.0.1", *ports)
        until_s = time.monotonic() + READY_S
        while not all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in self.nodes):
            if time.monotonic() > until_s:
                raise RuntimeError(f"the Redis Cluster was not ready within {READY_S} s")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to every node."""
        for node in self.nodes:
            node.kill()


@contextmanager
def started(server: LocalRedis | LocalCluster) -> Iterator[None]:
    """The server runs within the block; without a binary the test is skipped."""
    try:
        server.start()
        yield
    except Unavailable as error:
        unavailable(str(error))
    finally:
        server.kill()


def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a running Redis and stop it afterwards, unless it was given."""
    given = os.environ.get("REDIS_URL")
    if given:
        yield given
        return
    reasons = []
    for way in (local_redis, docker_redis):
        with ExitStack() as stack:
            try:
                url = stack.enter_context(way(tmp_path_factory))
            except Unavailable as error:
                reasons.append(str(error))
                continue
            yield url
            return
    unavailable(
        "no Redis to test with: set REDIS_URL, or install redis-server or valkey-server, or start Docker; "
        + "; ".join(reasons)
    )


@contextmanager
def local_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this machine's own package."""
    server = LocalRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


@contextmanager
def docker_redis(_: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis in a container, if a Docker daemon answers and has or gets the image."""
    try:
        from docker.errors import APIError  # type: ignore[import-untyped]
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.wait_strategies import LogMessageWaitStrategy
    except ImportError as error:
        raise Unavailable(f"Docker: {error}; pip install testcontainers") from error
    reason = docker_silence()
    if reason:
        raise Unavailable(f"Docker: no daemon answers ({reason})")
    (port,) = free_ports(1)
    container = DockerContainer(IMAGE).with_command("redis-server --appendonly yes")
    # with_bind_ports would listen on every interface; docker-py takes an address too, testcontainers' type does not
    container.ports["6379"] = ("127.0.0.1", port)  # type: ignore[assignment]
    container.waiting_for(LogMessageWaitStrategy("Ready to accept connections").with_startup_timeout(READY_S))
    try:
        try:
            container.start()
        except APIError as error:  # no registry in reach, for one
            raise Unavailable(f"Docker: {IMAGE}: {error.explanation}") from error
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        container.stop()
