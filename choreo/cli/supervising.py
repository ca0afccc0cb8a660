"""`choreo run --workers N`: processes that run the same services, started again when they die, drained together.

Each worker is a `choreo run --supervised`, with a pipe as its standard input. The pipe is at its end when the
supervisor is gone, however it went: then the worker drains, so that none is left behind.
"""

import asyncio
import logging
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from choreo.cli.console import FAILED, MISUSED
from choreo.telemetry import endpoint

log = logging.getLogger("choreo.workers")

WORKERS_MAX = 64
RESTARTS_MAX = 5
"""In a row; a worker that lived for `WELL_S` begins anew."""
WELL_S = 60.0
PAUSE_S, PAUSE_MAX_S = 0.5, 15.0
KILL_S = 10.0
"""Beyond the drain: closing connections, flushing telemetry."""
ASK_EVERY_S, ASK_S = 0.5, 2.0
ANSWER_BYTES_MAX = 65_536
_SILENT = ("does not answer",)
_MEMBER = "CHOREO_KAFKA_GROUP_INSTANCE_ID"


@dataclass(slots=True)
class Restarts:
    """Whether a worker that died is started again, and after how long: a policy without a clock."""

    in_a_row: int = 0

    def pause_s(self, lived_s: float) -> float | None:
        """How long to wait after one that lived so long; None: not again."""
        if lived_s >= WELL_S:
            self.in_a_row = 0
        self.in_a_row += 1
        if self.in_a_row > RESTARTS_MAX:
            return None
        return min(PAUSE_S * 2.0 ** (self.in_a_row - 1), PAUSE_MAX_S)


@dataclass(slots=True)
class Slot:
    """One worker's place, its number from 1: the process in it, and what it last said of itself."""

    number: int
    health_port: int | None
    process: Process | None = None
    heard: Process | None = None
    """The process, once it has answered: until then it is starting."""
    not_ready: Sequence[str] = ("not started yet",)
    not_alive: Sequence[str] = ()
    restarts: Restarts = field(default_factory=Restarts)


