"""ConfluentTransport on a real Kafka: opening, records, topics that come, grow and go, and a loop that stays free."""

import asyncio
import logging
import socket
import subprocess
import sys
import time
from typing import Any, Literal
from uuid import uuid4

import pytest

from choreo.errors import ConfigurationError, RecordTooLarge, TransportError
from choreo.ports import Peer, TopicSpec
from choreo.record import ProducerRecord, TopicPartition
from choreo.transports.confluent import ConfluentTransport
from choreo.transports.confluent.client import AdminClient
from choreo.transports.confluent.settings import ConfluentMembership, security_arguments
from choreo.transports.kafka import KafkaTransport
from choreo.transports.kafka.producer import partition_of
from choreo.transports.kafka.security import KafkaSecurity
from choreo.transports.kafka.settings import peer_of
from tests.integration.confluent_stage import QUICK, owners, topic_of, until, values


async def test_both_clients_say_whom_they_talk_to(kafka: str) -> None:
    """The address where one is given, and after `open` the cluster's id: the same by either library."""
    peers = []
    for transport in (ConfluentTransport(kafka, client_id="shop"), KafkaTransport(kafka, client_id="shop")):
        await transport.open()
        peers.append(transport.peer)
        await transport.close()
    host, _, port = kafka.split(",")[0].rpartition(":")
    assert peers[0] == peers[1]
    assert peers[0][:3] == ("shop", host, int(port))
    assert len(peers[0].cluster_id or "") == 22, "a UUID in base64"


@pytest.mark.parametrize(
    ("servers", "address", "port"),
    [("[::1]:9092", "::1", 9092), ("a:9092,b:9092", None, None), ("localhost", None, None)],
)
def test_an_address_is_said_only_where_there_is_one(servers: str, address: str | None, port: int | None) -> None:
    """Of several brokers nobody knows which one answers."""
    assert peer_of(servers, "choreo") == Peer("choreo", address, port)


async def test_keys_choose_the_partition_that_aiokafka_chooses(kafka: str) -> None:
    """Text, bytes, an empty key; those without one are spread."""
    async with owners(kafka, 1) as (_, (owner,)):
        topic = await topic_of(owner.transport, 7)
        keys = [b"", b"\x00", b"\xff\xfe", "ключ".encode(), *(b"key-%d" % number for number in range(200))]
        await owner.transport.send([ProducerRecord(topic, key, b"", ()) for key in keys])
        found = {each.key: each.partition for each in await owner.transport.scan([topic], since_ms=0)}
        assert found == {key: partition_of(key, range(7), range(7)) for key in keys}


