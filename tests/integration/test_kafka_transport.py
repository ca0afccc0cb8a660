"""KafkaTransport on a real Kafka: opening, topics, scans, and records that come back as they were sent."""

import asyncio
import logging
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from choreo.errors import ConfigurationError, TransportError
from choreo.ports import TopicSpec
from choreo.record import ProducerRecord
from choreo.transports.kafka import KafkaTransport
from choreo.transports.kafka.security import KafkaSecurity
from tests.integration.kafka_stage import Stage, fetched, values


@pytest.fixture
async def stage(kafka: str) -> AsyncIterator[Stage]:
    async with Stage(kafka) as found:
        yield found


async def test_records_come_back_as_they_were_sent(stage: Stage) -> None:
    """Keys, nulls, empty values, duplicate headers and explicit partitions survive the round trip, in order a key."""
    topic = await stage.topic(3)
    await stage.transport.open()
    sent = [
        ProducerRecord(topic, b"a", b"1", (("h", b"1"), ("h", None), ("ü", b""))),
        ProducerRecord(topic, b"a", None, ()),
        ProducerRecord(topic, None, b"", (), 2),
        ProducerRecord(topic, None, None, (), 2),
        ProducerRecord(topic, b"a", b"2", ()),
    ]
    await stage.transport.send(sent)
    _, consumer = await stage.join(topic)
    found = await fetched(consumer, len(sent))
    shape = [ProducerRecord(each.topic, each.key, each.value, each.headers, None) for each in found]
    assert [each for each in shape if each.key == b"a"] == [each for each in sent if each.key == b"a"]
    assert [(each.partition, each.value) for each in found if each.key is None] == [(2, b""), (2, None)]
    assert all(abs(each.timestamp_ms - time.time() * 1000) < 60_000 for each in found)


async def test_topics_are_created_once_and_errors_are_named(stage: Stage) -> None:
    """What exists is left alone; what the broker refuses is an error with topic and reason."""
    name = f"topic-{uuid4()}"
    spec = TopicSpec(name, 3, 1, (("cleanup.policy", "compact"), ("retention.ms", "1000")))
    await stage.transport.create_topics([spec])
    await stage.transport.create_topics([TopicSpec(name, 5), TopicSpec(f"{name}-2", 1)])
    known = await stage.transport.topics()
    assert known[name] == spec
    assert known[f"{name}-2"].partitions == 1
    assert "__consumer_offsets" not in known
    with pytest.raises(TransportError, match=rf"{name}-3.*InvalidReplicationFactor"):
        await stage.transport.create_topics([TopicSpec(f"{name}-3", 1, 9)])
    with pytest.raises(TransportError, match=r"'wrong name'.*InvalidTopic"):
        await stage.transport.create_topics([TopicSpec("wrong name", 1)])


