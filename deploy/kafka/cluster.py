"""A cluster of local brokers: which settings, which ports, started and stopped together."""

from __future__ import annotations

import base64
import hashlib
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from deploy.kafka.jars import KafkaError, jars, locked, say
from deploy.kafka.node import Node, PortTaken, free, free_ports

STOP_S = 15.0
ATTEMPTS_MAX = 5


def cluster_settings(nodes: int) -> dict[str, object]:
    """What every node of a cluster of this size has in its server.properties."""
    majority = nodes // 2 + 1
    internal = {"num.partitions": 3, "replication.factor": nodes, "min.isr": majority}
    return {
        "process.roles": "broker,controller",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "auto.create.topics.enable": "false",
        "default.replication.factor": nodes,
        # Without it acks=all is satisfied by one copy, and a test that kills a node would lose what was acked.
        "min.insync.replicas": majority,
        "offsets.topic.num.partitions": 3,
        "offsets.topic.replication.factor": nodes,
        **{f"transaction.state.log.{name}": value for name, value in internal.items()},
        **{f"share.coordinator.state.topic.{name}": value for name, value in internal.items()},
        "group.initial.rebalance.delay.ms": 0,
        # The default of 128 MiB is allocated at start, a third of the heap.
        "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
        # The default of 9 s is how long a killed node, alone or not, waits to be let back in.
        "broker.session.timeout.ms": 3_000,
        "broker.heartbeat.interval.ms": 500,
        "num.network.threads": 2,
        "num.io.threads": 4,
    }


