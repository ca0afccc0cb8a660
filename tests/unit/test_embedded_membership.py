"""Membership of the embedded log while a member is busy giving partitions up."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from choreo.ports import TopicSpec
from choreo.record import TopicPartition
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.transports.embedded import EmbeddedTransport, membership


class Slow:
    """An Assignment whose drain takes its time."""

    def __init__(self, drain_s: float) -> None:
        self.held: set[TopicPartition] = set()
        self._drain_s = drain_s

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Take them."""
        self.held.update(partitions)

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Give them up, after a while."""
        await asyncio.sleep(self._drain_s)
        self.held.difference_update(partitions)


async def test_member_that_drains_for_long_stays_a_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes its partitions before it gave them up, though the drain is longer than a member's life."""
    monkeypatch.setattr(membership, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(membership, "MEMBER_S", 0.4)
    transports = [EmbeddedTransport(Database(str(tmp_path / "log.db")), SystemClock()) for _ in range(2)]
    for transport in transports:
        await transport.open()
    await transports[0].create_topics([TopicSpec("teas", 4)])
    slow, other = Slow(1.5), Slow(0)
    first = await transports[0].consumer("kitchen", ["teas"], slow)
    await first.fetch(records_max=1, wait_s=0)
    assert len(slow.held) == 4
    second = await transports[1].consumer("kitchen", ["teas"], other)
    await second.fetch(records_max=1, wait_s=0)

    async def keep_fetching() -> None:
        while len(slow.held) > 2:
            await first.fetch(records_max=1, wait_s=0.02)

    draining = asyncio.create_task(keep_fetching())
    while not draining.done() or len(other.held) < 2:
        await second.fetch(records_max=1, wait_s=0.05)
        assert not slow.held & other.held
    await draining
    assert (len(slow.held), len(other.held)) == (2, 2)
    for member, transport in zip((first, second), transports, strict=True):
        await member.close()
        await transport.close()


class Failing(Slow):
    """One whose drain fails."""

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Raise."""
        raise ValueError("no drain")


async def test_member_whose_drain_fails_leaves_all_the_same(tmp_path: Path) -> None:
    """What it had is free at once, not when it is missed; and nothing wakes it any more."""
    database = Database(str(tmp_path / "log.db"))
    transport = EmbeddedTransport(database, SystemClock())
    await transport.open()
    await transport.create_topics([TopicSpec("teas", 4)])
    first = await transport.consumer("kitchen", ["teas"], Failing(0))
    await first.fetch(records_max=1, wait_s=0)
    with pytest.raises(ValueError, match="no drain"):
        await first.close()
    assert database.on_write == []
    heir = Slow(0)
    second = await transport.consumer("kitchen", ["teas"], heir)
    await second.fetch(records_max=1, wait_s=0)
    assert len(heir.held) == 4
    await second.close()
    await transport.close()
