"""The command `choreo`: one module a command, and nothing here that belongs below."""

import typer

from choreo.cli import demo, dev, explain, publish, run, topics, trace

main = typer.Typer(
    name="choreo",
    help="Choreography over Kafka: idempotent services, atomic emits and one causal trace.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
main.command()(demo.demo)
main.command()(dev.dev)
main.command()(run.run)
main.command()(publish.publish)
main.command()(trace.trace)
main.command()(explain.explain)
main.add_typer(topics.topics, name="topics")