async def test_scan_reads_from_a_time_to_the_end(stage: Stage) -> None:
    """Only what is not older, of every partition, in order of time; an unknown topic is named."""
    topic = await stage.topic(2)
    await stage.transport.send(values(topic, range(5)))
    await asyncio.sleep(0.02)
    since_ms = int(time.time() * 1000)
    await stage.transport.send([ProducerRecord(topic, None, b"%d" % n, (), n % 2) for n in range(6)])
    assert len(await stage.transport.scan([topic], since_ms=0)) == 11
    found = await stage.transport.scan([topic], since_ms=since_ms)
    assert sorted(each.value or b"" for each in found) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert [each.timestamp_ms for each in found] == sorted(each.timestamp_ms for each in found)
    assert await stage.transport.scan([topic], since_ms=since_ms + 3_600_000) == []
    with pytest.raises(TransportError, match="no such topic: absent"):
        await stage.transport.scan([topic, "absent"], since_ms=0)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    served: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        with suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if served:
        await asyncio.wait(served, timeout=5)


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def rude(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    return


async def distrustful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A broker as far as SASL PLAIN, which it refuses: ApiVersions, SaslHandshake v1, SaslAuthenticate v0."""
    words = b"Invalid credentials"
    answers = {
        18: struct.pack(">hi3h3h3h", 0, 3, 18, 0, 0, 17, 0, 1, 36, 0, 0),
        17: struct.pack(">hih5s", 0, 1, 5, b"PLAIN"),
        36: struct.pack(f">hh{len(words)}si", 58, len(words), words, 0),
    }
    while size := int.from_bytes(await reader.readexactly(4)):
        key, _, correlation = struct.unpack_from(">hhi", await reader.readexactly(size))
        writer.write(struct.pack(">ii", 4 + len(answers[key]), correlation) + answers[key])


async def test_open_says_which_address_fails_why_and_what_to_check() -> None:
    """A closed port, one that hangs, one that hangs up and one that refuses the password, without showing it."""
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TransportError, match=rf"{closed}: ConnectionRefusedError.*is Kafka running there"):
            await KafkaTransport(closed, open_s=2).open()
    async with listening(silent) as address:
        started = time.monotonic()
        with pytest.raises(TransportError, match=rf"{address}: no answer in time: .*firewall"):
            await KafkaTransport(address, open_s=1).open()
        assert time.monotonic() - started < 2
    async with listening(rude) as address:
        with pytest.raises(TransportError, match=rf"{address}: .*want TLS or SASL"):
            await KafkaTransport(address, open_s=2).open()
    security = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "u",
        "sasl_plain_password": "hunter2",
    }
    async with listening(distrustful) as address:
        transport = KafkaTransport(address, open_s=2, security=security)
        with pytest.raises(TransportError, match=rf"{address}: .*check CHOREO_KAFKA_SASL_USERNAME") as caught:
            await transport.open()
        assert "hunter2" not in f"{caught.value!r} {transport!r}"


async def test_tls_verifies_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate nobody vouches for is refused; with its authority named the handshake is done."""
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = ["openssl", *words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-out", "cert", "-keyout", "key"]
    await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    monkeypatch.setenv("CHOREO_KAFKA_SECURITY_PROTOCOL", "SSL")
    async with listening(rude, context) as address:
        with pytest.raises(TransportError, match=rf"{address}: SSLCertVerificationError.*CHOREO_KAFKA_SSL_CAFILE"):
            await KafkaTransport(address, open_s=2).open()
        monkeypatch.setenv("CHOREO_KAFKA_SSL_CAFILE", str(tmp_path / "cert"))
        with pytest.raises(TransportError, match=rf"{address}: (?!.*Certificate)"):
            await KafkaTransport(address, open_s=2).open()


def test_security_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is missing is named, the password never shown, and PLAIN without TLS warned of."""
    monkeypatch.setenv("CHOREO_KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_SASL_MECHANISM"):
        KafkaSecurity().arguments()
    monkeypatch.setenv("CHOREO_KAFKA_SASL_MECHANISM", "PLAIN")
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_SASL_PASSWORD"):
        KafkaSecurity().arguments()
    monkeypatch.setenv("CHOREO_KAFKA_SASL_USERNAME", "u")
    monkeypatch.setenv("CHOREO_KAFKA_SASL_PASSWORD", "hunter2")
    assert KafkaSecurity().arguments()["sasl_plain_password"] == "hunter2"
    assert "without TLS" in caplog.text
    assert "hunter2" not in f"{caplog.text} {KafkaSecurity()!r}"
    monkeypatch.setenv("CHOREO_KAFKA_SSL_CAFILE", "/no/such/file")
    monkeypatch.setenv("CHOREO_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_SSL_CAFILE"):
        KafkaSecurity().arguments()


async def test_wrong_setting_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password put into the wrong variable does not end in a traceback."""
    monkeypatch.setenv("CHOREO_KAFKA_SASL_MECHANISM", "hunter2")
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_SASL_MECHANISM") as caught:
        KafkaTransport("127.0.0.1:9")
    assert "hunter2" not in str(caught.value)


async def test_aiokafka_does_not_log_payloads(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Its loggers stay at INFO although everything else is at DEBUG."""
    logger = logging.getLogger("aiokafka.producer.producer")
    logger.setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    await stage.transport.open()
    topic = await stage.topic()
    await stage.transport.send([ProducerRecord(topic, b"k", b"hunter2", ())])
    await stage.transport.scan([topic], since_ms=0)
    assert logger.level == logging.INFO
    assert "hunter2" not in caplog.text
