"""The Kafka without Docker: what deploy/kafka promises, on real brokers."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.kafka import cluster, kafka
from deploy.kafka.jars import Missing, jars, java
from deploy.kafka.kafka import LocalKafka
from deploy.kafka.node import command_of, free_ports
from tests.kafka_server import unavailable


@pytest.fixture(scope="module")
def _jars() -> None:
    """Java and Kafka's jars, or a reason to skip."""
    try:
        java()
        jars()
    except Missing as error:
        unavailable(str(error))


def script(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run kafka.py as a user does."""
    command = [sys.executable, "-W", "error", str(kafka.__file__), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **env})


def pids(data: Path) -> list[int]:
    """The pids in the folder's pid files."""
    return [int(file.read_text()) for file in sorted(data.glob("node-*/pid"))]


async def produce(servers: str, value: bytes, *, replicas: int = 0) -> None:
    """Send one record that every in-sync copy acknowledges, to a topic made first if `replicas` is given."""
    if replicas:
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic("t", 1, replicas)])
        finally:
            await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all") as producer:
        await producer.send_and_wait("t", value)


async def consume(servers: str, count: int) -> list[bytes]:
    """The first `count` values of the topic."""
    async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition("t", 0)])
        async with asyncio.timeout(20):
            return [(await consumer.getone()).value for _ in range(count)]


@pytest.mark.usefixtures("_jars")
async def test_script_keeps_the_data_of_a_killed_node(tmp_path: Path) -> None:
    """A record outlives a SIGKILL and a restart on the same port, and a stop leaves no process."""
    started = await asyncio.to_thread(script, "start", "--data", tmp_path)
    try:
        servers = started.stdout.removesuffix("\n")
        assert re.fullmatch(r"127\.0\.0\.1:\d+", servers), started
        assert (tmp_path / "bootstrap").read_text().strip() == servers
        await produce(servers, b"before", replicas=1)
        (first,) = pids(tmp_path)
        assert (await asyncio.to_thread(script, "kill", "--data", tmp_path, "--node", "1")).returncode == 0
        assert command_of(first) == ""
        assert (await asyncio.to_thread(script, "status", "--data", tmp_path)).returncode == 3
        restarted = await asyncio.to_thread(script, "restart", "--data", tmp_path, "--node", "1")
        assert restarted.returncode == 0, restarted.stderr
        await produce(servers, b"after")
        assert await consume(servers, 2) == [b"before", b"after"]
        (second,) = pids(tmp_path)
    finally:
        stopped = await asyncio.to_thread(script, "stop", "--data", tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert command_of(second) == ""
    assert pids(tmp_path) == []
    assert not (tmp_path / "bootstrap").exists()


@pytest.mark.usefixtures("_jars")
async def test_three_nodes_serve_without_one(tmp_path: Path) -> None:
    """Three nodes take a fully replicated topic, and go on when one of them is killed."""
    local = LocalKafka(tmp_path, nodes=3)
    await asyncio.to_thread(local.start)
    try:
        assert local.bootstrap_servers.count(",") == 2
        await produce(local.bootstrap_servers, b"by three", replicas=3)
        running = pids(tmp_path)
        await asyncio.to_thread(local.kill, 2)
        assert [node["state"] for node in local.status()] == ["ready", "stopped", "ready"]
        await produce(local.bootstrap_servers, b"by two")
        assert await consume(local.bootstrap_servers, 2) == [b"by three", b"by two"]
    finally:
        await asyncio.to_thread(local.stop)
    assert [command_of(pid) for pid in running] == ["", "", ""]


@pytest.mark.usefixtures("_jars")
def test_start_moves_off_a_taken_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is lost between choosing and binding it costs a second attempt, not the start."""
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", free_ports(1)[0]))
        thief.listen()
        taken = thief.getsockname()[1]
        draws = itertools.chain([[taken, *free_ports(1)]], iter(lambda: free_ports(2), None))
        monkeypatch.setattr(cluster, "free_ports", lambda _: next(draws))
        with LocalKafka(tmp_path) as local:
            assert local.bootstrap_servers != f"127.0.0.1:{taken}"
            assert [node["state"] for node in local.status()] == ["ready"]
    assert pids(tmp_path) == []


def test_stop_leaves_a_foreign_process_alone(tmp_path: Path) -> None:
    """A pid that now belongs to another program is named and refused, never signalled."""
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1" / "server.properties").touch()
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            (tmp_path / "node-1" / "pid").write_text(str(other.pid))
            refused = script("stop", "--data", tmp_path)
            assert refused.returncode == 1
            assert f"pid {other.pid} is not the Kafka" in refused.stderr
            assert script("kill", "--data", tmp_path, "--node", "1").returncode == 1
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.usefixtures("_jars")
def test_start_shows_why_a_broker_will_not_start(tmp_path: Path) -> None:
    """A setting that Kafka refuses is quoted from Kafka, and no process or bootstrap file is left."""
    failed = script("start", "--data", tmp_path, "--property", "num.io.threads=0")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "num.io.threads" in failed.stderr
    assert pids(tmp_path) == []
    assert not (tmp_path / "bootstrap").exists()


@pytest.mark.parametrize(("tools", "package"), [("", "openjdk-17-jre-headless"), ("java", "apt-get install maven")])
def test_start_names_what_to_install(tmp_path: Path, tools: str, package: str) -> None:
    """Without Java or Maven the error names the package that brings it."""
    (tmp_path / "bin").mkdir()
    for tool in tools.split():
        (tmp_path / "bin" / tool).touch(mode=0o755)
    env = {"PATH": str(tmp_path / "bin"), "JAVA_HOME": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    failed = script("start", "--data", tmp_path / "data", **env)
    assert failed.returncode == 1
    assert package in failed.stderr
