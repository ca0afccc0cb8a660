"""Arrays as parameters, in the server's binary format.

psycopg asks each element for its type, dumps it by one call and its length by another: with the twenty arrays of a
batch that was a tenth of what an event costs.
"""

import struct
from collections.abc import Sequence
from itertools import chain, repeat
from typing import ClassVar, Self

from psycopg import adapters
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

_NULL = b"\xff\xff\xff\xff"
_HEAD = struct.Struct("!iii").pack
"""Dimensions, whether there are NULLs, type of the elements."""
_DIMENSION = struct.Struct("!ii").pack
"""How many elements, and the number of the first."""
_LENGTH = struct.Struct("!i").pack


class _Array:
    """A parameter: the whole array as bytes."""

    __slots__ = ("data",)
    oid: ClassVar[int]
    element_oid: ClassVar[int]

    def __init__(self, count: int, elements: bytes, *, nulls: bool = False) -> None:
        if count:
            self.data = b"".join((_HEAD(1, nulls, self.element_oid), _DIMENSION(count, 1), elements))
        else:
            self.data = _HEAD(0, False, self.element_oid)


class Bytea(_Array):
    """`bytea[]`; None is NULL."""

    oid, element_oid = 1001, 17

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Self:
        """From bytes."""
        present = [value for value in values if value is not None]
        if len(present) == len(values):
            return cls(len(values), _joined(present))
        elements = [_NULL if value is None else _joined((value,)) for value in values]
        return cls(len(values), b"".join(elements), nulls=True)


class _Numbers(_Array):
    """Numbers of one size each."""

    element: ClassVar[str]
    """As `struct` writes a length and a number."""
    element_bytes: ClassVar[int]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """From numbers in the type's range; struct.error else."""
        pairs = zip(repeat(cls.element_bytes, len(values)), values, strict=True)
        return cls(len(values), struct.pack("!" + cls.element * len(values), *chain.from_iterable(pairs)))


class Bool(_Numbers):
    """`bool[]`."""

    oid, element_oid, element, element_bytes = 1000, 16, "i?", 1


class Float8(_Numbers):
    """`float8[]`."""

    oid, element_oid, element, element_bytes = 1022, 701, "id", 8


class Int4(_Numbers):
    """`int4[]`."""

    oid, element_oid, element, element_bytes = 1007, 23, "ii", 4

    @classmethod
    def nullable(cls, values: Sequence[int | None]) -> Self:
        """Some are None, for NULL."""
        elements = [_NULL if value is None else struct.pack("!ii", 4, value) for value in values]
        return cls(len(values), b"".join(elements), nulls=None in values)


class Int8(_Numbers):
    """`int8[]`."""

    oid, element_oid, element, element_bytes = 1016, 20, "iq", 8

    @classmethod
    def raw(cls, values: Sequence[bytes]) -> Self:
        """Each as the eight bytes it is sent as."""
        return cls(len(values), _joined(values))


def _joined(values: Sequence[bytes]) -> bytes:
    """Each behind its length, which often is the same for all."""
    lengths = set(map(len, values))
    if len(lengths) == 1:
        length = _LENGTH(lengths.pop())
        return length + length.join(values)
    return b"".join([part for value in values for part in (_LENGTH(len(value)), value)])


class _Dumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Array) -> Buffer | None:
        return obj.data


for _kind in (Bytea, Bool, Float8, Int4, Int8):
    adapters.register_dumper(_kind, type(f"{_kind.__name__}Dumper", (_Dumper,), {"oid": _kind.oid}))
