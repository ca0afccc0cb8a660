"""What the shop keeps in PostgreSQL, its outbox among it: for Alembic, `target_metadata = Base.metadata`.

`python -m handlers.web_orders.tables` makes what is missing, for as long as there are no migrations.
"""

import os
from datetime import datetime
from uuid import UUID

from sqlalchemy import DateTime, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from choreo.outbox import Outbox


class Base(DeclarativeBase):
    """Of all tables."""


class Order(Base):
    """An order as it was placed."""

    __tablename__ = "web_order"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    data: Mapped[dict[str, object]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Request(Base):
    """What became of an Idempotency-Key; `fingerprint` tells a key that is used for something else."""

    __tablename__ = "web_request"
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    order_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


outbox = Outbox("web-orders")
outbox.attach(Base.metadata)


if __name__ == "__main__":
    engine = create_engine("postgresql+psycopg:" + os.environ["WEB_ORDERS_DATABASE"].partition(":")[2])
    Base.metadata.create_all(engine)
