"""The events of every loop, the work that is done on each, and their records as choreo's publisher writes them."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from choreo import Event, envelope

KEYS = 1_000
PLACEHOLDER = uuid.UUID(int=2**127)


class Item(BaseModel):
    sku: str
    qty: int


class Order(BaseModel):
    order_id: uuid.UUID
    customer_id: str
    amount: decimal.Decimal
    currency: str
    items: list[Item]
    placed_at: datetime.datetime
    channel: str
    note: str


class Payment(BaseModel):
    order_id: uuid.UUID
    customer_id: str
    amount: decimal.Decimal
    currency: str
    taken_at: datetime.datetime


class Parcel(BaseModel):
    """A payload of any size; what is emitted for it is as large."""

    number: str
    body: str


class OrderPlaced(Event, Order, type="order.placed", version=1, topic="orders", key="customer_id"):
    """What is read."""


class PaymentTaken(Event, Payment, type="payment.taken", version=1, topic="payments", key="customer_id"):
    """What is emitted for it."""


class ParcelSent(Event, Parcel, type="parcel.sent", version=1, topic="orders", key="number"):
    """What is read, where it is the size that matters."""


class ParcelReceived(Event, Parcel, type="parcel.received", version=1, topic="payments", key="number"):
    """What is emitted for it."""


def taken(order: Order) -> dict[str, Any]:
    """What the payment for an order says: the same work in every loop."""
    return {
        "order_id": order.order_id,
        "customer_id": order.customer_id,
        "amount": order.amount,
        "currency": order.currency,
        "taken_at": order.placed_at,
    }


def transform(value: bytes) -> bytes:
    """The work of one event by hand: validate, derive the follow-on, serialise."""
    return Payment(**taken(Order.model_validate_json(value))).model_dump_json().encode()


def passed_on(value: bytes) -> bytes:
    """The same of a parcel."""
    parcel = Parcel.model_validate_json(value)
    return Parcel(number=parcel.number, body=parcel.body).model_dump_json().encode()


class Record:
    """One record to be produced; its headers as choreo writes them.

    `sampled` tells what its traceparent says.
    """

    def __init__(self, event: Event, id_: str) -> None:
        self.key, self.value = event.record_key(), event.payload()
        self._type, self._id = event.event_type, id_

    def headers(self, *, sampled: bool) -> list[tuple[str, bytes]]:
        """Of the record."""
        trace = f"00-{uuid.uuid4().hex}-00f067aa0ba902b7-0{sampled:d}"
        about = envelope.Envelope(
            self._id, "/shop", self._type, 1, "2026-11-22T10:00:00.000Z", correlationid=self._id, traceparent=trace
        )
        return list(envelope.write(about))  # type: ignore[arg-type]


def order(number: int, order_id: uuid.UUID | None = None) -> OrderPlaced:
    """An order of one of KEYS customers."""
    return OrderPlaced(
        order_id=order_id or uuid.UUID(int=number),
        customer_id=f"c-{number % KEYS}",
        amount=decimal.Decimal("129.90"),
        currency="EUR",
        items=[Item(sku="A-1", qty=2), Item(sku="B-7", qty=1)],
        placed_at=datetime.datetime(2026, 11, 22, 10, tzinfo=datetime.UTC),
        channel="web",
        note="please ring twice",
    )


def orders(count: int) -> Iterator[Record]:
    """So many orders, their keys in turn."""
    for number in range(count):
        yield Record(order(number), str(uuid.UUID(int=number)))


def parcels(count: int, payload_bytes: int) -> Iterator[Record]:
    """So many parcels, each with about so many bytes of payload."""
    body = "x" * max(0, payload_bytes - len(ParcelSent(number="p-0000", body="").payload()))
    for number in range(count):
        yield Record(ParcelSent(number=f"p-{number:04}", body=body), str(uuid.UUID(int=number)))
