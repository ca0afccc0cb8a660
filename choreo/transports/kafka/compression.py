"""Inflates what a Kafka batch holds, up to a bound. Knows the codecs, and nothing of batches.

aiokafka 0.14 inflates to whatever size a batch has (codec.py), so 33 kB on the wire may be a gigabyte in memory.
"""

import zlib
from typing import Any

from aiokafka import codec as aiokafka_codec
from aiokafka import errors

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
NAMES = {GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}

XERIAL_HEADER_BYTES = 16
ROOM_BYTES_MIN = 64 * 1024
ROOM_GROWTH = 8

GZIP_WBITS = 31
"""zlib's word for gzip's frame and its largest window."""


class InflatesTooFar(errors.KafkaError):  # type: ignore[misc]  # untyped
    """More would come out than is allowed."""


def inflate(codec: int, data: bytes, *, bytes_max: int) -> bytes:
    """What `data` holds; no more than some `bytes_max` bytes are allocated to find out.

    Raises:
        InflatesTooFar: It is more than `bytes_max`.
        UnsupportedCodecError: No such codec, or the library for it is not installed.
        CorruptRecordException: It cannot be inflated at all.
    """
    if codec == GZIP:
        return _gunzip(data, bytes_max)
    if codec not in NAMES:
        raise errors.UnsupportedCodecError(f"unknown compression codec {codec}")
    cramjam: Any = aiokafka_codec.cramjam
    if cramjam is None:
        raise errors.UnsupportedCodecError(f"{NAMES[codec]} needs the package cramjam: pip install cramjam")
    if codec == SNAPPY:
        return _unsnap(cramjam, data, bytes_max)
    return _into_room(cramjam, cramjam.lz4 if codec == LZ4 else cramjam.zstd, data, bytes_max)


def _gunzip(data: bytes, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    left = bytes_max
    while data:  # gzip may have several members, and zeros after the last
        member = zlib.decompressobj(GZIP_WBITS)
        try:
            part = member.decompress(data, left + 1)
        except zlib.error as error:
            raise errors.CorruptRecordException(f"gzip: {error}") from error
        if len(part) > left:
            raise InflatesTooFar
        if not member.eof:
            raise errors.CorruptRecordException("gzip: cut off")
        parts.append(part)
        left -= len(part)
        data = member.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _unsnap(cramjam: Any, data: bytes, bytes_max: int) -> bytes:
    blocks = [data]
    if aiokafka_codec._detect_xerial_stream(data):
        blocks, at = [], XERIAL_HEADER_BYTES
        while at < len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "big")
            blocks.append(data[at + 4 : end])
            at = end
    try:
        # A block begins with the size of what it holds, and no other size is accepted when it is read.
        if sum(cramjam.snappy.decompress_raw_len(block) for block in blocks) > bytes_max:
            raise InflatesTooFar
        return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)
    except cramjam.DecompressionError as error:
        raise errors.CorruptRecordException(f"snappy: {error}") from error


def _into_room(cramjam: Any, library: Any, data: bytes, bytes_max: int) -> bytes:
    """LZ4 and zstd: a frame need not say how much it holds, so ever larger rooms are tried."""
    room_bytes = min(bytes_max, max(ROOM_BYTES_MIN, ROOM_GROWTH * len(data)))
    while True:
        room = bytearray(room_bytes)
        try:
            count = library.decompress_into(data, room)
        except cramjam.DecompressionError as error:
            if room_bytes == bytes_max:  # or it is corrupt, although its checksum was right: no use to tell apart
                raise InflatesTooFar from error
            room_bytes = min(bytes_max, ROOM_GROWTH * room_bytes)
        else:
            return bytes(memoryview(room)[:count])
