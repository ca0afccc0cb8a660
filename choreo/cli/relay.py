"""`choreo relay`: moves an application's outbox to the log until it is told to stop."""

import asyncio
import logging
from typing import Annotated

import typer

from choreo.cli import logs
from choreo.cli.console import FAILED, Broker, HealthHost, HealthPort, exit_code, reported
from choreo.cli.run import LogJson, LogLevel, checked_level, stop_on_signals, until_stopped
from choreo.errors import ChoreoError
from choreo.outbox.relay import Relay, RelaySettings
from choreo.outbox.table import TABLE, OutboxTable
from choreo.runtime.unsaid import unsaid

log = logging.getLogger("choreo.relay")


@reported
def relay(
    database: Annotated[
        str, typer.Option(envvar="CHOREO_DATABASE", help="The application's: postgresql://... or sqlite:PATH.")
    ],
    broker: Broker,
    schema: Annotated[str | None, typer.Option(help="The outbox's schema, as Outbox(schema=) has it.")] = None,
    table: Annotated[str, typer.Option(help="Its table, as Outbox(table=) has it.")] = TABLE,
    name: Annotated[str, typer.Option(help="service.name of its spans and metrics.")] = "relay",
    poll_s: Annotated[float, typer.Option(min=0.01, max=10.0, help="How often to look where nobody notifies.")] = 1.0,
    drain_s: Annotated[float, typer.Option(min=0.0, help="Seconds to finish what is being sent.")] = 20.0,
    log_json: LogJson = False,
    log_level: LogLevel = "info",
    health_port: HealthPort = None,
    health_host: HealthHost = "127.0.0.1",
) -> None:
    """Move an application's outbox to the log until SIGTERM or SIGINT. Of several relays one sends at a time."""
    logs.configure(as_json=log_json, level=checked_level(log_level))
    settings = RelaySettings(
        database,
        broker,
        OutboxTable(schema, table),
        name=name,
        poll_s=poll_s,
        drain_s=drain_s,
        health_host=health_host,
        health_port=health_port,
    )
    try:
        asyncio.run(_relay(settings))
    except ChoreoError as error:
        log.error("%s", error)
        raise typer.Exit(exit_code(error)) from None
    except Exception as error:
        log.error("stopped by an error", exc_info=unsaid(error))
        raise typer.Exit(FAILED) from None


async def _relay(settings: RelaySettings) -> None:
    stop = stop_on_signals()
    async with Relay(settings).running() as relay:
        log.info("ready")
        await until_stopped(stop, relay.failed())
    log.info("drained")
