"""A broker that demands TLS and who one is, and denies what is not granted: let in, or told what is wrong."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from choreo import App, Context, Delayed, Event, Reject, Service
from choreo.access import Access
from choreo.cli import main
from choreo.cli.topics import wanted_topics
from choreo.errors import ConfigurationError, TransportError
from choreo.opening import open_transport
from choreo.ports import TopicSpec
from choreo.publisher import Publisher
from choreo.record import ProducerRecord
from choreo.runtime.clock import SystemClock
from choreo.telemetry.silent import NoInstrument
from choreo.transports.kafka import KafkaTransport
from deploy.kafka.jars import Missing
from tests import secure_kafka
from tests.integration.bare_client import waited
from tests.kafka_server import unavailable
from tests.secure_kafka import SecureKafka

CLIENTS = pytest.mark.parametrize("client", ["kafka", "kafka+confluent"])
WHO = {
    "PLAIN": secure_kafka.PLAIN_USER,
    "SCRAM-SHA-256": secure_kafka.USER,
    "SCRAM-SHA-512": secure_kafka.USER,
    "OAUTHBEARER": secure_kafka.CLIENT,
    "mTLS": secure_kafka.CERTIFIED,
}
SECRETS = (
    secure_kafka.PASSWORD,
    secure_kafka.PLAIN_PASSWORD,
    secure_kafka.CLIENT_SECRET,
    secure_kafka.KEY_PASSWORD,
    "wr0ng-secret",
)
ME = f"User:{secure_kafka.USER}"


class Asked(Event, type="guarded.asked", version=1, topic="asks", key="who"):
    who: str
    kind: str


class Poured(Event, type="guarded.poured", version=1, topic="cups", key="who"):
    who: str


def desk(group: str) -> App:
    """A service that emits, tries again by way of a topic, and puts aside."""
    service = Service("desk", group=group)

    @service.handler(Asked, retry=Delayed(1))
    async def pour(asked: Asked, ctx: Context) -> Poured:
        if asked.kind == "late" and ctx.attempt == 1:
            raise ConnectionError
        if asked.kind == "bad":
            raise Reject("no such tea")
        return Poured(who=asked.who)

    return App(service)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """One for all tests here."""
    try:
        with secure_kafka.secure_kafka(tmp_path_factory.mktemp("secure")) as found:
            yield found
    except Missing as error:
        unavailable(str(error))


@asynccontextmanager
async def administrator(broker: SecureKafka) -> AsyncIterator[KafkaTransport]:
    """Whom the broker lets do everything."""
    transport = KafkaTransport(broker.open, security={})
    try:
        yield transport
    finally:
        await transport.close()


def come_in(broker: SecureKafka, way: str, monkeypatch: pytest.MonkeyPatch, **other: str) -> None:
    """Settings of a client; `other` ones over them, by the end of their variable's name."""
    changed = {f"CHOREO_KAFKA_{name.upper()}": text for name, text in other.items()}
    for name, text in (broker.settings(way) | changed).items():
        monkeypatch.setenv(name, text)


async def opened_and_closed(url: str) -> None:
    """As every command does first, and last."""
    transport = open_transport(url)
    try:
        await transport.open()
    finally:
        await transport.close()


