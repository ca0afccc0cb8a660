"""deploy/README.md as it stands there, line by line, on a real engine: `make deploy-check`.

Needs an engine that answers to `docker` and Compose, with the images or a registry to get them from. Only where
CHOREO_DOCKER=1 asks for it, in CI too: it builds an image and takes minutes. Images by other names: see the README.
"""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.kafka.node import free_ports
from handlers.order_stores.app import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "deploy" / "README.md").read_text()
ORDERS = [json.loads(line)["order_id"] for line in (ROOT / "deploy" / "orders.jsonl").read_text().splitlines()]
COMPOSE = "docker compose -f deploy/compose.yaml"
LINE_S = 900.0

pytestmark = pytest.mark.skipif(
    os.environ.get("CHOREO_DOCKER") != "1",
    reason="needs an engine: install Docker with Compose, then `make deploy-check` (CHOREO_DOCKER=1)",
)


def section(heading: str) -> list[str]:
    """The command lines below a heading, in order."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, heading
    blocks = re.findall(r"^```sh\n(.*?)^```$", found[1], re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


class Engine:
    """Runs command lines in the root of the repository, under a project's name of its own."""

    def __init__(self) -> None:
        self.jaeger_port, self.web_port = free_ports(2)
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": f"choreo-check-{os.getpid()}",
            "JAEGER_PORT": str(self.jaeger_port),
            "WEB_PORT": str(self.web_port),
        }
        answered = self._try(["docker", "compose", "version"])
        assert answered or shutil.which("docker-compose"), "neither `docker compose` nor docker-compose is here"
        self.compose = "docker compose" if answered else "docker-compose"

    def _try(self, command: list[str]) -> bool:
        try:
            return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
        except FileNotFoundError:
            return False

    def run(self, line: str) -> str:
        """What a line says; it must end well."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line.replace("docker compose", self.compose)],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LINE_S,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def jaeger(self, path: str) -> Any:
        """What Jaeger's query API answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.jaeger_port}{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def inspect(self, service: str, what: str) -> str:
        """Of a service's container, by one of the engine's templates."""
        (name, *_) = self.run(f"{COMPOSE} ps -q {service}").split()
        return self.run(f"docker inspect --format '{what}' {name}").strip()


@pytest.fixture
def engine() -> Iterator[Engine]:
    """With nothing of ours left on it."""
    found = Engine()
    try:
        yield found
    finally:
        found.run(f"{COMPOSE} down --volumes --timeout 5")


def spans_by_order(engine: Engine) -> dict[str, set[str]]:
    """Services that have spans in each order's trace, by the record's key."""
    found: dict[str, set[str]] = {}
    for trace in engine.jaeger("/api/traces?service=inventory&limit=50"):
        tags = (tag for span in trace["spans"] for tag in span["tags"])
        keys = {tag["value"] for tag in tags if tag["key"] == "messaging.kafka.message.key"}
        for key in keys:
            found[key] = {process["serviceName"] for process in trace["processes"].values()}
    return found


def until(true: Callable[[], object]) -> None:
    """Return when it is."""
    until_s = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until_s, "it never came true"
        time.sleep(1)


def the_application_takes_orders(engine: Engine, place: str, trace: str, unsent: str, second: str) -> None:
    """Once, however often it is asked; traced from the request on; and by the second relay when the first is gone."""
    answer = engine.run(place)
    assert engine.run(place) == answer
    order_id, correlation_id = (json.loads(answer)[name] for name in ("order_id", "correlation_id"))
    shipped = "flow order ended with order.shipped"
    until(lambda: shipped in engine.run(trace.replace("CORRELATION_ID", correlation_id)))
    until(lambda: re.search(r"^ +0$", engine.run(unsent), re.MULTILINE))
    until(lambda: spans_by_order(engine).get(order_id) == {*app.services, "web-orders", "relay"})
    (leader,) = engine.run(f"{COMPOSE} ps -q relay").split()
    engine.run(second)
    until(lambda: len(engine.run(f"{COMPOSE} ps -q relay").split()) == 2)
    engine.run(f"docker rm --force {leader}")
    again = json.loads(engine.run(place.replace("4711", "4712")))
    assert again["order_id"] != order_id
    until(lambda: shipped in engine.run(trace.replace("CORRELATION_ID", again["correlation_id"])))


def test_the_readme_is_true(engine: Engine) -> None:
    """Up, traced, scaled, drained, down: each line ends well and does what is said beside it."""
    up, where, trace, rows, *web, scale, stop, tail, down = section("The order flow in containers")
    engine.run(up)
    assert f"http://127.0.0.1:{engine.jaeger_port}" in engine.run(where)
    until(lambda: spans_by_order(engine).get(ORDERS[0]) == {*app.services, "app"})
    assert set(spans_by_order(engine)) == set(ORDERS)
    said = engine.run(trace)
    assert "flow order ended with order.shipped" in said
    assert "inventory.issue handled" in said
    assert re.search(r"^ +0 \| +[1-9]", engine.run(rows), re.MULTILINE), "nothing is held and something was issued"
    for service in app.services:
        assert engine.inspect(service, "{{.Config.User}}") == "10001:10001"
        assert engine.inspect(service, "{{.HostConfig.ReadonlyRootfs}}") == "true"
    assert "{choreo:shipping}:keys" in engine.run(f"{COMPOSE} exec -T redis redis-cli --scan")
    the_application_takes_orders(engine, *web)
    engine.run(scale)
    assert len(engine.run(f"{COMPOSE} ps -q shipping").split()) == 2
    (inventory,) = engine.run(f"{COMPOSE} ps -q inventory").split()
    engine.run(stop)
    assert engine.run(f"docker inspect --format '{{{{.State.ExitCode}}}}' {inventory}").strip() == "0"
    assert '"drained"' in engine.run(tail)
    engine.run(down)
    assert not engine.run(f"docker ps -a -q --filter name={engine.environment['COMPOSE_PROJECT_NAME']}")


def test_a_new_project_makes_an_image(engine: Engine, tmp_path: Path) -> None:
    """The Dockerfile of `choreo new`, with this choreo in place of a released one; it runs without rights."""
    engine.run(f"{ROOT}/.venv/bin/choreo new shop-orders --dir {tmp_path}/shop")
    dockerfile = tmp_path / "shop" / "Dockerfile"
    text = dockerfile.read_text()
    wheel = engine.run(
        f"{ROOT}/.venv/bin/python -m pip wheel -q --no-deps --no-build-isolation -w {tmp_path}/shop {ROOT}"
        f" && basename {tmp_path}/shop/choreo-*.whl"
    ).strip()
    (tmp_path / "shop" / ".dockerignore").unlink()
    before = "COPY pyproject.toml README.md ./\n"
    assert before in text
    dockerfile.write_text(text.replace(before, f"{before}COPY {wheel} ./\nRUN /app/bin/pip install -q ./{wheel}\n"))
    image = f"choreo-check-new-{os.getpid()}"
    engine.run(f"docker build -t {image} {tmp_path}/shop")
    try:
        engine.run(f"docker run --rm --read-only {image} check shop_orders.app:app")
        assert engine.run(f"docker run --rm --entrypoint id {image} -u").strip() == "10001"
    finally:
        engine.run(f"docker rmi {image}")


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl: install Kubernetes' client")
def test_the_manifests_are_built_as_said() -> None:
    """The lines about Kubernetes that need no cluster."""
    lines = section("Kubernetes")
    assert len(lines) == 2
    for line in lines:
        subprocess.run(["bash", "-euc", line], cwd=ROOT, check=True, timeout=60)
