#!/usr/bin/env python3
"""A real Kafka without Docker: Kafka's own jars in KRaft mode, on 127.0.0.1 only, all data in one folder.

A script (`kafka.py start|stop|status|kill|restart --data DIR`) and a module (`LocalKafka`). The folder is the whole
state, so one process may stop what another started. README.md beside this file has the commands.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script or loaded by its path: the files beside this one are found from the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy.kafka.cluster import LocalKafka
from deploy.kafka.jars import KafkaError, Missing, jars, say

__all__ = ["KafkaError", "LocalKafka", "Missing", "jars", "main"]


def pair(text: str) -> tuple[str, str]:
    """One `k=v` of the command line."""
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not k=v, for example log.retention.ms=60000")
    return key.strip(), value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="kafka.py", description="A local Kafka without Docker, on 127.0.0.1 only.")
    commands = root.add_subparsers(dest="command", required=True)
    about = {
        "start": "start a Kafka and print its bootstrap servers; a folder's earlier data is kept",
        "stop": "stop every node and keep the data",
        "status": "what runs; exit code 0 if every node is ready, else 3",
        "kill": "end one node without warning, as a crash would",
        "restart": "start one node again, on its data and ports",
    }
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in about.items()}
    for one in made.values():
        one.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that holds everything")
    start = made["start"]
    start.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    start.add_argument("--port", type=int, nargs="+", default=[], metavar="N", help="one for each node")
    start.add_argument(
        "--property", type=pair, action="append", default=[], metavar="K=V", help="for server.properties"
    )
    made["status"].add_argument("--json", action="store_true")
    for name in ("kill", "restart"):
        made[name].add_argument("--node", type=int, required=True, metavar="N", help="counted from 1")
    return root


def show(kafka: LocalKafka, *, as_json: bool) -> int:
    """Print the state of every node; 0 if all are ready, else 3."""
    nodes = kafka.status()
    if as_json:
        print(json.dumps({"data": str(kafka.data), "nodes": nodes}))
    else:
        for node in nodes:
            print("node {node}: {state}, port {port}, pid {pid}".format(**node))
    return 0 if all(node["state"] == "ready" for node in nodes) else 3


def run(options: argparse.Namespace) -> int:
    """Do one command; the exit code."""
    if options.command == "start":
        kafka = LocalKafka(options.data, options.nodes, dict(options.property), options.port)
        kafka.start()
        print(kafka.bootstrap_servers, flush=True)
        return 0
    kafka = LocalKafka.found(options.data)
    if options.command == "status":
        return show(kafka, as_json=options.json)
    if options.command == "stop":
        kafka.stop()
    elif options.command == "kill":
        kafka.kill(options.node)
    else:
        kafka.restart(options.node)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The script: 0 done, 1 failed with a message on stderr, 2 wrong usage, 3 (`status`) not every node ready."""
    options = parser().parse_args(arguments)
    # An interrupted start must end its brokers too, and does so for an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(options)
    except KafkaError as error:
        say(str(error))
    except OSError as error:
        say(f"{options.data}: {error}; choose a folder that can be written to")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1


if __name__ == "__main__":
    sys.exit(main())
