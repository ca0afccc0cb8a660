"""A listener that wants a user and a password: wrong at the start, right, and changed while a service runs."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from choreo import App, Event, Service
from choreo.errors import TransportError
from choreo.opening import open_transport
from choreo.publisher import Publisher
from choreo.runtime.clock import SystemClock
from choreo.telemetry.silent import NoInstrument
from choreo.transports.kafka import KafkaTransport
from deploy.kafka.cluster import LocalKafka
from deploy.kafka.jars import Missing
from deploy.kafka.node import free_ports
from tests.integration.bare_client import waited
from tests.kafka_server import unavailable

RIGHT, WRONG, CHANGED = "r1ght-secret", "wr0ng-secret", "ch4nged-secret"
USER = "choreo-user"
CLIENTS = pytest.mark.parametrize("client", ["kafka", "kafka+confluent"])
REAUTH_S = 4.0


class Told(Event, type="sasl.told", version=1, topic="told", key="name"):
    """What the service is told of."""

    name: str


class Listeners(NamedTuple):
    """Addresses of one broker: the first asks for nothing."""

    plain: str
    sasl: str

    def set_password(self, password: str) -> None:
        """What the broker takes from now on, and from connections that it asks again. Blocks."""
        told = UserScramCredentialUpsertion(
            USER, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), password.encode()
        )
        admin = AdminClient({"bootstrap.servers": self.plain})
        for answer in admin.alter_user_scram_credentials([told]).values():
            answer.result(10)


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    """A broker with a SASL listener beside its own, which asks for the password again every few seconds."""
    plain, sasl, controller = free_ports(3)
    addresses = f"PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl}"
    properties = {
        "listeners": f"{addresses},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": addresses,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": ("PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "connections.max.reauth.ms": str(int(REAUTH_S * 1000)),
    }
    kafka = LocalKafka(tmp_path_factory.mktemp("sasl"), properties=properties, ports=[plain])
    try:
        kafka.start()
    except Missing as error:
        unavailable(str(error))
    yield Listeners(f"127.0.0.1:{plain}", f"127.0.0.1:{sasl}")
    kafka.stop()


@pytest.fixture
def password(listeners: Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right one, on both sides."""
    listeners.set_password(RIGHT)
    monkeypatch.setenv("CHOREO_KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("CHOREO_KAFKA_SASL_MECHANISM", "SCRAM-SHA-512")
    monkeypatch.setenv("CHOREO_KAFKA_SASL_USERNAME", USER)
    monkeypatch.setenv("CHOREO_KAFKA_SASL_PASSWORD", RIGHT)


@asynccontextmanager
async def publisher(listeners: Listeners, app: App) -> AsyncIterator[Publisher]:
    """One that needs no password."""
    transport = KafkaTransport(listeners.plain, security={})
    try:
        yield Publisher(transport, NoInstrument(), SystemClock(), topic=app.topic)
    finally:
        await transport.close()


@CLIENTS
@pytest.mark.usefixtures("password")
async def test_wrong_password_is_refused_at_the_start(
    listeners: Listeners, client: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the variables to check; no password is in it, nor in the log."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CHOREO_KAFKA_SASL_PASSWORD", WRONG)
    transport = open_transport(f"{client}://{listeners.sasl}")
    started_s = time.monotonic()
    try:
        with pytest.raises(TransportError, match="CHOREO_KAFKA_SASL_PASSWORD") as caught:
            await transport.open()
    finally:
        await transport.close()
    assert time.monotonic() - started_s < 8.0, "known at once, not at the deadline"
    said = f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"
    assert WRONG not in said
    assert RIGHT not in said


@CLIENTS
@pytest.mark.usefixtures("password")
async def test_password_changed_while_running_is_said_and_loses_nothing(
    listeners: Listeners, client: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Works with the right one; refused, it says so and does not spin; taken again, nothing is lost."""
    handled: Counter[str] = Counter()
    service = Service("told", group=f"told-{uuid4()}")

    @service.handler(Told)
    async def hear(told: Told) -> None:
        handled[told.name] += 1

    app = App(service, topics={name: f"{name}-{uuid4()}" for name in ("told", "told.dlq")})
    running = app.running(
        broker=f"{client}://{listeners.sasl}",
        store=f"sqlite:{tmp_path}/told.db",
        create_topics=True,
        create_schema=True,
        partitions=1,
        drain_s=5.0,
    )
    async with running, publisher(listeners, app) as publishing:
        await publishing.publish(Told(name="before"))
        await waited(lambda: handled["before"], within_s=15)
        await asyncio.to_thread(listeners.set_password, CHANGED)
        await waited(lambda: _said(caplog), within_s=5 * REAUTH_S)
        await publishing.publish(Told(name="meanwhile"))
        cpu_s, lines = time.process_time(), len(caplog.records)
        await asyncio.sleep(3)
        assert time.process_time() - cpu_s < 1.5
        assert len(caplog.records) - lines < 150
        assert not handled["meanwhile"]
        await asyncio.to_thread(listeners.set_password, RIGHT)
        await publishing.publish(Told(name="after"))
        await waited(lambda: handled["after"], within_s=40)
    assert handled == {"before": 1, "meanwhile": 1, "after": 1}
    assert not any(secret in caplog.text for secret in (RIGHT, CHANGED))


def _said(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether the log tells of a refused authentication."""
    return any("uthenticat" in each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING)
