"""The order flow in a simulated world, for `choreo simulate handlers.order_fulfilment.simulation:simulation`."""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from choreo.testing.simulation import Simulation, World

from . import ledger
from .app import app
from .events import Customer, Money, OrderLine, OrderPlaced, Region
from .payments.fake_provider import DECLINED_TOKEN, Entry
from .payments.provider import Captured, Declined, PaymentProvider

PLACED_AT = datetime(2026, 1, 1, tzinfo=UTC)
TIMEOUTS = 0.1
"""Share of first calls that the provider carries out and never answers."""


class Kind(NamedTuple):
    """Orders that end in one way, and how many of them are in each run."""

    times: int
    region: Region = "domestic"
    token: str = "tok_1"  # noqa: S105 (of a card that is none)
    skus: tuple[str, ...] = ("BK-1001", "PN-2001", "IK-3001")


KINDS = (
    Kind(8),
    Kind(3, region="europe", skus=("LE-9001",)),  # thirty there are
    Kind(4, region="remote"),  # delayed, then shipped
    Kind(3, region="unserved"),  # cancelled and refunded
    Kind(3, token=f"{DECLINED_TOKEN}expired_card"),
    Kind(2, skus=("BK-1099",)),  # out of stock
    Kind(1, skus=("ZZ-0000",)),  # unknown
)


class SimulatedProvider:
    """A `PaymentProvider` that keeps all in memory and draws no lots: who waits in vain is decided by the key."""

    def __init__(self) -> None:
        self.statement: list[Entry] = []
        self._answers: dict[str, Captured | Declined | None] = {}
        self._orders: dict[str, str] = {}

    async def charge(
        self, *, idempotency_key: str, order_id: str, amount: Decimal, currency: str, token: str
    ) -> Captured | Declined:
        """See `PaymentProvider.charge`."""
        answer = self._answers.get(idempotency_key)
        if answer is not None:
            return answer
        if token.startswith(DECLINED_TOKEN):
            answer = Declined(token.removeprefix(DECLINED_TOKEN))
            self._enter(order_id, "decline", idempotency_key, reason=answer.reason)
        else:
            answer = Captured(f"pay_{idempotency_key[:24]}")
            self._orders[answer.payment_id] = order_id
            self._enter(order_id, "charge", idempotency_key, str(amount), currency)
        self._answers[idempotency_key] = answer
        _answer_or_not(idempotency_key)
        return answer

    async def refund(self, *, idempotency_key: str, payment_id: str, amount: Decimal, currency: str) -> None:
        """See `PaymentProvider.refund`."""
        if idempotency_key in self._answers:
            return
        if payment_id not in self._orders:
            raise ValueError(f"there is no payment {payment_id}")
        self._enter(self._orders[payment_id], "refund", idempotency_key, str(amount), currency)
        self._answers[idempotency_key] = None
        _answer_or_not(idempotency_key)

    def _enter(
        self,
        order_id: str,
        effect: str,
        key: str,
        amount: str | None = None,
        currency: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Nothing is unique here, so that two charges of one order can be seen."""
        self.statement.append(Entry(order_id, effect, key, "", amount, currency, reason))


def orders(chance: random.Random) -> Sequence[OrderPlaced]:
    """Orders of every kind, in any order."""
    kinds = [kind for kind in KINDS for _ in range(kind.times)]
    chance.shuffle(kinds)
    return [_order(kind, chance) for kind in kinds]


def reconciled(world: World) -> Iterator[str]:
    """The services' ledgers agree with each other, with the provider's statement and with the shelf."""
    rows = [row for name in world.databases for row in ledger.read_rows(partial(world.rows, service=name))]
    rows += [ledger.row_of("provider", *entry) for entry in world.resources[PaymentProvider].statement]
    placed = [str(event.order_id) for event in world.published.values()]
    stock = ledger.read_stock(partial(world.rows, service="inventory"))
    for key, problems in ledger.reconcile(rows, orders=placed, stock=stock).problems.items():
        yield f"{key}: {'; '.join(problems)}"


def _order(kind: Kind, chance: random.Random) -> OrderPlaced:
    number = chance.randrange(1_000)
    lines = [OrderLine(sku=sku, quantity=chance.randint(1, 3)) for sku in chance.sample(kind.skus, 1)]
    return OrderPlaced(
        order_id=UUID(int=chance.getrandbits(128), version=4),
        customer=Customer(id=f"c-{number}", name=f"Customer {number}", email=f"c{number}@example.org"),
        lines=tuple(lines),
        total=Money(amount=Decimal(chance.randint(100, 20_000)) / 100, currency="EUR"),
        payment_token=kind.token,
        region=kind.region,
        placed_at=PLACED_AT,
    )


def _answer_or_not(key: str) -> None:
    if sha256(b"time-out " + key.encode()).digest()[0] < 256 * TIMEOUTS:
        raise TimeoutError("the payment provider did not answer in time")


simulation = Simulation(app, orders, resources={PaymentProvider: SimulatedProvider()}, checkers=[reconciled])
