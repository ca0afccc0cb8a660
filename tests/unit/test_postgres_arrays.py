"""Arrays are the bytes that psycopg itself makes of lists."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer
from psycopg.types import numeric

from choreo.stores.postgres.arrays import Bool, Bytea, Float8, Int4, Int8

INT4 = st.integers(-(2**31), 2**31 - 1)
INT8 = st.integers(-(2**63), 2**63 - 1)


def dumped(value: Any) -> tuple[int, bytes]:
    """Type and bytes of a parameter."""
    transformer = Transformer()
    dumper = transformer.get_dumper(value, PyFormat.BINARY)
    data = dumper.dump(value)
    assert data is not None
    return dumper.oid, bytes(data)


@given(st.lists(st.binary(max_size=20), min_size=1))
def test_bytes(values: list[bytes]) -> None:
    assert dumped(Bytea.of(values)) == dumped(values)


@given(st.lists(st.none() | st.binary(max_size=3), min_size=1).filter(any))
def test_bytes_and_nulls(values: list[bytes | None]) -> None:
    assert dumped(Bytea.of(values)) == dumped(values)


@given(st.lists(INT4, min_size=1))
def test_numbers_of_32_bits(values: list[int]) -> None:
    assert dumped(Int4.of(values)) == dumped(list(map(numeric.Int4, values)))


@given(st.lists(st.none() | INT4, min_size=1).filter(lambda values: set(values) != {None}))
def test_numbers_and_nulls(values: list[int | None]) -> None:
    wrapped = [None if value is None else numeric.Int4(value) for value in values]
    assert dumped(Int4.nullable(values)) == dumped(wrapped)


@given(st.lists(INT8, min_size=1))
def test_numbers_of_64_bits(values: list[int]) -> None:
    expected = dumped(list(map(numeric.Int8, values)))
    assert dumped(Int8.of(values)) == expected
    assert dumped(Int8.raw([struct.pack("!q", value) for value in values])) == expected


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.lists(st.booleans(), min_size=1))
def test_floats_and_truth_values(floats: list[float], truths: list[bool]) -> None:
    assert dumped(Float8.of(floats)) == dumped(floats)
    assert dumped(Bool.of(truths)) == dumped(truths)


@pytest.mark.parametrize(("made", "oid"), [(Bytea.of([]), 17), (Int4.of([]), 23), (Int8.of([]), 20)])
def test_an_empty_one_has_no_dimension(made: Any, oid: int) -> None:
    assert dumped(made)[1] == struct.pack("!iii", 0, 0, oid)


def test_a_number_out_of_range_is_refused() -> None:
    with pytest.raises(struct.error):
        Int4.of([2**31])
