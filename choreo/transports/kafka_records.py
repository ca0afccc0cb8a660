"""aiokafka's record batches, where its fast path refuses what a Kafka log may hold. Seen in aiokafka 0.14.0.

Private API like kafka_client.py, and held by the same contract test.
"""

from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from aiokafka import AIOKafkaConsumer, errors
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

from choreo.record import Headers, ProducerRecord


class _LenientBytes(bytearray):
    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _LenientBytes(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> str:
        return super().decode(encoding, "surrogateescape")


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # untyped
    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _LenientBytes(self._buffer)


class _Batch:
    """A batch whose records are decoded by the fast path, and by the lenient one if that fails."""

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch, self._raw = batch, raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:  # an abort marker is read so
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except (UnicodeDecodeError, errors.CorruptRecordException):  # the second one: aiokafka without its C part
            return iter(list(_LenientBatch(self._raw)))


class LenientRecords(_MemoryRecordsPy):  # type: ignore[misc]  # untyped
    """A fetched record set in which a header key that is no UTF-8 becomes text by `surrogateescape`.

    0.14 raises UnicodeDecodeError for it at every fetch (_crecords/default_records.pyx:362). Aborted transactions,
    control records and offsets stay the business of aiokafka's PartitionRecords, which iterates over this.
    """

    def next_batch(self, *_: Any) -> Any:
        """The next batch, decoded tolerantly where the quick way fails."""
        raw = self._next_slice
        batch = super().next_batch()
        return batch if batch is None or raw[self.MAGIC_OFFSET] < 2 else _Batch(batch, raw)


def lenient(consumer: AIOKafkaConsumer) -> None:
    """Let this started consumer, and no other of the process, read record sets through `LenientRecords`.

    The fetcher takes the class from its module's globals (0.14: fetcher.py:810); so it is given the same code with
    one global replaced, rather than patching the module for everybody.
    """
    code = Fetcher._proc_fetch_request
    scope = {**code.__globals__, "MemoryRecords": LenientRecords}
    function = FunctionType(code.__code__, scope, code.__name__, code.__defaults__, code.__closure__)
    consumer._fetcher._proc_fetch_request = MethodType(function, consumer._fetcher)


class _RawKey(str):
    """A header key that encodes to the bytes it was read from."""

    def encode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> bytes:
        return super().encode(encoding, "surrogateescape")


class RawBatch(BatchBuilder):  # type: ignore[misc]  # untyped
    """A batch for records that `AIOKafkaProducer.send` refuses, although they came from a log: see `is_raw`.

    The C builder takes no subclass of str, so this is the Python one, which 0.14 accepts everywhere but in
    `_set_producer_state` (message_accumulator.py:113).
    """

    def __init__(self) -> None:
        super().__init__(1, 0)
        self._builder = _DefaultRecordBatchBuilderPy(
            2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0, batch_size=1 << 30
        )

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)

    def add(self, record: ProducerRecord) -> None:
        """Append one record; call `close` after the last one, else the producer adds its own."""
        headers = [(_RawKey(key), value) for key, value in record.headers]
        self.append(timestamp=None, key=record.key, value=record.value, headers=headers)


def is_raw(record: ProducerRecord) -> bool:
    """Whether it needs a `RawBatch`: a header key that is no UTF-8, or neither key nor value (producer.py:475)."""
    return (record.key is None and record.value is None) or _has_raw_key(record.headers)


def _has_raw_key(headers: Headers) -> bool:
    for key, _ in headers:
        if not key.isascii() and any("\udc80" <= letter <= "\udcff" for letter in key):
            return True
    return False