async def test_header_key_that_is_no_text_neither_freezes_nor_crashes(
    kafka: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a record, of another client, is read without its headers, and said so; sending one is refused."""
    async with owners(kafka, 1) as (_, (owner,)):
        topic = await topic_of(owner.transport)
        raw = ProducerRecord(topic, b"k", b"raw", ((b"\xff\xfe".decode("utf-8", "surrogateescape"), b"x"),))
        other = KafkaTransport(kafka)
        await other.send([raw])
        await other.close()
        await owner.transport.send([ProducerRecord(topic, b"k", b"next", (("a", None), ("a", b"1")))])
        await owner.join(topic)
        await until(lambda: len(owner.found) == 2, owner)
        assert [each.headers for each in owner.found] == [(), (("a", None), ("a", b"1"))]
        assert f"{topic}/0@0: a header key is no UTF-8" in caplog.text
        with pytest.raises(TransportError, match="no header key"):
            await owner.transport.send([raw])


async def test_oversized_record_is_named_and_a_large_batch_is_split(kafka: str) -> None:
    """By the broker's word, not by a guess; what was sent beside it may be on the log."""
    async with owners(kafka, 1) as (_, (owner,)):
        topic = await topic_of(owner.transport, max_message_bytes="4000")
        small = [ProducerRecord(topic, b"k", b"%0900d" % number, ()) for number in range(30)]
        await owner.transport.send(small)
        assert [each.value for each in await owner.transport.scan([topic], since_ms=0)] == [
            each.value for each in small
        ]
        big = ProducerRecord(topic, b"k", b"x" * 9_000, ())
        for records, index in (([big], 0), ([*small[:3], big], 3)):
            with pytest.raises(RecordTooLarge) as caught:
                await owner.transport.send(records)
            assert caught.value.index == index
        huge = ProducerRecord(topic, b"k", b"x" * (17 * 1024 * 1024), ())
        with pytest.raises(RecordTooLarge):
            await owner.transport.send([huge])
        with pytest.raises(TransportError, match="there is no partition 9"):
            await owner.transport.send([ProducerRecord(topic, b"k", b"", (), 9)])
        await owner.transport.send(values(topic, [1]))


async def test_open_says_why_and_what_to_check(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port and one that is silent, within open_s; what a setting gets wrong is named, never shown."""
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TransportError, match=rf"{closed}.*refused.*is Kafka running there"):
            await ConfluentTransport(closed, open_s=3).open()
        taken.listen()
        started = time.monotonic()
        with pytest.raises(TransportError, match=r"firewall|TLS"):
            await ConfluentTransport(closed, open_s=1.5).open()
        assert time.monotonic() - started < 4
    with pytest.raises(TransportError, match=r"does the listener want TLS or SASL|SSL_CAFILE"):
        await ConfluentTransport(kafka, open_s=3, security={"security.protocol": "SSL"}).open()
    monkeypatch.setenv("CHOREO_KAFKA_GROUP_PROTOCOL", "hunter2")
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_GROUP_PROTOCOL") as caught:
        ConfluentTransport(kafka)
    assert "hunter2" not in str(caught.value)


def test_settings_are_mapped_to_librdkafka(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that set aiokafka's trust set this one's; host names are verified unless told otherwise."""
    for name, value in {
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISM": "SCRAM-SHA-512",
        "SASL_USERNAME": "u",
        "SASL_PASSWORD": "p",
        "GROUP_INSTANCE_ID": "one",
        "SESSION_TIMEOUT_MS": "9000",
    }.items():
        monkeypatch.setenv(f"CHOREO_KAFKA_{name}", value)
    assert security_arguments(KafkaSecurity()) == {
        "security.protocol": "SASL_SSL",
        "ssl.endpoint.identification.algorithm": "https",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "p",
    }
    lax = security_arguments(KafkaSecurity(ssl_check_hostname=False))
    assert lax["ssl.endpoint.identification.algorithm"] == "none"
    assert ConfluentMembership().arguments() == {"group.protocol": "consumer", "group.instance.id": "one"}
    classic = ConfluentMembership(group_protocol="classic").arguments()
    assert classic["partition.assignment.strategy"] == "cooperative-sticky"
    assert (classic["session.timeout.ms"], classic["heartbeat.interval.ms"]) == (9_000, 3_000)
    monkeypatch.delenv("CHOREO_KAFKA_SASL_PASSWORD")
    with pytest.raises(ConfigurationError, match="CHOREO_KAFKA_SASL_PASSWORD"):
        security_arguments(KafkaSecurity())


def test_missing_package_is_named() -> None:
    """Importing the transport without it says what to install."""
    program = "import sys; sys.modules['confluent_kafka'] = None; import choreo.transports.confluent"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert 'ConfigurationError: this transport needs librdkafka: pip install "choreo[confluent]"' in found.stderr


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_drained_and_widened_while_running(kafka: str, protocol: Literal["classic", "consumer"]) -> None:
    """A partition is drained when all of it was fetched, not before; new partitions are picked up."""
    options: dict[str, Any] = {
        "group_protocol": protocol,
        "consumer_options": {"topic.metadata.refresh.interval.ms": 1_000},
    }
    async with owners(kafka, 1, **options) as (_, (owner,)):
        topic = await topic_of(owner.transport)
        where = TopicPartition(topic, 0)
        await owner.transport.send(values(topic, range(700)))
        await owner.join(topic)
        assert not owner.consumer.drained(where)
        while len(owner.found) < 700:
            assert not owner.consumer.drained(where)
            await owner.fetch()
        await until(lambda: owner.consumer.drained(where), owner)
        await owner.transport.send(values(topic, [1]))
        await until(lambda: len(owner.found) == 701 and owner.consumer.drained(where), owner)
        await owner.transport.widen({topic: 3})
        await owner.transport.widen({topic: 2})
        assert (await owner.transport.topics())[topic].partitions == 3
        await owner.transport.send(values(topic, [5], 2))
        await until(lambda: len(owner.owned) == 3 and len(owner.found) == 702, owner)
        with pytest.raises(TransportError, match="no such topic: absent"):
            await owner.transport.widen({"absent": 2})


async def test_member_that_leaves_may_drain_for_longer_than_its_session(kafka: str) -> None:
    """What it commits at the end of it is taken: it is told to leave only then, and sends heartbeats until then."""
    async with owners(kafka, 1) as (_, (owner,)):
        topic = await topic_of(owner.transport)
        where = TopicPartition(topic, 0)
        await owner.transport.send(values(topic, range(5)))
        await owner.join(topic)
        await until(lambda: len(owner.found) == 5, owner)

        async def drain() -> None:
            await asyncio.sleep(QUICK["session.timeout.ms"] / 1000 + 2)
            await owner.consumer.commit({where: 5})

        owner.drain = drain
        await owner.consumer.close()  # raises what the drain does
        assert not owner.owned


async def test_what_came_in_the_step_of_the_close_is_not_taken_back(kafka: str) -> None:
    """Its owner never heard of it: it is told of an end only where it was told of a beginning."""
    async with owners(kafka, 1) as (_, (owner,)):
        topic = await topic_of(owner.transport)
        await owner.join(topic)
        await until(lambda: owner.owned, owner)
        told = 0

        async def drain() -> None:
            nonlocal told
            told += 1

        owner.drain = drain
        await owner.consumer.revoked([TopicPartition(topic, 99)], lost=False)
        assert told == 0
        await owner.consumer.close()
        assert told == 1


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_topic_deleted_while_running_is_an_error_that_says_so(
    kafka: str, protocol: Literal["classic", "consumer"]
) -> None:
    """It names the topic, and nothing hangs: neither fetch, nor commit, nor close."""
    options: dict[str, Any] = {
        "group_protocol": protocol,
        "consumer_options": {"topic.metadata.refresh.interval.ms": 1_000},
    }
    async with owners(kafka, 1, **options) as (_, (owner,)):
        topic = await topic_of(owner.transport)
        await owner.transport.send(values(topic, [1]))
        await owner.join(topic)
        await until(lambda: owner.found, owner)
        client = AdminClient({"bootstrap.servers": kafka})  # an answer needs it alive
        for answer in client.delete_topics([topic]).values():
            await asyncio.wrap_future(answer)
        with pytest.raises(TransportError, match=f"{topic}.*no such topic"):
            await until(lambda: False, owner, within_s=20)
        started = time.monotonic()
        await owner.consumer.close()
        assert time.monotonic() - started < 10


async def test_loop_is_free_while_records_are_sent_and_read(kafka: str) -> None:
    """40,000 records out and in; a tick of 5 ms is never late by much."""
    async with owners(kafka, 1) as (_, (owner,)):
        topic = await topic_of(owner.transport, 4)
        await owner.join(topic)
        lags: list[float] = []

        async def tick() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.005)
                lags.append(time.monotonic() - before - 0.005)

        ticking = asyncio.create_task(tick())
        for _ in range(8):
            await owner.transport.send([ProducerRecord(topic, b"%d" % n, b"x" * 400, ()) for n in range(5_000)])
        await until(lambda: len(owner.found) == 40_000, owner)
        ticking.cancel()
        lags.sort()
        assert lags[int(len(lags) * 0.99)] < 0.1
        assert lags[-1] < 0.5


async def test_retained_partitions_flow_while_one_member_joins(kafka: str) -> None:
    """Cooperative: `assigned` of the newcomer waits, and the other goes on with what it keeps."""
    async with owners(kafka, 2) as (_, (one, two)):
        topic = await topic_of(one.transport, 4)
        await one.join(topic)
        await until(lambda: len(one.owned) == 4, one)
        await two.join(topic)
        await until(lambda: len(two.owned) == 2, one, two)
        kept = set(one.owned)
        assert len(kept) == 2
        for where in [*one.owned, *two.owned]:
            await one.transport.send(values(topic, [where.partition], where.partition))
        await until(lambda: len(one.found) + len(two.found) == 4, one, two)
        assert {TopicPartition(each.topic, each.partition) for each in one.found} == kept


async def test_position_of_an_offset_out_of_range_says_what_was_lost(kafka: str) -> None:
    """Not a reset; and a stranger's offset is not committed."""
    async with owners(kafka, 1) as (group, (owner,)):
        topic = await topic_of(owner.transport)
        await owner.transport.send(values(topic, range(3)))
        await owner.join(topic)
        await until(lambda: len(owner.found) == 3, owner)
        where = TopicPartition(topic, 0)
        await owner.consumer.commit({where: 50})
        with pytest.raises(TransportError, match=rf"group '{group}' is at offset 50, but the log ends at 3"):
            await owner.consumer.position(where, "earliest")
        with pytest.raises(TransportError, match="not assigned to this member"):
            await owner.consumer.commit({TopicPartition(topic, 1): 0})
        owner.consumer.seek(where, 50)
        with pytest.raises(TransportError, match="is at offset 50, but the log ends at 3"):
            await until(lambda: False, owner, within_s=10)


async def test_topics_that_are_refused_are_named(kafka: str, caplog: pytest.LogCaptureFixture) -> None:
    """With the broker's reason; and no payload is logged on the way."""
    caplog.set_level(logging.DEBUG)
    transport, name = ConfluentTransport(kafka), f"topic-{uuid4()}"
    spec = TopicSpec(name, 3, 1, (("cleanup.policy", "compact"), ("retention.ms", "1000")))
    await transport.create_topics([spec])
    assert (await transport.topics())[name] == spec
    with pytest.raises(TransportError, match=rf"{name}-2.*INVALID_REPLICATION_FACTOR"):
        await transport.create_topics([TopicSpec(f"{name}-2", 1, 9)])
    await transport.send([ProducerRecord(name, b"k", b"hunter2", ())])
    assert len(await transport.scan([name], since_ms=0)) == 1
    await transport.close()
    assert "hunter2" not in caplog.text
