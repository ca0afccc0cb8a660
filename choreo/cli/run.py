"""`choreo run`: services of an app, in one process or in several, until they are told to stop."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any

import typer

from choreo.app import App
from choreo.cli import logs
from choreo.cli.console import (
    FAILED,
    Broker,
    HealthHost,
    HealthPort,
    SplitAfter,
    Store,
    Target,
    TraceMode,
    exit_code,
    load_app,
    reported,
    seconds,
)
from choreo.cli.supervising import WORKERS_MAX, Supervisor
from choreo.errors import ChoreoError, ConfigurationError
from choreo.runtime.collector import collecting_less
from choreo.runtime.unsaid import unsaid

log = logging.getLogger("choreo.run")

LogJson = Annotated[bool, typer.Option(help="Logs as JSON lines.")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]


@reported
def run(
    target: Target,
    broker: Broker,
    service: Annotated[
        list[str] | None, typer.Option(help="A service to run, again for more; all unless given.")
    ] = None,
    store: Store = None,
    drain_s: Annotated[float, typer.Option(min=0.0, help="Seconds to finish what is running.")] = 20.0,
    key_ttl: Annotated[str, typer.Option(help="How long, in log time, a duplicate may come after the first.")] = "7d",
    log_json: LogJson = False,
    log_level: LogLevel = "info",
    trace_mode: TraceMode = "parent",
    trace_split_after: SplitAfter = "1h",
    health_port: HealthPort = None,
    health_host: HealthHost = "127.0.0.1",
    workers: Annotated[
        int, typer.Option(min=1, max=WORKERS_MAX, help="Processes; one that dies is started again, within limits.")
    ] = 1,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Run services until SIGTERM or SIGINT, then drain: exit 0 drained, 1 failed. A second signal exits at once."""
    logs.configure(as_json=log_json, level=checked_level(log_level))
    app = load_app(target)
    wanted = list(dict.fromkeys(service or app.services))
    if unknown := [name for name in wanted if name not in app.services]:
        raise ConfigurationError(f"{target} has no service {', '.join(unknown)}; it has {', '.join(app.services)}")
    settings = {
        "broker": broker,
        "store": store,
        "drain_s": drain_s,
        "key_ttl_s": seconds(key_ttl),
        "trace_mode": trace_mode,
        "trace_split_after_s": seconds(trace_split_after),
        "health_port": health_port,
        "health_host": health_host,
    }
    if workers > 1:
        told = ["--key-ttl", key_ttl, "--trace-split-after", trace_split_after, "--log-level", log_level]
        told += ["--log-json"] if log_json else []
        running = _supervise(_supervisor(target, wanted, workers, told, settings))
    else:
        running = _run(app, wanted, supervised, **settings)
    try:
        code = asyncio.run(running)
    except ChoreoError as error:
        log.error("%s", error)
        raise typer.Exit(exit_code(error)) from None
    except Exception as error:
        log.error("stopped by an error", exc_info=unsaid(error))
        raise typer.Exit(FAILED) from None
    raise typer.Exit(code)


async def _run(app: App, services: Sequence[str], supervised: bool, **settings: Any) -> int:
    stop = stop_on_signals()
    running = ", ".join(services)
    if supervised:
        _stop_when_alone(stop)

    def ready() -> None:
        log.info("running %s on %s", running, settings["broker"])

    await serve(app, services, stop, ready, **settings)
    log.info("drained")
    return 0


def _supervisor(
    target: str, services: Sequence[str], workers: int, told: Sequence[str], settings: Mapping[str, Any]
) -> Supervisor:
    """Of workers that are told what we were told; URLs go by the environment, as they may hold passwords."""
    broker, store, port, drain_s = (settings[name] for name in ("broker", "store", "health_port", "drain_s"))
    if broker == "embedded::memory:":
        raise ConfigurationError("--workers: a broker in memory is of one process; give embedded:PATH or kafka://...")
    if port is not None and not 0 < port <= 65_535 - workers:
        raise ConfigurationError(
            f"--health-port {port} with --workers {workers}: workers have the {workers} ports after it; give another"
        )
    command = [sys.executable, "-m", "choreo", "run", target, "--supervised", "--workers", "1", *told]
    command += ["--drain-s", str(drain_s), "--trace-mode", settings["trace_mode"]]
    command += [part for service in services for part in ("--service", service)]
    urls = {"CHOREO_BROKER": broker, "CHOREO_STORE": store}
    environment = {**os.environ, **{name: url for name, url in urls.items() if url is not None}}
    health = None if port is None else (settings["health_host"], port)
    return Supervisor(command, environment, workers=workers, drain_s=drain_s, health=health)


async def _supervise(supervisor: Supervisor) -> int:
    stop = stop_on_signals(supervisor.kill)
    log.info("running %d workers", len(supervisor.slots))
    code = await supervisor.run(stop)
    if code == 0:
        log.info("drained")
    return code


async def serve(
    app: App,
    services: Sequence[str] | None,
    stop: asyncio.Event,
    ready: Callable[[], None],
    **settings: Any,
) -> None:
    """Run until `stop`, or until a worker died, whose error is raised after the others have drained."""
    async with collecting_less(), app.running(services, share_tracer=True, **settings) as running:
        ready()
        await until_stopped(stop, running.failed())


async def until_stopped(stop: asyncio.Event, failed: Coroutine[Any, Any, None]) -> None:
    """Return when `stop` is set; raise what `failed` raises."""
    tasks = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(failed)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def checked_level(level: str) -> str:
    """A level of `--log-level`.

    Raises:
        ConfigurationError: It is none.
    """
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigurationError(f"--log-level {level}: there is debug, info, warning and error")
    return level


def stop_on_signals(at_once: Callable[[], None] = lambda: None) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; the second signal calls `at_once` and ends the process."""
    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set():
            at_once()
            os._exit(FAILED)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, told)
        except NotImplementedError:  # loops of Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(told))
    return stop


def _stop_when_alone(stop: asyncio.Event) -> None:
    """Set `stop` when the supervisor is gone: its end of our standard input is closed then."""
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()

    def gone() -> None:
        if not os.read(fd, 1):
            loop.remove_reader(fd)
            stop.set()

    loop.add_reader(fd, gone)
