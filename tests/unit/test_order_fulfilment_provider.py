"""The stand-in for the payment provider keeps the promises a real one makes, and its bad habits."""

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest

from handlers.order_fulfilment.payments.fake_provider import Entry, FakePaymentProvider
from handlers.order_fulfilment.payments.provider import Captured, Declined


async def charge(provider: FakePaymentProvider, key: str, amount: str = "9.90") -> Captured | Declined:
    """One call of the provider."""
    return await provider.charge(
        idempotency_key=key, order_id="o", amount=Decimal(amount), currency="EUR", token="tok_visa"
    )


async def test_fake_provider_charges_a_key_once_across_restarts(tmp_path: Path) -> None:
    """The same key gets the same answer, also of another process that opens the same file."""
    with FakePaymentProvider(tmp_path / "new" / "provider.db", timeouts=0) as first:
        answers = [await charge(first, "a"), await charge(first, "a")]
    with FakePaymentProvider(tmp_path / "new" / "provider.db", timeouts=0) as second:
        answers.append(await charge(second, "a"))
        statement = second.statement()
    assert len(set(answers)) == 1
    assert [entry.effect for entry in statement] == ["charge"]


async def test_fake_provider_times_out_once_after_charging() -> None:
    """The first call times out with the money moved; the second is answered and moves none."""
    with FakePaymentProvider(timeouts=1) as provider:
        with pytest.raises(TimeoutError):
            await charge(provider, "a")
        assert len(provider.statement()) == 1
        assert isinstance(await charge(provider, "a"), Captured)
        assert len(provider.statement()) == 1


async def test_fake_provider_shows_two_charges_under_two_keys() -> None:
    """Whoever charges an order under two keys finds both in the ledger."""
    with FakePaymentProvider(timeouts=0) as provider:
        await charge(provider, "a")
        await charge(provider, "b")
        assert [entry.idempotency_key for entry in provider.statement()] == ["a", "b"]


async def test_fake_provider_refuses_what_makes_no_sense() -> None:
    """A key used for another request, and a refund of an unknown payment, are errors that move nothing."""
    with FakePaymentProvider(timeouts=0) as provider:
        await charge(provider, "a")
        with pytest.raises(ValueError, match="another request"):
            await charge(provider, "a", amount="9.91")
        with pytest.raises(ValueError, match="no payment"):
            await provider.refund(idempotency_key="b", payment_id="pay_0", amount=Decimal(1), currency="EUR")
        assert [entry.effect for entry in provider.statement()] == ["charge"]


async def test_fake_provider_serves_many_at_once_from_two_connections(tmp_path: Path) -> None:
    """Two processes' worth of concurrent calls wait for each other and charge each key once."""
    path = tmp_path / "provider.db"
    with FakePaymentProvider(path, timeouts=0) as one, FakePaymentProvider(path, timeouts=0) as two:
        await asyncio.gather(*(charge(each, f"key-{n}") for n in range(100) for each in (one, two)))
        entries: list[Entry] = one.statement()
    assert sorted(entry.idempotency_key for entry in entries) == sorted(f"key-{n}" for n in range(100))
