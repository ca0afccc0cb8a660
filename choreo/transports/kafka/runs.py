"""Fetched records in lists, decoded when they are asked for; aiokafka hands over each by three calls of its own.

Private API of aiokafka 0.14.0, as in kafka/client.py, and held by the same contract test.
"""

from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.record import Record, new
from choreo.transports.kafka.records import BATCH_BYTES_MAX, LenientRecords, UnreadableBatch

_FIELDS = attrgetter("offset", "key", "value", "headers", "timestamp")


class _Run(NamedTuple):
    """Some records of a batch, which PartitionRecords takes for one: `offset` is that of the last."""

    offset: int
    fields: list[tuple[int, bytes | None, bytes | None, list[Any], int]]


class _RunsOfBatch:
    """A batch, as PartitionRecords looks at it, iterated over by the run."""

    def __init__(self, batch: Any, runs: "_Runs") -> None:
        self._batch, self._runs = batch, runs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:  # an abort marker is read so
        return next(self._batch)

    def __iter__(self) -> Iterator[_Run]:
        fields = map(_FIELDS, self._batch)
        while found := list(islice(fields, self._runs.records_max)):
            yield _Run(found[-1][0], found)


class _Runs:
    """A record set in runs of at most `records_max`, which may change between two of them; None: of whole batches."""

    def __init__(self, records: LenientRecords) -> None:
        self.records = records
        self.records_max: int | None = None

    def has_next(self) -> bool:
        return bool(self.records.has_next())

    def next_batch(self) -> _RunsOfBatch:
        return _RunsOfBatch(self.records.next_batch(), self)


class _PartitionRuns(PartitionRecords):  # type: ignore[misc]  # untyped
    """Records of our own, by the list. What was aborted, control records and offsets stay aiokafka's business.

    Says which partition a batch that cannot be read belongs to, after everything before it was handed out.
    """

    _records: _Runs

    def __init__(self, partition: KafkaPartition, records: LenientRecords, *rest: Any) -> None:
        super().__init__(partition, _Runs(records), *rest)
        self._first_offset: int = self.next_fetch_offset

    def _unpack_records(self) -> Iterator[list[Record]]:
        try:
            yield from super()._unpack_records()
        except Exception as error:
            if self.next_fetch_offset > self._first_offset:
                return  # the next fetch begins with what could not be read, and ends below
            batch = self._records.records.current
            next_offset = None if batch is None else batch.next_offset
            raise UnreadableBatch(self._tp, self.next_fetch_offset, next_offset, error) from error

    def _consumer_record(self, partition: KafkaPartition, run: _Run) -> list[Record]:
        topic, number = partition
        fields, first = run.fields, self.next_fetch_offset
        if fields[0][0] < first:  # a batch comes whole, also where it is asked for from its middle
            fields = [each for each in fields if each[0] >= first]
        found = [
            new(Record, (topic, number, offset, key, value, tuple(headers), timestamp_ms))
            for offset, key, value, headers, timestamp_ms in fields
        ]
        run.fields.clear()  # whose generators wait with it until the next run is asked for
        return found

    @property
    def exhausted(self) -> bool:
        """Whether there are no more."""
        return self._records_iterator is None

    def close(self) -> None:
        """Hand out no more: a generator that is not at its end, and who it is of, are garbage for the collector."""
        self._records_iterator = None

    def take(self, records_max: int | None) -> list[Record]:
        """The next ones, at most `records_max` of them; fewer only when there are no more."""
        found: list[Record] = []
        while records_max is None or len(found) < records_max:
            self._records.records_max = None if records_max is None else records_max - len(found)
            run = next(self, None)
            if run is None:
                break
            found = found + run if found else run
        return found


class _RunResult(FetchResult):  # type: ignore[misc]  # untyped
    """What was fetched of a partition, handed out by the list; `getone` is not for it.

    What of it is left when its partition is paused waits for `resume`; 0.14 drops it there, and fetches it again.
    """

    _partition_records: _PartitionRuns | None

    def __del__(self) -> None:
        if self._partition_records is not None:
            self._partition_records.close()

    def getall(self, max_records: int | None = None) -> list[Record]:
        runs, assignment = self._partition_records, self._assignment
        if runs is None or (assignment.active and assignment.state_value(self._topic_partition).paused):
            return []
        if not self.check_assignment(self._topic_partition):
            runs.close()
            return []
        found = runs.take(max_records)
        self._update_position()
        if runs.exhausted:
            self._partition_records = None
        return found


def lenient(consumer: AIOKafkaConsumer, *, batch_bytes_max: int = BATCH_BYTES_MAX) -> None:
    """Let this started consumer, and no other of the process, read record sets through `LenientRecords`, in lists.

    The fetcher takes the classes from its module's globals (0.14: fetcher.py:810, 1227); so it is given the same code
    with those globals replaced, rather than patching the module for everybody.
    """

    def partition_records(partition: KafkaPartition, records: LenientRecords, *rest: Any) -> PartitionRecords:
        records.batch_bytes_max = batch_bytes_max
        return _PartitionRuns(partition, records, *rest)

    names = {"MemoryRecords": LenientRecords, "PartitionRecords": partition_records, "FetchResult": _RunResult}
    for method in (Fetcher._proc_fetch_request, Fetcher.fetched_records):
        code = method.__code__
        function = FunctionType(code, {**method.__globals__, **names}, code.co_name, method.__defaults__)
        setattr(consumer._fetcher, code.co_name, MethodType(function, consumer._fetcher))
