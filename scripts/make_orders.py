"""Write the orders that order fulfilment ships with: `python scripts/make_orders.py` (`--check` only compares).

The same seed gives the same bytes. What must come of the orders does not depend on the order in which services work:
articles either suffice for everyone or for no one, and of the one article that runs out every customer wants one
piece, pays and lives nearby, so that it is settled how many get it and open who.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

SEED = 20260105
PACKAGE = Path(__file__).parent.parent / "handlers" / "order_fulfilment"
ORDERS_FILE = PACKAGE / "orders.jsonl"
CATALOGUE = json.loads((PACKAGE / "inventory" / "catalogue.json").read_text(encoding="utf-8"))["articles"]

KINDS = {
    "plain": 1450,
    "limited": 100,  # for 30 pieces
    "sold_out": 40,
    "bulk": 20,  # more pieces than there ever were
    "unknown_sku": 30,
    "insufficient_funds": 100,
    "expired_card": 60,
    "remote": 160,
    "unserved": 40,
}
DUPLICATES_NEAR, DUPLICATES_FAR = 50, 50
NEAR_MAX, FAR_MIN = 5, 500  # lines between an order and its repetition
LIMITED = "LE-9001"
SOLD_OUT = ("BK-1099", "PN-2099")
PLENTY = [each["sku"] for each in CATALOGUE if each["sku"] not in (LIMITED, *SOLD_OUT)]
PRICES = {each["sku"]: Decimal(each["price"]) for each in CATALOGUE}
RATES = {"EUR": Decimal(1), "GBP": Decimal("0.86"), "CHF": Decimal("0.95")}
GIVEN = "Ada Björn Chloé Edith Farid Gül Håkon Inês Jürgen Kateřina Łukasz Mei Nuala Özlem Pilar Renée Søren".split()
FAMILY = (
    "Åkesson Brandt Černý D'Angelo Engström Fuchs García Huber İpek Jansen Kowalski Müller Nuñez O'Brien Wang".split()
)

Order = dict[str, Any]


def order(rng: random.Random, number: int, kind: str) -> Order:
    """One order as the shop would send it, made so that it ends as `kind` says."""
    lines = _lines(rng, kind)
    currency = rng.choice(("EUR", "EUR", "EUR", "GBP", "CHF"))
    total = sum(PRICES.get(line["sku"], Decimal(10)) * line["quantity"] for line in lines) * RATES[currency]
    given, family = rng.choice(GIVEN), rng.choice(FAMILY)
    declined = kind in ("insufficient_funds", "expired_card")
    placed_at = datetime(2026, 1, 5, 8, 0, tzinfo=UTC) + timedelta(seconds=13 * number)
    made: Order = {
        "order_id": str(UUID(int=rng.getrandbits(128), version=4)),
        "customer": {
            "id": f"c-{rng.randrange(700):04d}",
            "name": f"{given} {family}",
            "email": f"customer.{number}@example.com",
        },
        "lines": lines,
        "total": {"amount": str(total.quantize(Decimal("0.01"))), "currency": currency},
        "payment_token": f"tok_declined_{kind}" if declined else f"tok_visa_{rng.getrandbits(48):012x}",
        "region": kind if kind in ("remote", "unserved") else _nearby(rng, kind),
        "placed_at": placed_at.isoformat().replace("+00:00", "Z"),
    }
    if rng.random() < 0.06:
        made |= rng.choice(UNKNOWN_FIELDS)
    return made


UNKNOWN_FIELDS: list[Order] = [
    {"utm_source": "newsletter", "utm_campaign": "new-year"},
    {"coupon": None},
    {"gift_wrap": True, "gift_note": "Alles Gute zum Geburtstag! 🎂"},
    {"_meta": {"shop": "web-3", "build": [4, 11, 2], "ab": {"checkout": "B"}}},
    {"loyalty": {"tier": "gold", "points": 1250}},
]


def _nearby(rng: random.Random, kind: str) -> str:
    return "domestic" if kind == "limited" or rng.random() < 0.7 else "europe"


def _lines(rng: random.Random, kind: str) -> list[Order]:
    if kind == "limited":
        return [{"sku": LIMITED, "quantity": 1}]
    skus = rng.sample(PLENTY, rng.choice((1, 1, 2, 2, 3)))
    lines = [{"sku": sku, "quantity": rng.choice((1, 1, 1, 2, 3))} for sku in skus]
    if rng.random() < 0.02:
        lines.append(dict(lines[0]))  # the same article on two lines
    if kind == "sold_out":
        lines.append({"sku": rng.choice(SOLD_OUT), "quantity": 1})
    elif kind == "bulk":
        lines[-1]["quantity"] = 5000
    elif kind == "unknown_sku":
        lines.append({"sku": f"XX-{rng.randrange(10_000):04d}", "quantity": 1})
    return lines


def _without(*path: str) -> Callable[[Order], bytes]:
    def broken(made: Order) -> bytes:
        *parents, last = path
        part: Any = made
        for each in parents:
            part = part[each]
        del part[last]
        return dump(made)

    return broken


def _with(field: str, value: object) -> Callable[[Order], bytes]:
    return lambda made: dump(made | {field: value})


def _cut(share: float) -> Callable[[Order], bytes]:
    return lambda made: dump(made)[: int(len(dump(made)) * share)]


def _latin_1(name: str) -> Callable[[Order], bytes]:
    def broken(made: Order) -> bytes:
        made["customer"]["name"] = name
        return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode("latin-1")

    return broken


def dump(made: Order) -> bytes:
    """One line of JSON, UTF-8."""
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()


NOT_JSON: list[Callable[[Order], bytes]] = [
    *(_cut(share) for share in (0.1, 0.33, 0.5, 0.75, 0.97)),
    lambda _: b"order_id;customer;lines;total;payment_token;region;placed_at",
    lambda _: b"<html><head><title>502 Bad Gateway</title></head></html>",
    lambda _: b"ERROR: connection reset by peer",
    lambda made: dump(made).replace(b'"', b"'"),
    *(lambda _: b"", lambda _: b"", lambda _: b"   "),
    lambda made: dump(made | {"total": {"amount": float("nan"), "currency": "EUR"}}),
    lambda made: dump(made | {"total": {"amount": float("inf"), "currency": "EUR"}}),
    lambda made: b"\xef\xbb\xbf" + dump(made),  # a byte order mark, where two files were joined
    lambda made: b"\xef\xbb\xbf" + dump(made),
    _latin_1("Jürgen Müller"),
    _latin_1("Chloé García"),
    lambda made: dump(made) + dump(made),  # a line end was lost
    lambda made: dump(made)[:-1] + b",}",
]
INVALID: list[Callable[[Order], bytes]] = [
    _without("order_id"),
    _without("customer"),
    _without("customer", "id"),
    _without("lines"),
    _without("payment_token"),
    _with("order_id", "4711"),
    _with("lines", {"sku": "BK-1001", "quantity": 1}),
    _with("lines", []),
    _with("lines", [{"sku": "BK-1001", "quantity": "two"}]),
    _with("lines", [{"sku": "BK-1001", "quantity": -1}]),
    _with("total", ["12.90", "EUR"]),
    _with("total", {"amount": "NaN", "currency": "EUR"}),
    _with("region", "the moon"),
    _with("placed_at", "yesterday"),
    lambda made: b"[" + dump(made) + b"]",
    lambda _: b"null",
]


def build(seed: int = SEED) -> bytes:
    """The whole file."""
    rng = random.Random(seed)
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    rng.shuffle(kinds)
    made = [order(rng, number, kind) for number, kind in enumerate(kinds)]
    _check_stock(made, kinds)
    lines = [dump(each) for each in made]
    # Some writers put spaces after separators, some end their lines as Windows does.
    lines = [json.dumps(json.loads(line)).encode() if rng.random() < 0.02 else line for line in lines]
    lines = [line + b"\r" if rng.random() < 0.01 else line for line in lines]
    repeated = rng.sample(range(len(lines) - FAR_MIN), DUPLICATES_NEAR + DUPLICATES_FAR)
    inserts = [(position + 1 + rng.randrange(NEAR_MAX), lines[position]) for position in repeated[:DUPLICATES_NEAR]]
    inserts += [
        (rng.randrange(position + FAR_MIN, len(lines)), lines[position]) for position in repeated[DUPLICATES_NEAR:]
    ]
    for number, broken in enumerate((*NOT_JSON, *INVALID), start=len(made)):
        inserts.append((rng.randrange(1, len(lines)), broken(order(rng, number, "plain"))))
    # From the end, so that positions still to come stay true.
    for position, line in sorted(inserts, reverse=True):
        lines.insert(position, line)
    return b"\n".join(lines) + b"\n"


def _check_stock(made: list[Order], kinds: list[str]) -> None:
    """What must suffice for everyone does so even if nothing is ever released."""
    wanted = dict.fromkeys(PLENTY, 0)
    for each, kind in zip(made, kinds, strict=True):
        if kind not in ("limited", "sold_out", "bulk", "unknown_sku"):
            for line in each["lines"]:
                wanted[line["sku"]] += line["quantity"]
    opening = {each["sku"]: each["opening"] for each in CATALOGUE}
    short = [sku for sku, count in wanted.items() if count > opening[sku]]
    assert not short, f"the catalogue's opening stock is too low for {short}"
    assert max(opening.values()) < 5000


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the file is not what would be written")
    arguments = parser.parse_args()
    data = build()
    if arguments.check:
        return 0 if ORDERS_FILE.read_bytes() == data else 1
    ORDERS_FILE.write_bytes(data)
    print(f"{ORDERS_FILE}: {len(data):,} bytes, {len(data.splitlines()):,} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
