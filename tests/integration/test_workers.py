"""`choreo run --workers`: processes killed, hung and drained under one supervisor, on a real Kafka and on a file."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from deploy.kafka.node import free_ports

EVENTS = 90
MODULE = """
import os
import time
from choreo import App, Event, Service

class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    who: str

class Poured(Event, type="tea.poured", version=1, topic="pours", key="who"):
    who: str

kitchen = Service("kitchen")

@kitchen.handler(Asked)
def pour(asked: Asked) -> Poured:
    time.sleep(0.01)
    with open("handled", "a") as file:
        file.write(f"{os.getpid()} {asked.who}\\n")
    return Poured(who=asked.who)

app = App(kitchen)
"""


class Workers:
    """`choreo run --workers` in a folder, on a broker and a store."""

    def __init__(self, folder: Path, broker: str, store: str | None) -> None:
        self.folder = folder
        (folder / "tea_workers.py").write_text(MODULE)
        self.port = free_ports(1)[0]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "CHOREO_"))},
            "CHOREO_BROKER": broker,
            "CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000",
            "CHOREO_TOPIC_PREFIX": f"workers-{uuid4().hex[:8]}.",
            **({"CHOREO_STORE": store} if store else {}),
        }

    def choreo(self, *arguments: str) -> str:
        """A command that ends well."""
        command = [sys.executable, "-m", "choreo", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, workers: int) -> Iterator["subprocess.Popen[bytes]"]:
        """Until the block ends; no process is left behind."""
        command = [sys.executable, "-m", "choreo", "run", "tea_workers:app", "--workers", str(workers)]
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(
                [*command, "--health-port", str(self.port)],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            for pid in [process.pid, *(pid for pid in self.pids().values() if alive(pid))]:
                if pid != process.pid or process.poll() is None:
                    os.kill(pid, signal.SIGKILL)
            process.wait(10)

    @property
    def log(self) -> str:
        """All that was said."""
        return (self.folder / "log").read_text()

    def pids(self) -> dict[int, int]:
        """The latest process of each worker, by number."""
        found = re.findall(r"worker (\d+) runs as pid (\d+)", self.log)
        return {int(number): int(pid) for number, pid in found}

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body of the supervisor's answer; 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def until(self, true: Callable[[], bool], what: str, within_s: float = 40.0) -> None:
        """Wait for it."""
        until_s = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < until_s, f"not {what}: {self.ask('/readyz')}\n{self.log[-4000:]}"
            time.sleep(0.05)

    def ready(self) -> None:
        """Wait until all workers are in their group."""
        self.until(lambda: self.ask("/readyz")[0] == 200, "ready")

    def handled(self) -> list[tuple[int, str]]:
        """By whom, and whose."""
        file = self.folder / "handled"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(pid), who) for pid, who in (line.split() for line in lines)]

    def publish(self, numbers: range) -> None:
        """Events, each of a key of its own."""
        lines = "".join(json.dumps({"who": f"guest-{number}"}) + "\n" for number in numbers)
        (self.folder / "asked.jsonl").write_text(lines)
        self.choreo("publish", "tea_workers:app", "tea.asked", "--file", "asked.jsonl")


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_comes_back_and_all_drain(kafka: str, tmp_path: Path) -> None:
    """On a real Kafka: the rest go on meanwhile, nothing is lost, SIGTERM drains all and exits 0."""
    run = Workers(tmp_path, f"kafka://{kafka}", f"sqlite:{tmp_path}/store.db")
    run.choreo("topics", "apply", "tea_workers:app", "--partitions", "6")
    with run.running(workers=3) as supervisor:
        run.ready()
        first = run.pids()
        assert len(first) == 3
        run.publish(range(EVENTS))
        run.until(lambda: len({pid for pid, _ in run.handled()}) == 3, "all at work")
        os.kill(first[2], signal.SIGKILL)
        run.until(lambda: run.ask("/readyz")[0] == 503, "said to be short of one")
        assert run.ask("/livez")[0] == 200, "no reason to end the others"
        run.publish(range(EVENTS, 2 * EVENTS))
        run.until(lambda: run.pids()[2] != first[2], "started again")
        run.ready()
        second = run.pids()
        run.publish(range(2 * EVENTS, 3 * EVENTS))
        whole = {f"guest-{number}" for number in range(3 * EVENTS)}
        run.until(lambda: {who for _, who in run.handled()} == whole, "all handled")
        since = {pid for pid, who in run.handled() if int(who.removeprefix("guest-")) >= EVENTS}
        assert since == set(second.values()), "the others, and the new one"
        assert {number: second[number] for number in (1, 3)} == {number: first[number] for number in (1, 3)}
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(40) == 0, run.log
    assert not [pid for pid in second.values() if alive(pid)]
    assert run.log.count("choreo.run: drained") == 4, "three workers and their supervisor"
    assert f"worker 2 (pid {first[2]}) ended by SIGKILL; started again in 0.5 s" in run.log


def test_a_worker_that_hangs_is_said_to_and_none_outlives_its_supervisor(tmp_path: Path) -> None:
    """Not alive, by name; a port for each worker's own metrics. A killed supervisor tells nobody: they notice."""
    run = Workers(tmp_path, "embedded:tea.db", None)
    run.choreo("topics", "apply", "tea_workers:app")
    with run.running(workers=2) as supervisor:
        run.ready()
        os.kill(run.pids()[1], signal.SIGSTOP)
        run.until(lambda: run.ask("/livez") == (503, "worker 1: does not answer\n"), "missed")
        assert run.ask("/readyz")[0] == 503
        os.kill(run.pids()[1], signal.SIGCONT)
        run.until(lambda: run.ask("/livez")[0] == run.ask("/readyz")[0] == 200, "well again")
        for number in (1, 2):
            url = f"http://127.0.0.1:{run.port + number}/metrics"
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert b"choreo_handlers_limit" in answer.read()
        supervisor.kill()
        supervisor.wait(10)
        run.until(lambda: not any(alive(pid) for pid in run.pids().values()), "gone")
    assert run.log.count("choreo.run: drained") == 2


def test_what_cannot_run_as_configured_is_not_tried_again(tmp_path: Path) -> None:
    """Without its topics: exit code 2, once."""
    run = Workers(tmp_path, "embedded:tea.db", None)
    with run.running(workers=2) as supervisor:
        assert supervisor.wait(40) == 2
    assert "topics do not exist" in run.log
    assert "started again" not in run.log


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--broker", "embedded::memory:"), "of one process"),
        (("--broker", "embedded:x.db", "--health-port", "0"), "give another"),
        (("--broker", "embedded:x.db", "--health-port", "65534"), "give another"),
    ],
)
def test_what_several_cannot_share_is_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Before anything is started."""
    run = Workers(tmp_path, "embedded:tea.db", None)
    command = [sys.executable, "-m", "choreo", "run", "tea_workers:app", "--workers", "2", *arguments]
    done = subprocess.run(command, cwd=run.folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
