"""Faults of the client library, put back where choreo contains them; numbers as in docs/aiokafka-faults.md."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from choreo.errors import ChoreoError, LeaseLost, TransportError
from choreo.ports import LogCommit, Start
from choreo.record import Record, TopicPartition
from choreo.testing.simulation import cluster
from choreo.testing.simulation.log import Fenced
from choreo.testing.simulation.transactions import SimulatedTransactions
from choreo.testing.simulation.transport import SimulatedConsumer
from tests.simulation.mutants.mutant import Mutant


def an_id_a_member(patch: pytest.MonkeyPatch) -> None:
    """Fault 1: nobody stops the one that lost the partition."""
    patch.setattr(
        SimulatedTransactions, "transactional_id", lambda self, partition: f"{self._process.name}.{partition}"
    )


def unread_offset_is_none(patch: pytest.MonkeyPatch) -> None:
    """Fault 2: an error is read as "nothing was ever committed"."""
    real = SimulatedConsumer.position

    async def position(self: SimulatedConsumer, partition: TopicPartition, start: Start) -> int:
        try:
            return await real(self, partition, start)
        except TransportError:
            return 0

    patch.setattr(SimulatedConsumer, "position", position)


def abort_does_not_abort(patch: pytest.MonkeyPatch) -> None:
    """Fault 3: the producer is used on, and its next commit publishes what was aborted."""
    _keep_producers(patch)


def commit_over_a_failed_send(patch: pytest.MonkeyPatch) -> None:
    """Fault 4: the transaction is committed without the records that were not written."""

    async def commit(self: SimulatedTransactions, partition: TopicPartition, part: LogCommit) -> Exception | None:
        epoch, name, log = self._epochs.get(partition), self.transactional_id(partition), self._log
        if epoch is None:
            return TransportError("not held")
        call, loop = self._process.call, self._cluster.loop
        try:
            open_ = await call("begin", lambda: log.begin(name, epoch, loop.now_s), to="broker", writes=True)
            try:
                await call(
                    "produce",
                    lambda: self._cluster.append(self._process, part.records, (name, epoch, open_)),
                    to="broker",
                    writes=True,
                )
            except TransportError:
                pass  # its future was not looked at
            if part.offset is not None:
                open_.offsets[self._group, partition] = part.offset
            await call("end", lambda: self._cluster.end(self._process, name, epoch), to="broker", writes=True)
        except Fenced:
            self._epochs.pop(partition, None)
            return LeaseLost("fenced")
        except TransportError as error:
            self._epochs.pop(partition, None)
            return error
        return None

    patch.setattr(SimulatedTransactions, "_commit", commit)


def late_end_is_not_fenced(patch: pytest.MonkeyPatch) -> None:
    """Fault 6: after an error the transaction is aborted, and the next one has the same epoch."""
    _keep_producers(patch, abort=True)


def _keep_producers(patch: pytest.MonkeyPatch, *, abort: bool = False) -> None:
    """A partition that is fenced again by who has it keeps its epoch, and what it had open."""
    commit, fence = SimulatedTransactions._commit, SimulatedTransactions.fence

    async def kept(self: SimulatedTransactions, partition: TopicPartition, part: LogCommit) -> Exception | None:
        epoch = self._epochs.get(partition)
        error = await commit(self, partition, part)
        if isinstance(error, ChoreoError) and not isinstance(error, LeaseLost) and epoch is not None:
            self._epochs[partition] = epoch
            state = self._log.producers[self.transactional_id(partition)]
            if abort and state.epoch == epoch:
                self._log._end(state, committed=False)
        return error

    async def again(self: SimulatedTransactions, partitions: Any) -> Any:
        new = [id_ for id_ in partitions if id_ not in self._epochs]
        await fence(self, new)
        return {id_: self._epochs[id_] for id_ in partitions}

    async def to_what_is_stable(
        self: SimulatedTransactions, partition: TopicPartition, offset: int
    ) -> AsyncIterator[Sequence[Record]]:
        yield self._log.partitions[partition].committed(offset, 1_000_000)[0]

    patch.setattr(SimulatedTransactions, "_commit", kept)
    patch.setattr(SimulatedTransactions, "fence", again)
    patch.setattr(SimulatedTransactions, "read", to_what_is_stable)


def who_hangs_stays_a_member(patch: pytest.MonkeyPatch) -> None:
    """Fault 7: the guard against a consumer that does not fetch is dead, and heartbeats go on by themselves."""
    real = SimulatedConsumer.__init__

    def init(self: SimulatedConsumer, *arguments: Any) -> None:
        real(self, *arguments)
        self._beating.cancel()
        self._beating = asyncio.get_running_loop().create_task(self._beat(), context=self._world.context)

    patch.setattr(SimulatedConsumer, "__init__", init)


def rounds_do_not_wait_for_drains(patch: pytest.MonkeyPatch) -> None:
    """Fault 8: the rebalance timeout is shorter than a drain, so there are two owners."""
    patch.setattr(cluster, "ROUND_S", 1.0)


CLIENTS = (
    Mutant("fault 1: an id a member", "a transactional id a partition", "parcels", "changelog", an_id_a_member),
    Mutant(
        "fault 2: unread offset",
        "an offset that cannot be read is an error",
        "parcels",
        "outbox",
        unread_offset_is_none,
    ),
    Mutant(
        "fault 3: abort that does not abort",
        "no producer outlives an error",
        "parcels",
        "changelog",
        abort_does_not_abort,
    ),
    Mutant(
        "fault 4: commit over a failed send",
        "every send is looked at",
        "parcels",
        "changelog",
        commit_over_a_failed_send,
    ),
    Mutant(
        "fault 6: late EndTxn",
        "a new epoch after an error",
        "parcels",
        "changelog",
        late_end_is_not_fenced,
        members=1,
        faults={"write_late": 0.03},
    ),
    Mutant("fault 7: dead guard", "who does not fetch is evicted", "parcels", "outbox", who_hangs_stays_a_member),
    Mutant("fault 8: two owners", "rounds wait for drains", "parcels", "outbox", rounds_do_not_wait_for_drains),
)