def printed(app: App, client: str, store: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `choreo topics acl --json` prints for the only service of an app."""
    module = ModuleType("guarded_desk")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "guarded_desk", module)
    words = ["topics", "acl", "guarded_desk:app", "--store", store, "--broker", f"{client}://h:1", "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    (service,) = json.loads(done.stdout)["services"]
    assert service["principal"] == "User:desk"
    acls: list[dict[str, Any]] = service["acls"]
    return acls


@CLIENTS
@pytest.mark.parametrize("way", list(WHO))
async def test_each_way_in_is_let_in_as_who_it_is(
    broker: SecureKafka, client: str, way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was granted a right has it, and what was not granted is told; TLS and names are checked."""
    topic = f"in-{uuid4()}"
    acl = {"resource_type": "topic", "name": topic, "pattern_type": "literal", "operations": ["Write"]}
    async with administrator(broker) as admin:
        await admin.create_topics([TopicSpec(topic, 1)])
        await asyncio.to_thread(broker.grant, f"User:{WHO[way]}", [acl])
        come_in(broker, way, monkeypatch)
        transport = open_transport(f"{client}://{broker.server(way)}")
        try:
            await transport.open()
            await transport.send([ProducerRecord(topic, b"k", b"{}", ())])
            read = Access("topic", topic, ("Read", "Write"))
            assert await transport.lacking([read]) == [read._replace(operations=("Read",))]  # type: ignore[attr-defined]
        finally:
            await transport.close()
        assert len(await admin.scan([topic], since_ms=0)) == 1
    assert not [secret for secret in SECRETS if secret in caplog.text]


@CLIENTS
@pytest.mark.parametrize(
    ("way", "other", "said"),
    [
        ("PLAIN", {"sasl_password": "wr0ng-secret"}, f"User:{WHO['PLAIN']} is not let in"),
        ("SCRAM-SHA-256", {"sasl_password": "wr0ng-secret"}, "CHOREO_KAFKA_SASL_PASSWORD"),
        ("OAUTHBEARER", {"sasl_oauthbearer_client_secret": "wr0ng-secret"}, "..._CLIENT_SECRET"),
        ("SCRAM-SHA-512", {"ssl_cafile": "other-ca.pem"}, "CHOREO_KAFKA_SSL_CAFILE"),
        ("mTLS", {"ssl_certfile": "", "ssl_keyfile": ""}, "CHOREO_KAFKA_SSL_CERTFILE"),
        ("mTLS", {"ssl_key_password": "wr0ng-secret"}, "CHOREO_KAFKA_SSL_KEY_PASSWORD"),
    ],
)
async def test_what_is_wrong_is_said_at_once(
    broker: SecureKafka,
    client: str,
    way: str,
    other: Mapping[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Which variable to look at, and no secret, right or wrong."""
    caplog.set_level(logging.DEBUG)
    files = {name: str(broker.folder / text) if text.endswith(".pem") else text for name, text in other.items()}
    come_in(broker, way, monkeypatch, **files)
    begun_s = time.monotonic()
    with pytest.raises((TransportError, ConfigurationError)) as caught:
        await opened_and_closed(f"{client}://{broker.server(way)}")
    assert said in str(caught.value)
    assert time.monotonic() - begun_s < 5, "known at once, not at the deadline"
    told = f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"
    assert not [secret for secret in SECRETS if secret in told]


@pytest.mark.parametrize(
    ("client", "store"), [("kafka", "changelog"), ("kafka", "sqlite"), ("kafka+confluent", "changelog")]
)
async def test_a_service_runs_with_the_printed_rights_and_no_others(
    broker: SecureKafka,
    client: str,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They suffice for all it does; one that is taken is named, while it runs and at the start."""
    prefix = f"g{uuid4().hex[:8]}-"
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", prefix)
    app = desk(f"{prefix}desk")
    acls = printed(app, client, store, monkeypatch)
    url = "changelog" if store == "changelog" else f"sqlite:{tmp_path}/keys.db"
    async with administrator(broker) as admin:
        await admin.create_topics(wanted_topics(app, 1, 1, store, {}, widen=False))
        await asyncio.to_thread(broker.grant, ME, acls)
        publisher = Publisher(admin, NoInstrument(), SystemClock(), topic=app.topic)
        come_in(broker, "SCRAM-SHA-512", monkeypatch)
        running = {"broker": f"{client}://{broker.sasl}", "store": url, "create_schema": True, "drain_s": 5.0}
        written = next(acl for acl in acls if acl["name"] == f"{prefix}cups")

        async def poured(topic: str, number: int) -> None:
            for _ in range(150):
                if len(await admin.scan([app.topic(topic)], since_ms=0)) >= number:
                    return
                await asyncio.sleep(0.1)
            pytest.fail(f"no {number} records in {topic}: {caplog.text[-2000:]}")

        async with app.running(**running):  # type: ignore[arg-type]
            for kind in ("good", "late", "bad"):
                await publisher.publish(Asked(who=kind, kind=kind))
            await poured("cups", 2)
            await poured("desk.dlq", 1)
            assert "lacks" not in caplog.text
            await asyncio.to_thread(broker.take, ME, written, "Write")
            await publisher.publish(Asked(who="denied", kind="good"))
            lack = f"{ME} lacks Write on the topic {prefix}cups"
            await waited(lambda: lack in caplog.text, within_s=15)
            await asyncio.to_thread(broker.grant, ME, [written])
            await poured("cups", 3)  # nothing was lost meanwhile

        for acl in acls:
            for operation in acl["operations"]:
                await asyncio.to_thread(broker.take, ME, acl, operation)
        hidden = await asyncio.to_thread(
            CliRunner().invoke, main, ["topics", "plan", "guarded_desk:app", "--broker", f"{client}://{broker.sasl}"]
        )
        assert f"{ME} lacks Describe on the topic {prefix}asks" in hidden.output
        with pytest.raises(ConfigurationError) as caught:
            async with app.running(**running):  # type: ignore[arg-type]
                pass
        for acl in acls:
            star = "*" if acl["pattern_type"] == "prefixed" else ""
            resource = f"the {acl['resource_type'].replace('-', ' ')} {acl['name']}{star}"
            assert f"{' and '.join(acl['operations'])} on {resource}" in str(caught.value)
        assert "choreo topics acl" in str(caught.value)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    """There is one place for it."""
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_SASL_USERNAME") as caught:
        open_transport("kafka://me:hunter2@127.0.0.1:9092")
    assert "hunter2" not in str(caught.value)
