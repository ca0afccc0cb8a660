"""What every `Transport` must do, as tests that its author inherits."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar, Literal

from choreo.errors import TransportError
from choreo.ports import TopicSpec, Transport
from choreo.record import Headers, ProducerRecord, Record, TopicPartition
from choreo.testing.conformance_stage import Conformance, Stage, needs, where

TransportGuarantee = Literal["raw_headers", "start_at_time", "groups_share"]
"""What not every log can do: header values that are null and keys that are no UTF-8; a start at a time; partitions
of a group dealt out to several members."""


class TransportConformance(Conformance):
    """Inherit it in a class `Test...`, declare `guarantees` and write `transport`; pytest-asyncio runs it.

    Attributes:
        within_s: How long a group may take to be dealt out anew.
    """

    guarantees: ClassVar[frozenset[TransportGuarantee]]
    within_s: ClassVar[float] = 20.0

    def transport(self) -> AbstractAsyncContextManager[Transport]:
        """An open transport, closed with the block; groups and topics of the tests have names of their own."""
        raise NotImplementedError

    @asynccontextmanager
    async def stage(self) -> AsyncIterator[Stage]:
        """What one test plays on."""
        async with self.transport() as transport:
            stage = Stage(transport, self.within_s)
            try:
                yield stage
            finally:
                for member in stage.members.copy():
                    await stage.leave(member)

    async def test_what_is_acknowledged_is_read_in_order(self) -> None:
        """Several sends of one key, read by a scan at once and by a member: all, in order, offsets ascending."""
        async with self.stage() as stage:
            topic, numbers = await stage.topic(3), range(60)
            for begin in range(0, 60, 20):
                await stage.send(topic, numbers[begin : begin + 20])
            scanned = await stage.transport.scan([topic], since_ms=0)
            assert _numbers(scanned) == list(numbers), "scanned"
            member = await stage.join(topic)
            await stage.until(lambda: len(member.found) >= 60, "60 records")
            assert _numbers(member.found) == list(numbers), "fetched"
            offsets = [each.offset for each in member.found]
            assert offsets == sorted(set(offsets)), "offsets do not ascend"
            assert len({each.partition for each in member.found}) == 1, "one key, several partitions"

    async def test_a_key_chooses_its_partition_as_javas_client_does(self) -> None:
        """Vectors of Kafka's own UtilsTest, and a partition that is named outright."""
        async with self.stage() as stage:
            topic = await stage.topic(7)
            records = [ProducerRecord(topic, key, b"", ()) for key in MURMUR2]
            await stage.transport.send([*records, ProducerRecord(topic, b"named", b"", (), 5)])
            found = {each.key: each.partition for each in await stage.transport.scan([topic], since_ms=0)}
            expected = {key: (hashed & 0x7FFFFFFF) % 7 for key, hashed in MURMUR2.items()}
            assert found == {**expected, b"named": 5}
            mates = {key for key, number in found.items() if number == expected[b"21"]}
            assert {each.key for each in await stage.transport.scan([topic], since_ms=0, key=b"21")} == mates

    async def test_records_come_back_as_they_were_sent(self) -> None:
        """Null and empty keys and values, headers twice and empty ones."""
        await self._round_trip((("a", b"1"), ("a", b""), ("ü", b"\xff\x00")))

    @needs("raw_headers")
    async def test_headers_of_any_bytes_come_back(self) -> None:
        """A null value, and a key that is no UTF-8."""
        await self._round_trip((("null", None), (b"\xff\xfe".decode("utf-8", "surrogateescape"), b"x")))

    async def _round_trip(self, headers: Headers) -> None:
        async with self.stage() as stage:
            topic = await stage.topic()
            pairs = [(b"k", b"v"), (b"k", None), (None, b"v"), (None, None), (b"", b"")]
            await stage.transport.send([ProducerRecord(topic, key, value, headers) for key, value in pairs])
            member = await stage.join(topic)
            await stage.until(lambda: len(member.found) >= len(pairs), "all records")
            assert [(each.key, each.value) for each in member.found] == pairs
            assert [tuple(each.headers) for each in member.found] == [headers] * len(pairs)
            assert all(abs(each.timestamp_ms - time.time() * 1000) < 60_000 for each in member.found), "timestamps"

    async def test_one_member_gets_every_partition(self) -> None:
        """And a second group gets them as well."""
        async with self.stage() as stage:
            topic = await stage.topic(4)
            await stage.transport.send([ProducerRecord(topic, None, b"%d" % n, (), n % 4) for n in range(40)])
            for group in (stage.group, f"other-{stage.group}"):
                stage.group = group
                member = await stage.join(topic)
                await stage.until(lambda member=member: len(member.found) >= 40, "40 records")  # type: ignore[misc]
                assert sorted(_numbers(member.found)) == list(range(40))
                await stage.leave(member)

    @needs("groups_share")
    async def test_members_share_and_a_leaving_ones_partitions_are_taken_over(self) -> None:
        """Two members have half each, nothing is read by nobody, and in the end one has all again."""
        async with self.stage() as stage:
            topic = await stage.topic(4)
            one = await stage.join(topic)
            await stage.until(lambda: len(one.owned) == 4, "the only member has all")
            two = await stage.join(topic)
            await stage.until(lambda: len(one.owned) == len(two.owned) == 2, "half each")
            assert not one.owned & two.owned
            await stage.transport.send([ProducerRecord(topic, None, b"%d" % n, (), n % 4) for n in range(40)])
            await stage.until(lambda: len({*_numbers(one.found), *_numbers(two.found)}) == 40, "40 records")
            assert {each.partition for each in one.found} == {each.partition for each in one.owned}
            await stage.leave(one)
            await stage.until(lambda: len(two.owned) == 4, "the partitions of the one that left")
            await stage.send(topic, [99])
            await stage.until(lambda: 99 in _numbers(two.found), "a record sent afterwards")

    @needs("groups_share")
    async def test_a_member_without_partitions_has_joined_too(self) -> None:
        """Before its first fetch it need not have; a spare one is as ready as the one that has them all."""
        async with self.stage() as stage:
            topic = await stage.topic()
            members = [await stage.join(topic) for _ in range(2)]
            await stage.until(lambda: all(member.consumer.joined for member in members), "both have joined")
            await stage.until(lambda: sum(len(member.owned) for member in members) == 1, "one partition for two")

    async def test_ends_are_where_the_next_records_go(self) -> None:
        """Of every partition asked for, empty ones too, whether its records were fetched or not."""
        async with self.stage() as stage:
            topic = await stage.topic(2)
            zero, one = (TopicPartition(topic, number) for number in range(2))
            member = await stage.join(topic, None)
            await stage.until(lambda: len(member.owned) == 2, "an assignment")
            assert await member.consumer.ends([]) == {}
            assert await member.consumer.ends([zero, one]) == {zero: 0, one: 0}
            await stage.transport.send([ProducerRecord(topic, None, b"%d" % n, (), 1) for n in range(3)])
            assert await member.consumer.ends([zero, one]) == {zero: 0, one: 3}

    async def test_nothing_is_delivered_before_seek(self) -> None:
        """An assigned partition is paused and has no position; `resume` alone does not give it one."""
        async with self.stage() as stage:
            topic = await stage.topic()
            await stage.send(topic, range(5))
            member = await stage.join(topic, None)
            await stage.until(lambda: member.owned, "an assignment")
            member.consumer.resume(TopicPartition(topic, 0))
            for _ in range(3):
                assert await member.fetch() == []
            member.consumer.seek(TopicPartition(topic, 0), 2)
            await stage.until(lambda: len(member.found) >= 3, "records from 2 on")
            assert _numbers(member.found) == [2, 3, 4]

    async def test_position_is_the_committed_offset_or_an_end_of_the_log(self) -> None:
        """Without a commit where `start` points; with one that, whatever `start` says, for the next member too."""
        async with self.stage() as stage:
            topic = await stage.topic()
            await stage.send(topic, range(6))
            partition = TopicPartition(topic, 0)
            for expected in (None, 4):
                member = await stage.join(topic, None)
                await stage.until(lambda member=member: member.owned, "an assignment")  # type: ignore[misc]
                where = [await member.consumer.position(partition, start) for start in ("earliest", "latest")]
                assert where == ([0, 6] if expected is None else [expected, expected])
                await member.consumer.commit({partition: 4})
                assert await member.consumer.position(partition, "latest") == 4
                await stage.leave(member)

    @needs("start_at_time")
    async def test_position_by_time_is_the_first_record_not_older(self) -> None:
        """And the end, if there is none."""
        async with self.stage() as stage:
            topic = await stage.topic()
            await stage.send(topic, range(3))
            await asyncio.sleep(0.02)
            await stage.send(topic, range(3, 6))
            later_ms = (await stage.transport.scan([topic], since_ms=0))[3].timestamp_ms
            member = await stage.join(topic, None)
            await stage.until(lambda: member.owned, "an assignment")
            times = (0, later_ms, later_ms + 3_600_000)
            assert [await member.consumer.position(TopicPartition(topic, 0), at) for at in times] == [0, 3, 6]

    async def test_a_committed_offset_outside_of_the_log_is_an_error(self) -> None:
        """It is never taken for "nothing committed", which would lose or repeat records."""
        async with self.stage() as stage:
            topic = await stage.topic()
            await stage.send(topic, range(3))
            member = await stage.join(topic, None)
            await stage.until(lambda: member.owned, "an assignment")
            await member.consumer.commit({TopicPartition(topic, 0): 50})
            try:
                found = await member.consumer.position(TopicPartition(topic, 0), "earliest")
            except TransportError:
                return
            raise AssertionError(f"the group stands at 50, the log ends at 3, and position said {found}")

    async def test_pause_and_resume_lose_and_repeat_nothing(self) -> None:
        """Whatever had been fetched ahead: nothing comes while paused, and after it the rest in order."""
        async with self.stage() as stage:
            topic = await stage.topic(2)
            await stage.transport.send([ProducerRecord(topic, None, b"%d" % n, (), n % 2) for n in range(300)])
            member = await stage.join(topic)
            paused = TopicPartition(topic, 0)
            while any(count < 150 for count in map(len, _by_partition(member.found, 2))):
                before = len(member.found)
                await stage.until(lambda before=before: len(member.found) > before, "more records")  # type: ignore[misc]
                member.consumer.pause(paused)
                await stage.send(topic, [0], None)  # may end anywhere; not counted below
                quiet = [each for each in await member.fetch() if where(each) == paused]
                assert not quiet, "records of a paused partition"
                member.consumer.resume(paused)
            for number, records in enumerate(_by_partition(member.found, 2)):
                offsets = [each.offset for each in records]
                assert offsets == list(range(len(offsets))), f"partition {number}: {offsets}"

    async def test_topics_are_created_once(self) -> None:
        """An existing one is left as it is."""
        async with self.stage() as stage:
            name = await stage.topic(3)
            await stage.send(name, [1])
            await stage.transport.create_topics([TopicSpec(name, 5), TopicSpec(f"{name}-2", 1)])
            known = await stage.transport.topics()
            assert (known[name].partitions, known[f"{name}-2"].partitions) == (3, 1)
            assert _numbers(await stage.transport.scan([name], since_ms=0)) == [1]

    async def test_a_scan_is_bounded(self) -> None:
        """By its time, its topics and the end of the log as it was; it ends on an empty topic too."""
        async with self.stage() as stage:
            topic, other, empty = await stage.topic(2), await stage.topic(), await stage.topic()
            await stage.send(other, [100])
            await stage.send(topic, range(3))
            await asyncio.sleep(0.02)
            await stage.send(topic, range(3, 6))
            found = await stage.transport.scan([topic], since_ms=0)
            assert _numbers(found) == list(range(6))
            late = await stage.transport.scan([topic, empty], since_ms=found[3].timestamp_ms)
            assert _numbers(late) == [3, 4, 5]
            assert not await stage.transport.scan([empty], since_ms=0)


MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def _numbers(records: Iterable[Record]) -> list[int]:
    return [int(each.value or b"-1") for each in records]


def _by_partition(records: Iterable[Record], partitions: int) -> list[list[Record]]:
    found: list[list[Record]] = [[] for _ in range(partitions)]
    for each in records:
        found[each.partition].append(each)
    return found
