"""The company that moves the money, as payments sees it: a port and nothing else."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Captured:
    """The money was moved; `payment_id` is the provider's reference."""

    payment_id: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The money was not moved; `reason` in the provider's words."""

    reason: str


class PaymentProvider(Protocol):
    """What payments asks of a provider. The same `idempotency_key` moves money once and gets the same answer."""

    async def charge(
        self, *, idempotency_key: str, order_id: str, amount: Decimal, currency: str, token: str
    ) -> Captured | Declined:
        """Take `amount` from the card behind `token`.

        Raises:
            TimeoutError: No answer came; the money may have been moved or not. Ask again with the same key.
        """

    async def refund(self, *, idempotency_key: str, payment_id: str, amount: Decimal, currency: str) -> None:
        """Give `amount` of a payment back.

        Raises:
            TimeoutError: As with `charge`.
            ValueError: There is no such payment.
        """
