"""Three local brokers with a second listener that clients reach through proxies only."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.kafka.cluster import LocalKafka
from deploy.kafka.node import Node, free_ports
from tests.integration.chaos.network import Proxy

LISTENER = "PROXIED"


class ProxiedNode(Node):
    """Names the proxy's port to clients that come through the proxy; brokers speak to each other directly."""

    def __init__(self, data: Path, number: int, proxy: Proxy) -> None:
        super().__init__(data, number)
        self._proxy = proxy

    def configure(self, settings: Mapping[str, object]) -> None:
        """Add the listener behind the proxy. Of a broker's ports Kafka names to a client those it came by."""
        (self._proxy.behind,) = free_ports(1)
        added = {
            "listeners": f"{LISTENER}://127.0.0.1:{self._proxy.behind}",
            "advertised.listeners": f"{LISTENER}://127.0.0.1:{self._proxy.port}",
            "listener.security.protocol.map": f"{LISTENER}:PLAINTEXT",
        }
        super().configure({**settings, **{name: f"{settings[name]},{value}" for name, value in added.items()}})


class ProxiedKafka(LocalKafka):
    """As many brokers as there are proxies; each can be frozen, too. `bootstrap_servers` goes past the proxies."""

    def __init__(self, data: Path, proxies: Sequence[Proxy], properties: Mapping[str, str]) -> None:
        super().__init__(data, len(proxies), properties)
        nodes = enumerate(proxies, start=1)
        self._nodes = [ProxiedNode(self.data, number, proxy) for number, proxy in nodes]
        self.proxied_servers = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)

    def freeze(self, node: int) -> None:
        """Stop it where it is (SIGSTOP); its connections stay open."""
        self._node(node).signal(signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        """Have it go on."""
        self._node(node).signal(signal.SIGCONT)
