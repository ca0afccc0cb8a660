"""`choreo dev`: a whole app in one process on the embedded broker, started again when its code changes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from choreo.app import App
from choreo.cli import logs
from choreo.cli.console import (
    HealthHost,
    HealthPort,
    SplitAfter,
    Store,
    Target,
    TraceMode,
    embedded_path,
    err,
    load_app,
    reported,
    seconds,
)
from choreo.cli.run import serve, stop_on_signals
from choreo.errors import ConfigurationError
from choreo.runtime.unsaid import say_words

POLL_S = 0.5
STOP_S = 10.0
_PASSED_OVER = {".git", ".venv", "venv", "node_modules", "__pycache__", ".choreo"}


@reported
def dev(
    target: Target,
    broker: Annotated[str, typer.Option(envvar="CHOREO_BROKER", help="embedded:PATH.")] = "embedded:.choreo/dev.db",
    store: Store = None,
    reload: Annotated[bool, typer.Option(help="Start again when a *.py below this folder changes.")] = True,
    trace_mode: TraceMode = "parent",
    trace_split_after: SplitAfter = "1h",
    health_port: HealthPort = None,
    health_host: HealthHost = "127.0.0.1",
) -> None:
    """Run every service of an app here, on a broker in a file; topics and the store's schema are created."""
    if not broker.startswith("embedded:"):
        raise ConfigurationError(f"choreo dev runs on an embedded broker, not on {broker}; use `choreo run` for that")
    if reload and embedded_path(broker) is None:
        raise ConfigurationError("a broker in memory forgets everything at a reload; add --no-reload")
    if reload:
        told = {
            "CHOREO_STORE": store,
            "CHOREO_TRACE_MODE": trace_mode,
            "CHOREO_TRACE_SPLIT_AFTER": trace_split_after,
            "CHOREO_HEALTH_PORT": None if health_port is None else str(health_port),
            "CHOREO_HEALTH_HOST": health_host,
        }
        command = [sys.executable, "-m", "choreo", "dev", target, "--broker", broker, "--no-reload"]
        raise typer.Exit(_supervise(command, {name: text for name, text in told.items() if text}))
    logs.configure(as_json=False)
    say_words()
    settings = {
        "broker": broker,
        "store": store,
        "trace_mode": trace_mode,
        "trace_split_after_s": seconds(trace_split_after),
        "health_port": health_port,
        "health_host": health_host,
    }
    asyncio.run(_run(load_app(target), target, settings))


async def _run(app: App, target: str, settings: dict[str, Any]) -> None:
    stop = stop_on_signals()

    def ready() -> None:
        console = err()
        for name in app.services:
            for bound in app.bound(name):
                types = ", ".join(sorted({type_ for type_, _ in bound.classes}))
                emits = ", ".join(sorted({event.event_type for event in bound.emits})) or "nothing"
                console.print(f"[bold]{bound.handler.label}[/] handles {types}, emits {emits}", highlight=False)
        console.print(
            f"publish with: choreo publish {target} TYPE FIELD=VALUE ... --broker {settings['broker']}",
            highlight=False,
        )

    creates = {"create_topics": True, "create_replay_topics": True, "create_schema": True}
    await serve(app, None, stop, ready, drain_s=STOP_S / 2, **creates, **settings)


def _supervise(command: list[str], settings: dict[str, str]) -> int:
    """Run the child again after each change, until we are told to stop; returns its exit code."""
    told: list[int] = []
    environment = {**os.environ, "PYTHONPATH": _path(), **settings}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: told.append(got))
    seen = changed_files(Path.cwd())
    child = subprocess.Popen(command, env=environment)
    failed = False
    while not told:
        time.sleep(POLL_S)
        now = changed_files(Path.cwd())
        if now != seen:
            names = sorted(name for name in seen.keys() | now.keys() if seen.get(name) != now.get(name))
            err().print(f"{names[0]} changed, starting again", highlight=False, markup=False)
            seen, failed = now, False
            _stop(child)
            child = subprocess.Popen(command, env=environment)
        elif not failed and child.poll() is not None:
            failed = True
            err().print("stopped; waiting for a change", highlight=False)
    return _stop(child)


def changed_files(folder: Path) -> dict[str, int]:
    """Times of change of the *.py files below `folder`, but for those of environments and caches."""
    found: dict[str, int] = {}
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _PASSED_OVER]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(here, name)
                try:
                    found[os.path.relpath(path, folder)] = os.stat(path).st_mtime_ns
                except OSError:
                    continue  # deleted meanwhile
    return found


def _stop(child: "subprocess.Popen[bytes]") -> int:
    """SIGTERM, and SIGKILL for what does not drain."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
    return child.wait()


def _path() -> str:
    """The child finds choreo and the app where we did."""
    return os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
