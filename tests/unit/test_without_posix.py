"""What docs/compatibility.md says of Windows, as far as Linux can tell: without POSIX's modules and loop signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LACKING = """
import asyncio, importlib, pkgutil, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
def refuse(*_):
    raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = refuse
"""
IMPORTS = """
import choreo
left = []
for each in pkgutil.walk_packages(choreo.__path__, "choreo."):
    if each.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(each.name)
    except ImportError as error:
        left.append(each.name)
print(*left)
"""
RUN = "from choreo.cli import main; sys.argv = ['choreo', *sys.argv[1:]]; main()"


def test_all_but_the_relay_of_an_sqlite_outbox_can_be_imported() -> None:
    """That one locks its file by fcntl."""
    done = subprocess.run(
        [sys.executable, "-c", LACKING + IMPORTS], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["choreo.outbox.sqlite"]


def test_a_service_runs_and_is_stopped(tmp_path: Path) -> None:
    """On the embedded broker, by the signal that Ctrl-C sends there."""
    broker = f"embedded:{tmp_path / 'tea.db'}"
    words = ["handlers.enrichment.app:app", "--broker", broker]
    command = [sys.executable, "-c", LACKING + RUN]
    subprocess.run([*command, "topics", "apply", *words], cwd=ROOT, timeout=60, check=True, capture_output=True)
    log = tmp_path / "log"
    with log.open("w") as said:
        running = subprocess.Popen([*command, "run", *words], cwd=ROOT, stdout=said, stderr=said)
        try:
            until_s = time.monotonic() + 60
            while "running geo" not in log.read_text() and running.poll() is None and time.monotonic() < until_s:
                time.sleep(0.05)
            running.send_signal(signal.SIGINT)
            assert running.wait(30) == 0, log.read_text()
        finally:
            running.kill()
            running.wait()
    assert "drained" in log.read_text()
