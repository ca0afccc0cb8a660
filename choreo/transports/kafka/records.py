"""aiokafka's record batches, where its fast path refuses what a Kafka log may hold. Seen in aiokafka 0.14.0.

Private API like kafka/client.py, and held by the same contract test.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

from aiokafka import errors
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy, _DefaultRecordBatchPy
from aiokafka.record.legacy_records import _LegacyRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.record import ProducerRecord, TopicPartition
from choreo.transports.kafka.compression import LZ4, InflatesTooFar, inflate

BATCH_BYTES_MAX = 64 * 1024 * 1024
"""What one batch may be in memory; Java's producers make batches of 16 kB, brokers take 1 MB by default."""

RECORD_OVERHEAD_BYTES = 200
"""What aiokafka's objects for one record take beside its bytes: the smallest record is 7 bytes in a batch."""

_LENGTH_OFFSET = struct.calcsize(">q")
_HEADER_BYTES: int = _DefaultRecordBatchPy.HEADER_STRUCT.size
_CODEC_MASK: int = _DefaultRecordBatchPy.CODEC_MASK


class UnreadableBatch(errors.KafkaError):  # type: ignore[misc]  # untyped
    """A batch of one partition that cannot be handed out. Nothing before it is lost.

    Args:
        offset: The first offset that was not read.
        next_offset: The first one after the batch; None if even that cannot be told.
    """

    def __init__(self, partition: KafkaPartition, offset: int, next_offset: int | None, cause: Exception) -> None:
        super().__init__(str(cause))
        self.partition = TopicPartition(*partition)
        self.offset, self.next_offset, self.cause = offset, next_offset, cause


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
    """A batch whose records are inflated within bounds, then decoded by the fast path, or the lenient one."""

    def __init__(self, batch: Any, raw: memoryview, bytes_max: int) -> None:
        self._batch, self._raw, self._bytes_max = batch, raw, bytes_max

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:  # an abort marker is read so
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        """Decoded when asked for: 5,000 at once would be out of the processor's cache when their turn comes."""
        raw, batch, read = self._raw, self._batch, 0
        if batch.compression_type:
            raw = self._inflated()
            batch = DefaultRecordBatch(raw)
        try:
            for read, record in enumerate(batch, 1):  # noqa: B007  # how many were handed out
                yield record
        except (UnicodeDecodeError, errors.CorruptRecordException):  # the second one: aiokafka without its C part
            yield from islice(_LenientBatch(raw), read, None)

    def _inflated(self) -> memoryview:
        """The same batch without compression, its checksum no longer valid (it was read before)."""
        header = bytearray(self._raw[:_HEADER_BYTES])
        fields = _DefaultRecordBatchPy.HEADER_STRUCT.unpack(header)
        bytes_left = self._bytes_max - fields[-1] * RECORD_OVERHEAD_BYTES
        if bytes_left <= 0:
            raise InflatesTooFar(f"its {fields[-1]} records take more than {self._bytes_max} bytes of memory")
        attributes_at: int = _DefaultRecordBatchPy.ATTRIBUTES_OFFSET
        data = bytes(self._raw[_HEADER_BYTES:])
        try:
            body = inflate(self._batch.compression_type, data, bytes_max=bytes_left)
        except InflatesTooFar as error:
            raise InflatesTooFar(f"its {len(data)} bytes inflate to more than {bytes_left}") from error
        struct.pack_into(">i", header, _LENGTH_OFFSET, _HEADER_BYTES - _MemoryRecordsPy.LOG_OVERHEAD + len(body))
        (attributes,) = struct.unpack_from(">h", header, attributes_at)
        struct.pack_into(">h", header, attributes_at, attributes & ~_CODEC_MASK)
        return memoryview(bytes(header) + body)


class _LegacyBatch(_LegacyRecordBatchPy):  # type: ignore[misc]  # untyped
    """Formats 0 and 1, inflated within the same bounds."""

    bytes_max = BATCH_BYTES_MAX

    def _decompress(self, key_offset: int) -> bytes:
        _, data = self._read_key_value(key_offset)
        if data is None:
            raise errors.CorruptRecordException("a compressed message without a value")
        if self._compression_type == LZ4 and self._magic == 0:
            raise errors.UnsupportedCodecError("LZ4 in format 0 has frames of its own")
        try:
            return inflate(self._compression_type, data, bytes_max=self.bytes_max)
        except InflatesTooFar as error:
            raise InflatesTooFar(f"its {len(data)} bytes inflate to more than {self.bytes_max}") from error


class LenientRecords(_MemoryRecordsPy):  # type: ignore[misc]  # untyped
    """A fetched record set in which a header key that is no UTF-8 becomes text by `surrogateescape`.

    0.14 raises UnicodeDecodeError for it at every fetch (_crecords/default_records.pyx:362), and inflates without a
    limit. Aborted transactions, control records and offsets stay the business of aiokafka's PartitionRecords, which
    iterates over this.
    """

    batch_bytes_max = BATCH_BYTES_MAX
    current: Any = None

    def next_batch(self, *_: Any) -> Any:
        """The next batch, decoded tolerantly where the quick way fails, and within `batch_bytes_max`."""
        raw = self._next_slice
        self.current = None
        batch = super().next_batch()
        if batch is None:
            return None
        magic = raw[self.MAGIC_OFFSET]
        if magic >= 2:
            batch = _Batch(batch, raw, self.batch_bytes_max)
        else:
            legacy = _LegacyBatch(raw, magic)
            if legacy._compression_type:
                legacy.bytes_max = self.batch_bytes_max
                batch = legacy
        self.current = batch
        return batch


class _RawKey(str):
    """A header key that encodes to the bytes it was read from."""

    def encode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> bytes:
        return super().encode(encoding, "surrogateescape")


class RawBatch(BatchBuilder):  # type: ignore[misc]  # untyped
    """A batch for records with a header key that is no UTF-8, which aiokafka refuses although it may come from a log.

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
