"""Where tests find a Kafka: a given one, else Docker, else Kafka's jars; else a skip that says what to install.

Knows nothing of the tests. With CI set the skip is a failure: a green run there must have met a real Kafka.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import pytest

from deploy.kafka.cluster import LocalKafka
from deploy.kafka.jars import Missing, version_wanted
from deploy.kafka.node import free_ports

IMAGE = f"apache/kafka:{version_wanted()}"
READY_S = 90


class Unavailable(Exception):
    """Why one way to a Kafka is closed on this machine."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test for want of a server; in CI fail it."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false", "no"):
        pytest.fail(f"{reason} (CI is set, so this is not skipped)", pytrace=False)
    pytest.skip(reason)


def kafka_bootstrap_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the bootstrap servers of a running Kafka and stop it afterwards, unless it was given."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield given
        return
    reasons = []
    for way in (docker_kafka, jar_kafka):
        with ExitStack() as stack:
            try:
                servers = stack.enter_context(way(tmp_path_factory))
            except Unavailable as error:
                reasons.append(str(error))
                continue
            yield servers
            return
    unavailable(
        "no Kafka to test with: set KAFKA_BOOTSTRAP_SERVERS, or start Docker, or install Java 17 and Maven; "
        + "; ".join(reasons)
    )


@contextmanager
def docker_kafka(_: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka in a container, if a Docker daemon answers and has or gets the image."""
    try:
        from docker.errors import APIError  # type: ignore[import-untyped]
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.wait_strategies import LogMessageWaitStrategy
    except ImportError as error:
        raise Unavailable(f"Docker: {error}; pip install testcontainers") from error
    reason = docker_silence()
    if reason:
        raise Unavailable(f"Docker: no daemon answers ({reason})")
    # A broker must advertise the port its clients see, so it is chosen before the start.
    (port,) = free_ports(1)
    container = DockerContainer(IMAGE).with_envs(**container_settings(port))
    # with_bind_ports would listen on every interface; docker-py takes an address too, testcontainers' type does not
    container.ports["9092"] = ("127.0.0.1", port)  # type: ignore[assignment]
    container.waiting_for(LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(READY_S))
    try:
        try:
            container.start()
        except APIError as error:  # no registry in reach, for one; a Kafka that fails to start is not one
            raise Unavailable(f"Docker: {IMAGE}: {error.explanation}") from error
        yield f"127.0.0.1:{port}"
    finally:
        container.stop()


def docker_silence() -> str:
    """Why no Docker daemon can be used; empty when one answers."""
    from testcontainers.core.docker_client import DockerClient

    reason = ""
    with warnings.catch_warnings():
        # docker-py leaves the socket of a failed connection to the garbage collector; here that is an error.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            DockerClient().client.close()  # the constructor asks the daemon for its version
        except Exception as error:  # docker, requests and urllib3 each have their own for "nobody answers"
            reason = type(error).__name__
        gc.collect()
    return reason


def container_settings(port: int) -> dict[str, str]:
    """The image's environment; the first KAFKA_* setting replaces all of its defaults, so all are here."""
    listeners = ("INTERNAL", "EXTERNAL", "CONTROLLER")
    settings: dict[str, object] = {
        "NODE_ID": 1,
        "PROCESS_ROLES": "broker,controller",
        "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "LISTENERS": "INTERNAL://:19092,EXTERNAL://:9092,CONTROLLER://:9093",
        "ADVERTISED_LISTENERS": f"INTERNAL://localhost:19092,EXTERNAL://127.0.0.1:{port}",
        "LISTENER_SECURITY_PROTOCOL_MAP": ",".join(f"{name}:PLAINTEXT" for name in listeners),
        "INTER_BROKER_LISTENER_NAME": "INTERNAL",
        "AUTO_CREATE_TOPICS_ENABLE": "false",
        "OFFSETS_TOPIC_NUM_PARTITIONS": 3,
        "OFFSETS_TOPIC_REPLICATION_FACTOR": 1,
        "TRANSACTION_STATE_LOG_NUM_PARTITIONS": 3,
        "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": 1,
        "TRANSACTION_STATE_LOG_MIN_ISR": 1,
        "GROUP_INITIAL_REBALANCE_DELAY_MS": 0,
    }
    return {f"KAFKA_{key}": str(value) for key, value in settings.items()}


@contextmanager
def jar_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka from its own jars, if Java and (for the first time) Maven are here."""
    kafka = LocalKafka(tmp_path_factory.mktemp("kafka"))
    try:
        kafka.start()
    except Missing as error:  # any other error is a broken Kafka, and not to be skipped over
        raise Unavailable(str(error)) from error
    try:
        yield kafka.bootstrap_servers
    finally:
        kafka.stop()
