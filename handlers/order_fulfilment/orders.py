"""The shipped file of orders, as a web shop's export is: repeated lines, broken lines, fields nobody asked for.

Written by `scripts/make_orders.py`; its numbers are `EXPECTED`, whatever order the services work in.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from choreo.errors import DecodeError

from .events import OrderPlaced


class Expected(NamedTuple):
    """What is in the file, and what must come of it.

    Attributes:
        lines: All of them; `published + sum(refused) == lines`.
        published: Lines that are orders, repeated ones included.
        orders: Distinct orders.
        refused: Lines that are none, by `DecodeError.reason`.
        shipped, cancelled: Orders that end so; `delayed` is on the way to either.
        rejected, declined: Orders that end so, by reason.
        emitted: Events the services emit, by type.
    """

    lines: int
    published: int
    orders: int
    refused: Mapping[str, int]
    shipped: int
    delayed: int
    cancelled: int
    rejected: Mapping[str, int]
    declined: Mapping[str, int]
    emitted: Mapping[str, int]


EXPECTED = Expected(
    lines=2136,
    published=2100,
    orders=2000,
    refused={"not_json": 20, "invalid_data": 16},
    shipped=1640,
    delayed=200,
    cancelled=40,
    rejected={"out_of_stock": 130, "unknown_sku": 30},
    declined={"insufficient_funds": 100, "expired_card": 60},
    emitted={
        "stock.reserved": 1840,
        "stock.rejected": 160,
        "payment.captured": 1680,
        "payment.declined": 160,
        "order.shipped": 1640,
        "shipment.delayed": 240,
        "shipment.cancelled": 40,
        "payment.refunded": 40,
        "stock.released": 200,
    },
)


def path() -> Traversable:
    """The shipped file; inside of a zipped package it has no path of its own, hence no `Path`."""
    return files(__package__).joinpath("orders.jsonl")


def shipped_lines() -> list[bytes]:
    """The lines of the shipped file, without their ends."""
    return path().read_bytes().removesuffix(b"\n").split(b"\n")


def read(lines: Iterable[bytes]) -> Iterator[tuple[int, OrderPlaced | DecodeError]]:
    """Each line's number, from 1, and the order it holds or why it holds none."""
    for number, line in enumerate(lines, start=1):
        try:
            yield number, OrderPlaced.from_payload(line)
        except DecodeError as error:
            yield number, error
