"""The command `choreo`: one module a command, and nothing here that belongs below."""

import typer

from choreo.cli.check import check as run_check
from choreo.cli.demo import demo as run_demo
from choreo.cli.dev import dev as run_dev
from choreo.cli.dlq import dlq as dlq_commands
from choreo.cli.drift import drift as run_drift
from choreo.cli.explain import explain as run_explain
from choreo.cli.export import export as run_export
from choreo.cli.graph import graph as run_graph
from choreo.cli.instances import instances as instance_commands
from choreo.cli.new import new as run_new
from choreo.cli.parked import parked, release, skip
from choreo.cli.publish import publish as run_publish
from choreo.cli.relay import relay as run_relay
from choreo.cli.replay import replay as run_replay
from choreo.cli.run import run as run_services
from choreo.cli.schemas import schemas as schema_commands
from choreo.cli.simulate import simulate as run_simulation
from choreo.cli.store import store as store_commands
from choreo.cli.topics import topics as topic_commands
from choreo.cli.trace import trace as run_trace

__all__ = ["main"]

main = typer.Typer(
    name="choreo",
    help="Choreography over Kafka: idempotent services, atomic emits and one causal trace.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _command in (
    run_demo,
    run_new,
    run_dev,
    run_services,
    run_publish,
    run_relay,
    run_trace,
    run_graph,
    run_check,
    run_export,
    run_drift,
    run_explain,
    run_replay,
    run_simulation,
):
    main.command()(_command)
main.add_typer(topic_commands, name="topics")
main.add_typer(store_commands, name="store")
main.add_typer(instance_commands, name="instances")
dlq_commands.command()(parked)
dlq_commands.command()(release)
dlq_commands.command()(skip)
main.add_typer(dlq_commands, name="dlq")
main.add_typer(schema_commands, name="schemas")
