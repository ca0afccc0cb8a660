"""JSON whose numbers keep every digit: of events that are made into others before anybody validates them."""

import json
from decimal import Decimal
from typing import Any

import orjson

from choreo.errors import DecodeError

_INT_DIGITS_MAX = 18  # what surely fits 64 bits, which is all that orjson writes


def loads_exactly(value: bytes) -> dict[str, Any]:
    """A JSON object whose numbers keep every digit when `dumps_exactly` writes them again.

    Raises:
        DecodeError: `not_json`; `invalid_data` where it is no object.
    """
    try:
        orjson.loads(value)  # stricter: no lone surrogates, no NaN, a bound on depth
        data = json.loads(
            value,
            parse_float=Decimal,
            parse_int=lambda text: int(text) if len(text) <= _INT_DIGITS_MAX else Decimal(text),
        )
    except (ValueError, ArithmeticError, RecursionError):  # an exponent may be beyond what Decimal knows
        raise DecodeError("not_json", "the value cannot be read as JSON") from None
    if not isinstance(data, dict):
        raise DecodeError("invalid_data", "the value is no JSON object")
    return data


def dumps_exactly(data: dict[str, Any]) -> bytes:
    """What `loads_exactly` gave, or something like it, as JSON.

    Raises:
        TypeError, ValueError: It is no JSON.
    """
    return orjson.dumps(data, default=_exact_number)


def _exact_number(value: object) -> orjson.Fragment:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value).encode())
    raise TypeError
