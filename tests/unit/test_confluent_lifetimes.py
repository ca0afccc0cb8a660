"""What outlives what in ConfluentTransport: assignments, producers discarded, threads that hang. Without a broker."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from choreo.errors import TransportError
from choreo.record import ProducerRecord, TopicPartition
from choreo.transports.confluent import ConfluentConsumer, ConfluentTransport, calling, succession
from choreo.transports.confluent import producer as sending
from choreo.transports.confluent.calling import Hung
from choreo.transports.confluent.delivery import produce
from choreo.transports.confluent.producer import ConfluentProducer
from choreo.transports.confluent.succession import Succession

NOWHERE = "127.0.0.1:9"
ONE, TWO = TopicPartition("teas", 0), TopicPartition("teas", 1)


class Waiting:
    """An Assignment that takes partitions when it is let."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[TopicPartition]]] = []
        self.go = asyncio.Event()

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(("assigned", list(partitions)))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.told.append(("cancelled", list(partitions)))
            raise

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        self.told.append(("revoked", list(partitions)))


@pytest.fixture
async def waiting() -> Waiting:
    return Waiting()


@pytest.fixture
async def member(waiting: Waiting) -> AsyncIterator[ConfluentConsumer]:
    transport = ConfluentTransport(NOWHERE, security={}, group_protocol="classic", ask_s=0.2)
    consumer = await transport.consumer("kitchen", ["teas"], waiting)
    yield consumer
    await consumer.close()
    await transport.close()


async def test_close_ends_all_assignments_under_way(member: ConfluentConsumer, waiting: Waiting) -> None:
    """Not the last of them only, which waits for those before it: none runs beside what takes its partitions back."""
    takings = [asyncio.create_task(member.assigned(member.grants.grant([each]))) for each in (ONE, TWO)]
    await asyncio.sleep(0.01)
    await member.close()
    assert all(each.done() for each in takings)
    assert waiting.told == [("assigned", [ONE]), ("cancelled", [ONE]), ("revoked", [ONE])]


async def test_partition_that_comes_again_is_assigned_once(member: ConfluentConsumer, waiting: Waiting) -> None:
    """It was taken away before anybody was told of it, and is another assignment now."""
    takings = [asyncio.create_task(member.assigned(member.grants.grant([each]))) for each in (ONE, TWO)]
    await asyncio.sleep(0.01)
    member.grants.withdraw([TWO])
    takings.append(asyncio.create_task(member.assigned(member.grants.grant([TWO]))))
    waiting.go.set()
    await asyncio.gather(*takings)
    assert waiting.told == [("assigned", [ONE]), ("assigned", [TWO])]


@pytest.mark.parametrize("turns", [1, 100])
async def test_send_beside_one_that_failed_is_told_at_once(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it hands its records over, and when all are handed over: it does not wait out its own deadline."""
    handed: list[ProducerRecord] = []

    def handing(kafka: Any, record: ProducerRecord, report: Any) -> None:
        handed.append(record)
        produce(kafka, record, report)

    monkeypatch.setattr(sending, "produce", handing)
    producer = ConfluentProducer({"bootstrap.servers": NOWHERE}, timeout_s=20)
    record = ProducerRecord("teas", b"k", b"v", ())
    other, many = (asyncio.create_task(producer.send([record] * number)) for number in (1, 600))
    for _ in range(turns):
        await asyncio.sleep(0)
    other.cancel()
    began_s = time.monotonic()
    with pytest.raises(TransportError):
        await many
    assert time.monotonic() - began_s < 5
    assert (len(handed) == 601) is (turns == 100), "the rest is not handed to a producer that was discarded"
    await asyncio.gather(other, return_exceptions=True)
    await producer.close()


@pytest.mark.parametrize("ended_first", [True, False])
async def test_thread_that_hangs_leaves_none_behind(ended_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs while all is closed has no successor, which nobody would end."""
    monkeypatch.setattr(calling, "GRACE_S", 0.05)
    producers, back = Succession("kitchen", {"bootstrap.servers": NOWHERE}, lambda: 0, timeout_s=1), threading.Event()
    running = asyncio.create_task(producers.run(back.wait, 0.05))
    await asyncio.sleep(0.01)
    if ended_first:
        producers.end()
    with pytest.raises(Hung):
        await running
    if not ended_first:
        await producers.run(lambda: None, 1)
        producers.end()
    back.set()
    until_s = time.monotonic() + 5
    while any("transactions-kitchen" in each.name for each in threading.enumerate()):
        assert time.monotonic() < until_s, "it is still there"
        await asyncio.sleep(0.01)


class Obedient:
    """A transactional producer that does at once what it is told."""

    def init_transactions(self, timeout_s: float) -> None:
        """Started."""

    def begin_transaction(self) -> None:
        """Begun."""

    def abort_transaction(self, timeout_s: float) -> None:
        """Aborted."""

    def purge(self, **_: bool) -> None:
        """There is nothing."""


async def test_what_comes_back_late_ends_no_transaction_of_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that had hung, and was given up: what it says of its own producer is not said of the next one."""
    monkeypatch.setattr(succession, "made", lambda *_: Obedient())
    producers = Succession("kitchen", {"bootstrap.servers": NOWHERE}, lambda: 0, timeout_s=1)
    first = producers.current()
    producers.begin(first)
    producers.discard(first)
    second = producers.current()
    assert second is not first
    producers.begin(second)
    producers.ended(first)
    assert producers.begun
    for late in (producers.check, producers.begin):
        with pytest.raises(TransportError, match="given up meanwhile"):
            late(first)
    producers.ended(second)
    assert not producers.begun
    producers.end()
