"""Faults of the worker that the simulation found, each by itself."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from choreo.errors import TransportError
from choreo.ports import CommitResult, Lease
from choreo.record import ProducerRecord, TopicPartition
from tests.unit.test_flushing import Asked, all_said, at_work, desk, until


async def test_an_offset_that_the_broker_did_not_take_is_told_again(tmp_path: Path) -> None:
    """Without another record of the partition: else the group seems to lag for ever."""
    async with at_work(tmp_path, desk()) as found:
        worker, told = found.workers["desk"], []
        commit = worker.consumer.commit

        async def fails_once(offsets: Mapping[TopicPartition, int]) -> None:
            told.append(dict(offsets))
            if len(told) == 1:
                raise TransportError("no answer")
            await commit(offsets)

        worker.consumer.commit = fails_once  # type: ignore[method-assign]
        await found.publish(Asked(who="ann", number=1))
        assert await until(lambda: all_said(found, 1))

        async def tried() -> bool:
            return bool(told)

        assert await until(tried)
        await worker.teller.commit_offsets()
        (partition,) = told[0]
        assert told[1] == told[0]
        assert await worker.consumer.position(partition, "earliest") == 1
        await worker.teller.commit_offsets()
        assert len(told) == 2


async def test_offsets_from_before_a_partition_was_lost_are_not_committed(tmp_path: Path) -> None:
    """Somebody else has committed more meanwhile, even if it is ours again."""
    async with at_work(tmp_path, desk()) as found:
        worker, told = found.workers["desk"], []

        async def commit(offsets: Mapping[TopicPartition, int]) -> None:
            told.append(offsets)

        worker.consumer.commit = commit  # type: ignore[method-assign]
        ((partition, lease),) = worker.leases.items()
        worker.teller._offsets[partition] = lease._replace(epoch=lease.epoch - 1), 0
        await worker.teller.commit_offsets()
        assert told == []
        assert worker.teller._offsets == {}


async def test_a_partition_is_tried_again_although_another_assignment_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one is of other partitions."""
    monkeypatch.setattr("choreo.runtime.holding.AGAIN_S", 0.01)
    async with at_work(tmp_path, desk()) as found:
        worker, tries, go = found.workers["desk"], [], asyncio.Event()
        take, partition = worker.holder._take, next(iter(worker.leases))

        async def fails_first(partitions: Sequence[TopicPartition]) -> None:
            tries.append(list(partitions))
            if len(tries) == 1:
                await go.wait()
                raise TransportError("no answer")
            await take(partitions)

        worker.holder._take = fails_first  # type: ignore[method-assign]
        worker.leases.clear()
        taking = asyncio.create_task(worker.holder.assigned([partition]))
        await asyncio.sleep(0)
        await worker.holder.assigned([])  # another one, while the first is under way
        go.set()
        await taking

        async def taken() -> bool:
            return partition in worker.leases

        assert await until(taken)


async def test_what_was_committed_for_a_lost_partition_is_left_to_its_next_owner(tmp_path: Path) -> None:
    """It sends that behind what came before; we would send it in front."""
    async with at_work(tmp_path, desk()) as found:
        worker = found.workers["desk"]
        sent: list[tuple[int, ProducerRecord]] = []

        async def send(rows: Sequence[tuple[int, ProducerRecord]]) -> None:
            sent.extend(rows)

        worker.outgoing.send = send  # type: ignore[method-assign]
        ((partition, lease),) = worker.leases.items()
        former = Lease(lease.group, partition, lease.epoch - 1, lease.owner)
        result = CommitResult(outbox=[(7, ProducerRecord("said", b"ann", b"{}", ()))])
        await worker.outgoing.send_outbox(result.outbox, (), {partition: former})
        assert sent == []
        await worker.outgoing.send_outbox(result.outbox, (), {partition: lease})
        assert [row for row, _ in sent] == [7]
