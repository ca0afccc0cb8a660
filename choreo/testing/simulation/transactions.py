"""Transactions on the simulated log, fenced by input partition as on aiokafka."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

from choreo.errors import LeaseLost, TransportError
from choreo.ports import LogCommit
from choreo.record import Record, TopicPartition
from choreo.testing.simulation.log import Fenced
from choreo.testing.simulation.process import Process


class SimulatedTransactions:
    """`Transactions` of one group: a transactional id an input partition, as on aiokafka."""

    def __init__(self, process: Process, group: str) -> None:
        self._process = process
        self._cluster = process.world.cluster
        self._log = self._cluster.log
        self._group = group
        self._epochs: dict[TopicPartition, int] = {}

    def transactional_id(self, partition: TopicPartition) -> str:
        """Whose InitProducerId fences the former owner."""
        return f"{self._group}.{partition}"

    async def fence(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """As the port says."""
        for id_ in partitions:
            self._epochs.pop(id_, None)
        for id_ in partitions:
            self._epochs[id_] = await self._process.call(
                "fence", partial(self._cluster.init_producer, self.transactional_id(id_)), to="broker", writes=True
            )
        return {id_: self._epochs[id_] for id_ in partitions}

    async def commit(self, parts: Mapping[TopicPartition, LogCommit]) -> Mapping[TopicPartition, Exception | None]:
        """As the port says, one transaction a partition."""
        return {id_: await self._commit(id_, part) for id_, part in parts.items()}

    async def _commit(self, partition: TopicPartition, part: LogCommit) -> Exception | None:
        epoch, cluster, name = self._epochs.get(partition), self._cluster, self.transactional_id(partition)
        if epoch is None:
            return TransportError(f"{partition} is not held: fence it first")
        call = self._process.call
        try:
            transaction = await call(
                "begin", lambda: self._log.begin(name, epoch, cluster.loop.now_s), to="broker", writes=True
            )
            if part.records:
                await call(
                    "produce",
                    lambda: cluster.append(self._process, part.records, (name, epoch, transaction)),
                    to="broker",
                    writes=True,
                )
            if part.offset is not None:
                offset = part.offset

                def add() -> None:
                    self._log.begin(name, epoch, cluster.loop.now_s).offsets[self._group, partition] = offset

                await call("add offsets", add, to="broker", writes=True)
            await call("end", lambda: cluster.end(self._process, name, epoch), to="broker", writes=True)
        except Fenced:
            self._epochs.pop(partition, None)
            return LeaseLost(f"a newer owner has {partition} of {self._group}, or the broker ended its transaction")
        except TransportError as error:
            self._epochs.pop(partition, None)
            return error
        return None

    async def give_up(self, partitions: Sequence[TopicPartition]) -> None:
        """Let go of them."""
        for id_ in partitions:
            self._epochs.pop(id_, None)

    async def read(self, partition: TopicPartition, offset: int) -> AsyncIterator[Sequence[Record]]:
        """To the end as it is now; what is open is waited for."""
        log = self._log.partitions[partition]
        end = len(log.entries)
        while log.stable_end() < end:  # noqa: ASYNC110 - as a client polls
            await asyncio.sleep(0.1)
        records, _ = log.committed(offset, 10**9)
        yield [record for record in records if record.offset < end]

    async def close(self) -> None:
        """Nothing to disconnect from."""
