"""What the outbox tests share: an event, a schema of the test's own, the log, and relays as processes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

import psycopg

from choreo import Event
from choreo.opening import open_transport
from choreo.ports import TopicSpec, Transport
from choreo.record import Record

ROOT = Path(__file__).parents[2]


class Counted(Event, type="entry.counted", version=1, topic="entries", key="account"):
    """Entry number `number` of an account; `attempt` is unique to the transaction that wrote it."""

    account: str
    number: int
    attempt: str = ""


@contextmanager
def fresh_schema(url: str) -> Iterator[str]:
    """A schema of the test's own, dropped with it."""
    name = f"outbox_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        try:
            yield name
        finally:
            connection.execute(f"DROP SCHEMA {name} CASCADE")


@contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """URL of a database of the test's own on that server, dropped with it: for tables in the default schema."""
    name = f"own_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield f"{url.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@asynccontextmanager
async def log_at(broker: str, *topics: str, partitions: int = 3) -> AsyncIterator[Transport]:
    """A log that has the topics."""
    transport = open_transport(broker)
    await transport.open()
    try:
        await transport.create_topics([TopicSpec(name, partitions) for name in topics])
        yield transport
    finally:
        await transport.close()


async def logged(transport: Transport, topic: str) -> list[Record]:
    """Its records in the order of their partitions."""
    return sorted(await transport.scan([topic], since_ms=0), key=lambda each: each[:3])


def counted(records: Sequence[Record]) -> list[Counted]:
    """The events of records."""
    return [Counted.from_payload(each.value or b"") for each in records]


async def until(true: Callable[[], object], *, within_s: float = 60.0) -> None:
    """Return when it is; it may block for a moment."""
    until_s = time.monotonic() + within_s
    while not await asyncio.to_thread(true):
        assert time.monotonic() < until_s, "it never came true"
        await asyncio.sleep(0.02)


class Process:
    """A process that a test may kill and start again.

    Args:
        folder: For its log, `<name>.log`.
        command: Of Python: a module and its arguments.
        environment: Added to what the tests have, without what that says of choreo and tracing.
    """

    def __init__(self, folder: Path, name: str, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self.log = folder / f"{name}.log"
        self._command = command
        given = {name: text for name, text in os.environ.items() if not name.startswith(("CHOREO_", "OTEL_"))}
        self._environment = {**given, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] = self.log.open("ab")
        self._began = 0

    def start(self) -> None:
        """Start it."""
        self._began = self.log.stat().st_size
        command = [sys.executable, "-m", *self._command]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, stdout=self._output, stderr=self._output
        )

    def has_said(self, text: str) -> bool:
        """Whether it has, since it was started."""
        return text in self.log.read_text()[self._began :]

    def said(self, text: str, *, within_s: float = 60.0) -> None:
        """Return when it has."""
        until_s = time.monotonic() + within_s
        while not self.has_said(text):
            assert time.monotonic() < until_s, f"never said {text!r}:\n{self.log.read_text()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """Without warning."""
        assert self._process is not None
        assert self._process.poll() is None, f"ended by itself:\n{self.log.read_text()}"
        self.close()
        self._output = self.log.open("ab")

    def stop(self) -> int:
        """As an orchestrator does; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def close(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._output.close()


def relay_process(folder: Path, name: str, *arguments: str) -> Process:
    """`choreo relay` as a process of its own."""
    return Process(folder, name, "choreo", "relay", *arguments)
