"""Retention of the embedded log: old records go, and a group that has not read them is told."""

import pytest

from choreo.errors import TransportError
from choreo.ports import TopicSpec
from choreo.record import ProducerRecord, TopicPartition
from choreo.sqlite.database import Database
from choreo.testing import VirtualClock
from choreo.transports.embedded import EmbeddedTransport
from choreo.transports.embedded.consumer import RETENTION_CHECK_S


class Ignore:
    """An Assignment that does nothing."""

    async def assigned(self, partitions: object) -> None:
        """Nothing."""

    async def revoked(self, partitions: object, *, lost: bool) -> None:
        """Nothing."""


async def test_records_older_than_retention_are_deleted_and_never_skipped_silently() -> None:
    """A young record stays; a committed offset below what is kept is an error and no fresh start."""
    clock = VirtualClock()
    transport = EmbeddedTransport(Database(":memory:"), clock)
    await transport.open()
    await transport.create_topics([TopicSpec("teas", 1, 1, (("retention.ms", "3600000"),)), TopicSpec("cups", 1)])
    teas = TopicPartition("teas", 0)
    member = await transport.consumer("kitchen", ["teas", "cups"], Ignore())
    await member.fetch(records_max=1, wait_s=0)
    await member.commit({teas: 0})
    old = [ProducerRecord(topic, b"k", b"old", ()) for topic in ("teas", "cups")]
    await transport.send(old)
    clock.move_to(clock.now_s() + 3600 + RETENTION_CHECK_S)
    await transport.send([ProducerRecord("teas", b"k", b"young", ())])
    await member.fetch(records_max=1, wait_s=0)
    kept = await transport.scan(["teas", "cups"], since_ms=0)
    assert [(record.topic, record.value) for record in kept] == [("cups", b"old"), ("teas", b"young")]
    with pytest.raises(TransportError, match="deleted before they were handled"):
        await member.position(teas, "earliest")
    await member.close()
    await transport.close()
