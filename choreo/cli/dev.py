"""`choreo dev`: a whole app in one process on the embedded broker, started again when its code changes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from choreo.app import App
from choreo.cli import logs
from choreo.cli.console import Store, Target, embedded_path, err, load_app, reported
from choreo.cli.run import serve, stop_on_signals
from choreo.errors import ConfigurationError

POLL_S = 0.5
STOP_S = 10.0
_PASSED_OVER = {".git", ".venv", "venv", "node_modules", "__pycache__", ".choreo"}


@reported
def dev(
    target: Target,
    broker: Annotated[str, typer.Option(envvar="CHOREO_BROKER", help="embedded:PATH.")] = "embedded:.choreo/dev.db",
    store: Store = None,
    reload: Annotated[bool, typer.Option(help="Start again when a *.py below this folder changes.")] = True,
) -> None:
    """Run every service of an app here, on a broker in a file; topics and the store's schema are created."""
    if not broker.startswith("embedded:"):
        raise ConfigurationError(f"choreo dev runs on an embedded broker, not on {broker}; use `choreo run` for that")
    if reload and embedded_path(broker) is None:
        raise ConfigurationError("a broker in memory forgets everything at a reload; add --no-reload")
    if reload:
        raise typer.Exit(
            _supervise([sys.executable, "-m", "choreo", "dev", target, "--broker", broker, "--no-reload"], store)
        )
    logs.configure(as_json=False)
    asyncio.run(_run(load_app(target), target, broker, store))


async def _run(app: App, target: str, broker: str, store: str | None) -> None:
    stop = stop_on_signals()

    def ready() -> None:
        console = err()
        for name in app.services:
            for bound in app.bound(name):
                types = ", ".join(sorted({type_ for type_, _ in bound.classes}))
                emits = ", ".join(sorted({event.event_type for event in bound.emits})) or "nothing"
                console.print(f"[bold]{bound.handler.label}[/] handles {types}, emits {emits}", highlight=False)
        console.print(
            f"publish with: choreo publish {target} TYPE FIELD=VALUE ... --broker {broker}", highlight=False
        )

    settings = {"broker": broker, "store": store, "create_topics": True, "create_schema": True}
    await serve(app, None, stop, ready, drain_s=STOP_S / 2, **settings)


def _supervise(command: list[str], store: str | None) -> int:
    """Run the child again after each change, until we are told to stop; returns its exit code."""
    told: list[int] = []
    environment = {**os.environ, "PYTHONPATH": _path(), **({"CHOREO_STORE": store} if store else {})}
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
