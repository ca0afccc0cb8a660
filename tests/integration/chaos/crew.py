"""The services as processes: started, killed, frozen, doubled, drained."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
# A killed member is forgotten as soon as brokers allow, and not after 45 s.
QUICK_SESSIONS = {"CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000"}
TELLING = {"PYTHONFAULTHANDLER": "1"}
"""Where each thread was, if a C library crashes."""
DRAIN_S = 40.0


class Job(NamedTuple):
    """One service: what `choreo run` is told."""

    target: str
    service: str
    broker: str
    store: str


class Ended(NamedTuple):
    """A process that ended by itself: its service, exit code (a signal's number, negative) and last words."""

    service: str
    code: int
    said: str


class Crew:
    """A process for each job, named by its service, and copies of some of them.

    A process that ends by itself is started again by `mend`, as a supervisor would, and written down in `ended`.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.jobs = {job.service: job for job in jobs}
        self.ended: list[Ended] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, **QUICK_SESSIONS, **TELLING, "PYTHONPATH": str(ROOT), **environment}

    @property
    def names(self) -> list[str]:
        """Processes that should be running, copies among them."""
        return list(self._processes)

    @property
    def copies(self) -> list[str]:
        """Processes beyond one a service."""
        return [name for name in self._processes if name not in self.jobs]

    def start(self, name: str) -> None:
        """Start a process, `SERVICE` or `SERVICE+`; its log goes on where an earlier one of the name left it."""
        job = self.jobs[name.rstrip("+")]
        command = [sys.executable, "-m", "choreo", "run", job.target, "--service", job.service]
        command += ["--broker", job.broker, "--store", job.store]
        with open(self.folder / f"{name}.log", "ab") as said:
            self._processes[name] = subprocess.Popen(
                command, env=self._environment, cwd=self.folder, stdout=said, stderr=said
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signal one process."""
        self._processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """End one process as a crash would; `start` has it back."""
        process = self._processes.pop(name)
        process.kill()
        process.wait(10)

    async def drain(self, *names: str) -> None:
        """SIGTERM, and each must end well in time."""
        for name in names:
            self._processes[name].send_signal(signal.SIGTERM)
        for name in names:
            code = await asyncio.to_thread(self._processes.pop(name).wait, DRAIN_S)
            assert code == 0, f"{name} drained with {code}:\n{self.log(name)}"

    def mend(self) -> None:
        """Start again what has ended by itself."""
        for name, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                self.ended.append(Ended(name.rstrip("+"), code, self.log(name)))
                self.start(name)

    def end(self) -> None:
        """Leave no process behind."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()  # also one that is stopped
                process.wait(10)

    def starts(self, name: str) -> int:
        """How often a process of this name has said that it runs."""
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace").count("choreo.run: running") if log.exists() else 0

    def log(self, name: str) -> str:
        """The last lines a process of this name has said."""
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-25:])
