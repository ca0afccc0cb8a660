"""Orders over HTTP, each taken once however often it is asked for: `uvicorn handlers.web_orders.main:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from handlers.order_fulfilment.events import Customer, Money, Name, OrderLine, OrderPlaced, Region

from .tables import Order, Request, outbox
from .tracing import trace_requests


class NewOrder(BaseModel):
    """What a customer sends."""

    customer: Customer
    lines: Annotated[tuple[OrderLine, ...], Field(min_length=1, max_length=100)]
    total: Money
    payment_token: Name
    region: Region


class Taken(BaseModel):
    """The answer. `choreo trace CORRELATION_ID` follows the order from here on."""

    order_id: UUID
    correlation_id: str


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    """The database; and, where WEB_ORDERS_RELAY is set, a relay in this process instead of one beside it."""
    database = os.environ["WEB_ORDERS_DATABASE"]  # postgresql://...
    async with AsyncExitStack() as stack:
        engine = create_async_engine("postgresql+asyncpg:" + database.partition(":")[2])
        stack.push_async_callback(engine.dispose)
        if "WEB_ORDERS_RELAY" in os.environ:
            await stack.enter_async_context(outbox.relaying(database))
        web.state.engine = engine
        yield


app = FastAPI(title="Web orders", lifespan=lifespan)
trace_requests(app)


async def transaction(request: HttpRequest) -> AsyncIterator[AsyncSession]:
    """A session; what is done in it commits when the endpoint has returned, before the answer is sent."""
    async with AsyncSession(request.app.state.engine) as session, session.begin():
        yield session


@app.get("/livez", include_in_schema=False)
async def livez() -> str:
    """It answers."""
    return "ok"


@app.get("/readyz", include_in_schema=False)
async def readyz(session: Annotated[AsyncSession, Depends(transaction)]) -> str:
    """It can take orders: its tables can be read."""
    await session.execute(select(Order.id).limit(1))
    return "ok"


@app.post("/orders", status_code=201)
async def place(
    order: NewOrder,
    idempotency_key: Annotated[str, Header(min_length=1, max_length=200)],
    session: Annotated[AsyncSession, Depends(transaction, scope="function")],
) -> Taken:
    """Take an order. The same key again is the same order and the same answer; with another order it is refused."""
    order_id = uuid4()
    fingerprint = sha256(order.model_dump_json().encode()).hexdigest()
    # Waits for a transaction that has the key and has not ended.
    asked = insert(Request).values(key=idempotency_key, fingerprint=fingerprint, order_id=order_id)
    first = await session.scalar(asked.on_conflict_do_nothing().returning(Request.order_id))
    if first is None:
        known = await session.get_one(Request, idempotency_key)
        if known.fingerprint != fingerprint:
            raise HTTPException(422, "this Idempotency-Key was used for another order")
        return Taken(order_id=known.order_id, correlation_id=str(known.order_id))
    session.add(Order(id=order_id, data=order.model_dump(mode="json")))
    placed = OrderPlaced(order_id=order_id, placed_at=datetime.now(UTC), **dict(order))
    reference = await outbox.add(session, placed, id=str(order_id))
    return Taken(order_id=order_id, correlation_id=reference.correlation_id)
