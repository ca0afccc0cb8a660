"""`choreo run`: services of an app in one process until they are told to stop."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
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
from choreo.errors import ChoreoError, ConfigurationError
from choreo.runtime.collector import collect_less
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
    collect_less()
    try:
        asyncio.run(_run(app, wanted, **settings))
    except ChoreoError as error:
        log.error("%s", error)
        raise typer.Exit(exit_code(error)) from None
    except Exception as error:
        log.error("stopped by an error", exc_info=unsaid(error))
        raise typer.Exit(FAILED) from None


async def _run(app: App, services: Sequence[str], **settings: Any) -> None:
    stop = stop_on_signals()
    running = ", ".join(services)

    def ready() -> None:
        log.info("running %s on %s", running, settings["broker"])

    await serve(app, services, stop, ready, **settings)
    log.info("drained")


async def serve(
    app: App,
    services: Sequence[str] | None,
    stop: asyncio.Event,
    ready: Callable[[], None],
    **settings: Any,
) -> None:
    """Run until `stop`, or until a worker died, whose error is raised after the others have drained."""
    async with app.running(services, share_tracer=True, **settings) as running:
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


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; the second signal ends the process."""
    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set():
            os._exit(FAILED)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    return stop
