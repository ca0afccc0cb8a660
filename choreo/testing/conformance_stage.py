"""What the conformance suites play on: tests by guarantee, members of a group, and who is told what."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from choreo.ports import Consumer, Start, TopicSpec, Transport
from choreo.record import ProducerRecord, Record, TopicPartition

_Test = TypeVar("_Test", bound=Callable[..., Any])


def needs(guarantee: str) -> Callable[[_Test], _Test]:
    """A test for adapters that declare `guarantee`; the others' classes do not have it."""

    def mark(test: _Test) -> _Test:
        test.__dict__["needs"] = guarantee
        return test

    return mark


class Conformance:
    """Drops, when a class is made, the tests of what it does not declare in `guarantees`."""

    guarantees: ClassVar[frozenset[Any]] = frozenset()

    def __init_subclass__(cls) -> None:
        """Hide what is not declared from pytest, which collects callables."""
        super().__init_subclass__()
        if "guarantees" not in cls.__dict__:  # the suite itself
            return
        for name in dir(cls):
            needed = getattr(getattr(cls, name), "needs", None)
            if name.startswith("test_") and needed is not None and needed not in cls.guarantees:
                setattr(cls, name, None)


class Member:
    """One member of a group: an `Assignment` that seeks where told, if told, and checks that it is told in order."""

    def __init__(self, owners: dict[TopicPartition, "Member"], start: Start | None) -> None:
        self.consumer: Consumer
        self.owned: set[TopicPartition] = set()
        self.found: list[Record] = []
        self.wrong: list[str] = []
        self._owners = owners
        self._start = start

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Take them, unless another member was not told yet that it lost them."""
        self.owned.update(partitions)
        for partition in partitions:
            if partition in self._owners:
                self.wrong.append(f"{partition} was assigned before its owner heard that it is revoked")
            self._owners[partition] = self
            if self._start is not None:
                self.consumer.seek(partition, await self.consumer.position(partition, self._start))

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Give them up."""
        for partition in partitions:
            if partition not in self.owned:
                self.wrong.append(f"{partition} was revoked from a member that has not got it")
            if lost:
                self.wrong.append(f"{partition} was lost, though its owner was alive")
            self._owners.pop(partition, None)
        self.owned.difference_update(partitions)

    async def fetch(self, wait_s: float = 0.1) -> list[Record]:
        """Fetch once; nothing may come of a partition that is not ours."""
        records = list(await self.consumer.fetch(records_max=100, wait_s=wait_s))
        strangers = {str(where(each)) for each in records} - {str(each) for each in self.owned}
        if strangers:
            self.wrong.append(f"records of {strangers}, not assigned")
        self.found += records
        return records


class Stage:
    """A transport, a group, and its members, closed at the end; nothing told out of order is tolerated."""

    def __init__(self, transport: Transport, within_s: float) -> None:
        self.transport = transport
        self.group = f"group-{uuid4()}"
        self.members: list[Member] = []
        self._within_s = within_s
        self._owners: dict[TopicPartition, Member] = {}

    async def topic(self, partitions: int = 1) -> str:
        """A new topic."""
        name = f"topic-{uuid4()}"
        await self.transport.create_topics([TopicSpec(name, partitions)])
        return name

    async def join(self, topic: str, start: Start | None = "earliest") -> Member:
        """A new member of the group."""
        member = Member(self._owners, start)
        member.consumer = await self.transport.consumer(self.group, [topic], member)
        self.members.append(member)
        return member

    async def leave(self, member: Member) -> None:
        """A member leaves, and says so."""
        self.members.remove(member)
        await member.consumer.close()
        assert not member.owned, f"closed without `revoked` of {member.owned}"
        assert not member.wrong, member.wrong

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Let every member fetch until the condition holds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._within_s):
                while not condition():
                    await asyncio.gather(*(member.fetch() for member in self.members))
        assert condition(), f"not within {self._within_s:g} s: {what}"

    async def send(self, topic: str, numbers: Iterable[int], key: bytes | None = b"k") -> None:
        """Send numbers as values."""
        await self.transport.send([ProducerRecord(topic, key, b"%d" % number, ()) for number in numbers])


def where(record: Record) -> TopicPartition:
    """The partition a record is of."""
    return TopicPartition(record.topic, record.partition)