class LocalKafka:
    """A Kafka of one or three nodes in the folder `data`; as a context manager, started and stopped.

    Every method blocks, `start` for seconds: call them through `asyncio.to_thread` from a coroutine. A folder that
    already holds a cluster is started again with its data and, if they are free, its ports.

    Args:
        data: The folder; made if absent. Its path must hold no comma (Kafka splits paths there).
        nodes: 1 or 3; each is broker and controller.
        properties: More lines for server.properties; they win over the ones chosen here.
        ports: One port a node for clients; chosen when empty.
    """

    def __init__(
        self,
        data: str | Path,
        nodes: int = 1,
        properties: Mapping[str, str] | None = None,
        ports: Sequence[int] = (),
    ) -> None:
        self.data = Path(data).resolve()
        if "," in str(self.data):
            raise KafkaError(f"{self.data}: Kafka takes the comma for the end of the path; choose another folder")
        if nodes not in (1, 3) or len(ports) not in (0, nodes):
            raise KafkaError(f"{nodes} nodes, {len(ports)} ports: choose 1 or 3 nodes, and no ports or one for each")
        self._properties = dict(properties or {})
        self._ports = list(ports)
        self._nodes = [Node(self.data, number) for number in range(1, nodes + 1)]
        self._bootstrap = self.data / "bootstrap"

    @classmethod
    def found(cls, data: str | Path) -> Self:
        """The cluster that an earlier start left in `data`, running or not."""
        nodes = len(list(Path(data).glob("node-*/server.properties")))
        if not nodes:
            raise KafkaError(f"{data}: no Kafka was started in this folder; start one: kafka.py start --data {data}")
        return cls(data, nodes)

    @property
    def bootstrap_servers(self) -> str:
        """host:port of every node, for clients."""
        if not self._bootstrap.exists():
            raise KafkaError(f"{self.data}: this Kafka is not started; start it first")
        return self._bootstrap.read_text().strip()

    def start(self) -> None:
        """Start every node and return when all are ready; on an error none is left running."""
        with locked(self.data / "lock"):
            self._check_startable()
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    return self._launch(jars(), fresh_ports=attempt > 1)
                except PortTaken as error:
                    if attempt == ATTEMPTS_MAX:
                        raise
                    say(f"{error}; trying with other ports")

    def stop(self) -> None:
        """Stop every node that runs; never signal a process that is not one of them."""
        with locked(self.data / "lock"):
            self._end(self._nodes, signal.SIGTERM)
            self._bootstrap.unlink(missing_ok=True)
            for node in self._nodes:
                node.forget()
            for node in self._nodes:
                node.check_pid()

    def kill(self, node: int) -> None:
        """End one node without warning (SIGKILL), as a crash would."""
        victim = self._node(node)
        if victim.pid() is None:
            victim.check_pid()
            raise KafkaError(f"node {node}: not running, so not killed; see: kafka.py status --data {self.data}")
        self._end([victim], signal.SIGKILL)

    def restart(self, node: int) -> None:
        """Start one node again on its data and ports, stopping it first if it runs.

        Returns when every running node is ready, or at once while there is no majority for them to be ready in.
        """
        one = self._node(node)
        with locked(self.data / "lock"):
            self._end([one], signal.SIGTERM)
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    one.spawn(jars(), self._heap())
                    running = [other for other in self._nodes if other.pid()]
                    if 2 * len(running) > len(self._nodes):
                        for other in running:
                            other.wait_ready()
                    return
                except PortTaken:  # a killed process may hold its port for a moment more
                    if attempt == ATTEMPTS_MAX:
                        raise
                    time.sleep(0.5)

    def status(self) -> list[dict[str, object]]:
        """For each node: `node`, `pid` (or None), `port`, `state` (ready, starting or stopped)."""
        return [
            {
                "node": node.number,
                "pid": node.pid(),
                "port": node.port(),
                "state": "ready" if node.ready() else "starting" if node.pid() else "stopped",
            }
            for node in self._nodes
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _node(self, number: int) -> Node:
        for node in self._nodes:
            if node.number == number:
                return node
        raise KafkaError(f"node {number}: {self.data} has nodes 1 to {len(self._nodes)}; choose one of them")

    def _check_startable(self) -> None:
        known = len(list(self.data.glob("node-*/server.properties")))
        if known not in (0, len(self._nodes)):
            raise KafkaError(
                f"{self.data}: holds {known} node(s), not {len(self._nodes)}; choose that number or another folder"
            )
        for node in self._nodes:
            if node.pid():
                raise KafkaError(
                    f"{self.data}: node {node.number} runs already (pid {node.pid()}); "
                    f"use it, or stop it first: kafka.py stop --data {self.data}"
                )
        for port in self._ports:
            if not free(port):
                raise KafkaError(f"port {port}: in use on 127.0.0.1; free it or choose another by --port")

    def _launch(self, libs: Path, *, fresh_ports: bool) -> None:
        count = len(self._nodes)
        known = [port for node in self._nodes if (port := node.port()) and free(port)]
        chosen = free_ports(2 * count)  # in one call, so that they differ
        controllers = chosen[count:]
        ports = self._ports or (known if len(known) == count and not fresh_ports else chosen[:count])
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(controllers, start=1))
        for node, port, controller in zip(self._nodes, ports, controllers, strict=True):
            client = f"PLAINTEXT://127.0.0.1:{port}"
            node.configure(
                {
                    "listeners": f"{client},CONTROLLER://127.0.0.1:{controller}",
                    "advertised.listeners": client,
                    "controller.quorum.voters": voters,
                    **cluster_settings(count),
                    **self._properties,
                }
            )
        # The same for the same folder: an interrupted start may have formatted only some of the nodes.
        digest = hashlib.sha256(str(self.data).encode()).digest()
        cluster_id = base64.urlsafe_b64encode(b"choreo" + digest[:10]).decode().rstrip("=")
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda node: node.format(libs, cluster_id), self._nodes))
        try:
            for node in self._nodes:
                node.spawn(libs, self._heap())
            for node in self._nodes:
                node.wait_ready()
        except BaseException:  # Ctrl-C too must leave no broker behind
            self._end(self._nodes, signal.SIGKILL)
            raise
        self._bootstrap.write_text(",".join(f"127.0.0.1:{port}" for port in ports) + "\n")

    def _heap(self) -> tuple[str, str]:
        return ("-Xmx384M", "-Xms128M") if len(self._nodes) == 1 else ("-Xmx256M", "-Xms96M")

    def _end(self, nodes: Iterable[Node], how: signal.Signals) -> None:
        for signal_ in (how, signal.SIGKILL):
            for node in nodes:
                node.signal(signal_)
            deadline = time.monotonic() + STOP_S
            while any(node.pid() for node in nodes):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            else:
                return
        raise KafkaError(f"{self.data}: a node outlived SIGKILL by {STOP_S:.0f} s; is its disk hanging?")