class Supervisor:
    """Keeps so many workers running until told to stop.

    Args:
        command: The worker's command line, but for its health endpoint.
        environment: Of every worker.
        workers: How many, >= 1.
        drain_s: A worker's own limit; it is killed `KILL_S` after it.
        health: Host and port of the supervisor's own endpoint; workers have the ports after it, on the same host.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        workers: int,
        drain_s: float,
        health: tuple[str, int] | None,
    ) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._drain_s, self._health = drain_s, health
        ports = [None if health is None else health[1] + number for number in range(1, workers + 1)]
        self.slots = [Slot(number, port) for number, port in enumerate(ports, start=1)]
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> int:
        """Run until `stop`, or until a worker cannot be kept running; drain all; the exit code of the command."""
        async with self._serving(), self._asking():
            keeping = [asyncio.create_task(self._keep(slot)) for slot in self.slots]
            told = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([told, *keeping], return_when=asyncio.FIRST_COMPLETED)
            finally:
                told.cancel()
                codes = await self._drain(keeping)
        return max(codes)

    def kill(self) -> None:
        """SIGKILL to all, as a second signal asks for."""
        for slot in self.slots:
            if slot.process is not None and slot.process.returncode is None:
                _tell(slot.process, signal.SIGKILL)

    async def _keep(self, slot: Slot) -> int:
        """Start it, and again when it has ended, until it is not to be; the exit code for the whole command."""
        while True:
            began_s = time.monotonic()
            process = slot.process = await self._start(slot)
            code = await process.wait()
            slot.not_ready, slot.not_alive = ("ended",), ()
            if self._stopping:
                return _drained(slot, code)
            if code == MISUSED:
                log.error("worker %d (pid %d) cannot run as configured; stopping all", slot.number, process.pid)
                return MISUSED
            pause_s = slot.restarts.pause_s(time.monotonic() - began_s)
            if pause_s is None:
                times, how = RESTARTS_MAX + 1, _how(code)
                log.error("worker %d ended %d times in a row, at last %s; stopping all", slot.number, times, how)
                return FAILED
            who = f"worker {slot.number} (pid {process.pid})"
            log.warning("%s ended %s; started again in %.1f s", who, _how(code), pause_s)
            await asyncio.sleep(pause_s)

    async def _start(self, slot: Slot) -> Process:
        command = self._command
        if slot.health_port is not None and self._health is not None:
            command = [*command, "--health-host", self._health[0], "--health-port", str(slot.health_port)]
        environment = self._environment
        if member := environment.get(_MEMBER):
            environment = {**environment, _MEMBER: f"{member}-{slot.number}"}
        # A group of its own: Ctrl-C in a terminal is for the supervisor, which tells the workers, once.
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=PIPE, process_group=0)
        log.info("worker %d runs as pid %d", slot.number, process.pid)
        return process

    async def _drain(self, keeping: Sequence["asyncio.Task[int]"]) -> list[int]:
        """SIGTERM to all at once; SIGKILL to who does not end. Those that wait to be started are not."""
        self._stopping = True
        for slot, task in zip(self.slots, keeping, strict=True):
            if slot.process is None or slot.process.returncode is not None:
                task.cancel()  # in its pause, or not started
            else:
                _tell(slot.process, signal.SIGTERM)
        _, late = await asyncio.wait(keeping, timeout=self._drain_s + KILL_S)
        if late:
            log.error("%d workers did not drain in %.0f s; killed", len(late), self._drain_s + KILL_S)
            self.kill()
        done = await asyncio.gather(*keeping, return_exceptions=True)
        return [each if isinstance(each, int) else _code_of(each) for each in done]

    # ---- health

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """`/livez` and `/readyz` of all workers together; `/metrics` are at each worker's own port."""
        if self._health is None:
            yield
            return
        host, port = self._health
        pages = {
            "/livez": lambda: endpoint.verdict(self._said(lambda slot: slot.not_alive)),
            "/readyz": lambda: endpoint.verdict(self._said(lambda slot: slot.not_ready)),
        }
        async with endpoint.serving(host, port, pages):
            yield

    def _said(self, what: Callable[[Slot], Sequence[str]]) -> list[str]:
        return [f"worker {slot.number}: {reason}" for slot in self.slots for reason in what(slot)]

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Ask each worker all the while how it is."""
        asking = [asyncio.create_task(self._ask(slot)) for slot in self.slots if slot.health_port is not None]
        try:
            yield
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, slot: Slot) -> None:
        assert self._health is not None
        assert slot.health_port is not None
        host = asked_at(self._health[0])
        while True:
            process = slot.process
            if process is not None and process.returncode is None:
                ready = await _reasons(host, slot.health_port, "/readyz")
                alive = await _reasons(host, slot.health_port, "/livez")
                if slot.process is process and process.returncode is None:
                    slot.heard = process if ready is not None else slot.heard
                    slot.not_ready = _SILENT if ready is None else ready
                    # One that has never answered is starting, and one that has and does not is hanging.
                    slot.not_alive = (_SILENT if slot.heard is process else ()) if alive is None else alive
            await asyncio.sleep(ASK_EVERY_S)


def asked_at(host: str) -> str:
    """Where somebody who listens at `host` is asked: who listens everywhere, on loopback."""
    with suppress(ValueError):  # a name is no address
        if not host or ip_address(host).is_unspecified:
            return "::1" if ":" in host else "127.0.0.1"
    return host


async def _reasons(host: str, port: int, path: str) -> Sequence[str] | None:
    """What a worker says against itself; None if it says nothing in time."""
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: worker\r\n\r\n".encode())
                head, _, body = (await reader.read(ANSWER_BYTES_MAX)).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    status = head.split(b" ", 2)[1:2]
    return () if status == [b"200"] else tuple(body.decode(errors="replace").splitlines()) or _SILENT


def _tell(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _drained(slot: Slot, code: int) -> int:
    """The exit code of the command after a worker that was told to stop. SIGTERM ends one that is still importing."""
    if code in (0, -signal.SIGTERM):
        return 0
    log.error("worker %d ended %s while it drained", slot.number, _how(code))
    return FAILED


def _code_of(ended: BaseException) -> int:
    """After a task that has no code: cancelled in its pause, or it could not start a process."""
    if isinstance(ended, asyncio.CancelledError):
        return 0
    log.error("no worker could be started: %s", ended)
    return FAILED
