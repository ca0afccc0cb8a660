"""One broker of a local Kafka: its folder, its ports, its process. Knows nothing of the others."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from deploy.kafka.jars import KafkaError, java, tail

READY_S = 90.0
# A start is mostly class loading: the first compiler tier and the smallest collector make it quickest.
JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true")
STARTED = "Kafka Server started"
LOG4J = """\
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1} %m%n
# INFO only here: this logger tells that the server has started.
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
"""


class PortTaken(KafkaError):
    """Another process took a port between choosing it and binding it."""


def free(port: int) -> bool:
    """Whether `port` can be bound on 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Kafka binds: TIME_WAIT is no obstacle
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def free_ports(count: int) -> list[int]:
    """Distinct ports that are free now."""
    # Below the ephemeral ranges of Linux and macOS: else a client that reconnects while its broker is down can
    # be given the broker's own port as its source port, and the broker cannot come back.
    return list(itertools.islice(filter(free, random.sample(range(20_000, 32_000), 12_000)), count))


def command_of(pid: int) -> str:
    """The command line of a live process, a space around each word; empty for a dead one or a zombie."""
    if Path("/proc/self/cmdline").exists():
        with suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            return f" {' '.join(words)} " if any(words) else ""
        return ""
    shown = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
    return f" {shown.stdout.strip()} " if shown.stdout.strip() else ""


class Node:
    """A broker and controller in one process, started for `folder` and recognised by that."""

    def __init__(self, data: Path, number: int) -> None:
        self.number = number
        self.folder = data / f"node-{number}"
        self.properties = self.folder / "server.properties"
        self.log = self.folder / "server.log"
        self._pid_file = self.folder / "pid"
        # Stands in the process's own command line, so a recycled pid is never taken for this broker.
        self._marker = f"-Dchoreo.kafka.node={self.folder}"
        self._child: int | None = None

    def _recorded(self) -> int | None:
        with suppress(FileNotFoundError, ValueError):
            return int(self._pid_file.read_text())
        return None

    def pid(self) -> int | None:
        """The pid of the running broker, or None."""
        if self._child is not None:
            # Our own child, so its pid cannot be another's until it is reaped here. Its command line would not
            # do: it is empty for a moment after the spawn, and again while a killed process winds up.
            with suppress(ChildProcessError):
                if os.waitpid(self._child, os.WNOHANG) == (0, 0):
                    return self._child
            self._child = None
        pid = self._recorded()
        command = command_of(pid) if pid else ""
        return pid if f" {self._marker} " in command and " kafka.Kafka " in command else None

    def check_pid(self) -> None:
        """Raise if the pid file names a live process that is not this broker."""
        recorded = self._recorded()
        command = command_of(recorded).strip() if recorded else ""
        if command and self.pid() is None:
            raise KafkaError(
                f"node {self.number}: pid {recorded} is not the Kafka started for {self.folder}, but: {command}; "
                f"it was left alone; if that Kafka is gone, remove {self._pid_file}"
            )

    def port(self) -> int | None:
        """The port clients use, as last configured."""
        with suppress(FileNotFoundError):
            found = re.search(r"^listeners=PLAINTEXT://127\.0\.0\.1:(\d+)", self.properties.read_text(), re.M)
            return int(found[1]) if found else None
        return None

    def configure(self, settings: Mapping[str, object]) -> None:
        """Write server.properties; `settings` may replace any of it."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        lines = {"node.id": self.number, "log.dirs": self.folder / "data", **settings}
        # json.dumps escapes just what a Java properties file wants escaped: backslashes and all beyond ASCII.
        self.properties.write_text("".join(f"{k}={json.dumps(str(v))[1:-1]}\n" for k, v in lines.items()))
        (self.folder / "log4j2.properties").write_text(LOG4J)

    def _java(self, libs: Path, *words: str) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return [java(), *JVM, log4j, *words[:-1], "-cp", f"{libs}/*", words[-1]]

    def format(self, libs: Path, cluster_id: str) -> None:
        """Prepare the storage, once: meta.properties is the last file that the tool writes."""
        if (self.folder / "data" / "meta.properties").exists():
            return
        command = self._java(libs, "-Xmx128M", "kafka.tools.StorageTool")
        words = ["format", "--cluster-id", cluster_id, "--config", str(self.properties), "--ignore-formatted"]
        done = subprocess.run([*command, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            old = "UnsupportedClassVersionError" in done.stderr
            step = "install Java 17 or newer" if old else f"correct {self.properties} by --property, or its folder"
            raise KafkaError(
                f"node {self.number}: the storage could not be formatted:\n{tail(done.stdout + done.stderr)}\n{step}"
            )

    def spawn(self, libs: Path, heap: Iterable[str]) -> None:
        """Start the broker in a session of its own, so that it outlives this process and its terminal."""
        with suppress(FileNotFoundError):
            self.log.rename(self.log.with_suffix(".log.1"))  # `ready` must not read the last start's log
        crash = f"-XX:ErrorFile={self.folder / 'hs_err.log'}"
        command = [*self._java(libs, *heap, crash, self._marker, "kafka.Kafka"), str(self.properties)]
        # Not Popen: its object would have to live as long as the broker, which may outlive this process.
        self._child = os.posix_spawn(
            command[0],
            command,
            os.environ,
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        self._pid_file.write_text(f"{self._child}\n")

    def ready(self) -> bool:
        """Whether the broker has said that it started and its port answers."""
        port = self.port()
        if port is None or self.pid() is None or STARTED not in self._logged():
            return False
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    def wait_ready(self) -> None:
        """Return when clients can be served; raise as soon as they never will be."""
        deadline = time.monotonic() + READY_S
        while not self.ready():
            if self.pid() is None:
                raise self._died()
            if time.monotonic() > deadline:
                raise KafkaError(
                    f"node {self.number}: not ready after {READY_S:.0f} s; last lines of {self.log}:\n"
                    f"{tail(self._logged())}\nis the machine overloaded, or a majority of the nodes down?"
                )
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Signal the broker if it runs, and nothing else."""
        pid = self.pid()
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def forget(self) -> None:
        """Drop the pid file if its process has ended."""
        pid = self._recorded()
        if pid is None or not command_of(pid):
            self._pid_file.unlink(missing_ok=True)

    def _logged(self) -> str:
        with suppress(FileNotFoundError):
            return self.log.read_text(errors="replace")
        return ""

    def _died(self) -> KafkaError:
        text = self._logged()
        what = f"node {self.number}: the broker died while starting"
        if "Address already in use" in text:
            return PortTaken(f"{what}: another process has one of its ports; see {self.log}, free it and try again")
        return KafkaError(
            f"{what}; last lines of {self.log}:\n{tail(text)}\ncorrect what they name (--property, memory, disk)"
        )
