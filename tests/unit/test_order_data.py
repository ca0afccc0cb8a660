"""The shipped orders are what their generator writes and what the package says of them."""

from collections import Counter

import pytest

from choreo.errors import DecodeError
from handlers.order_fulfilment.events import OrderPlaced
from handlers.order_fulfilment.orders import EXPECTED, path, read, shipped_lines
from scripts import make_orders


@pytest.fixture(scope="module")
def lines() -> list[OrderPlaced | DecodeError]:
    """What each line of the shipped file holds."""
    return [content for _, content in read(shipped_lines())]


def test_generator_writes_the_shipped_file() -> None:
    """The same seed gives the shipped bytes, another seed others."""
    data = make_orders.build()
    assert data == path().read_bytes()
    assert len(data) < 1_500_000
    assert make_orders.build(seed=1) != data


def test_expected_counts_are_those_of_the_file(lines: list[OrderPlaced | DecodeError]) -> None:
    """Lines, orders, repetitions and refusals are as many as the package says."""
    orders = [line for line in lines if isinstance(line, OrderPlaced)]
    refused = Counter(line.reason for line in lines if isinstance(line, DecodeError))
    assert (len(lines), len(orders)) == (EXPECTED.lines, EXPECTED.published)
    assert len({order.order_id for order in orders}) == EXPECTED.orders
    assert refused == EXPECTED.refused
    assert EXPECTED.published + sum(EXPECTED.refused.values()) == EXPECTED.lines


def test_expected_outcomes_follow_from_the_orders(lines: list[OrderPlaced | DecodeError]) -> None:
    """Every order ends once, and as many end so as the generator made to end so."""
    expected = EXPECTED
    rejected, declined = sum(expected.rejected.values()), sum(expected.declined.values())
    assert expected.shipped + expected.cancelled + rejected + declined == expected.orders
    tokens = Counter(order.payment_token for order in _distinct(lines))
    assert {name: tokens[f"tok_declined_{name}"] for name in expected.declined} == expected.declined
    regions = Counter(order.region for order in _distinct(lines))
    assert regions["unserved"] == expected.cancelled
    assert regions["remote"] + regions["unserved"] == expected.delayed


def test_whatever_is_scarce_is_wanted_alike(lines: list[OrderPlaced | DecodeError]) -> None:
    """Who gets the article that runs out depends on timing; how many get it, pay and are shipped does not."""
    limited = [order for order in _distinct(lines) if any(line.sku == "LE-9001" for line in order.lines)]
    assert len(limited) == 100
    for order in limited:
        assert [line.quantity for line in order.lines] == [1]
        assert order.region == "domestic"
        assert not order.payment_token.startswith("tok_declined_")


def test_repeated_lines_are_near_and_far_apart(lines: list[OrderPlaced | DecodeError]) -> None:
    """Every repetition is the very same order, and both a few and many hundred lines away from the first."""
    first: dict[object, tuple[int, OrderPlaced]] = {}
    distances = []
    for number, order in enumerate(lines):
        if isinstance(order, OrderPlaced):
            before, same = first.setdefault(order.order_id, (number, order))
            assert same == order
            if before != number:
                distances.append(number - before)
    assert len(distances) == EXPECTED.published - EXPECTED.orders
    assert sum(distance < 20 for distance in distances) == 50
    assert sum(distance > 500 for distance in distances) == 50


def test_broken_lines_are_broken_in_the_ways_files_are() -> None:
    """Byte order marks, empty lines, Latin-1, cut lines, NaN and Windows line ends are all there."""
    raw = shipped_lines()
    for kind in (b"\xef\xbb\xbf{", b"<html", b"ERROR", b"\xfc", b":NaN", b":Infinity"):
        assert any(kind in line for line in raw), kind
    assert b"" in raw
    assert any(line.endswith(b"\r") for line in raw)
    assert any(b"utm_source" in line for line in raw)


def _distinct(lines: list[OrderPlaced | DecodeError]) -> list[OrderPlaced]:
    return list({line.order_id: line for line in lines if isinstance(line, OrderPlaced)}.values())
