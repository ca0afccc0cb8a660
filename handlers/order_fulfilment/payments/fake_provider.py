"""A stand-in for the payment provider, to run the flow with.

It keeps its ledger in a file of its own, shares nothing with the services and lives on when they are killed, as a
company outside does. It reads the wall clock, as they do.
"""

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from .provider import Captured, Declined

BUSY_S_MAX = 30.0
"""How long a call waits for the ledger's write lock, in seconds, before it fails as busy."""
DECLINED_TOKEN = "tok_declined_"  # nosec B105  # noqa: S105 (of a card that is none)
"""A token that begins so is declined, and the rest of it says why: `tok_declined_expired_card`."""

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS provider_request (
        idempotency_key TEXT PRIMARY KEY, request TEXT NOT NULL, payment_id TEXT, reason TEXT) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS provider_payment (payment_id TEXT PRIMARY KEY, order_id TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS provider_ledger (
        order_id TEXT NOT NULL, effect TEXT NOT NULL, idempotency_key TEXT NOT NULL, at TEXT NOT NULL,
        amount TEXT, currency TEXT, reason TEXT)""",
)


class Entry(NamedTuple):
    """One line of the provider's statement: `charge`, `decline` or `refund`; times in RFC 3339."""

    order_id: str
    effect: str
    idempotency_key: str
    at: str
    amount: str | None = None
    currency: str | None = None
    reason: str | None = None


class _Answer(NamedTuple):
    payment_id: str | None
    reason: str | None = None


class FakePaymentProvider:
    """A `PaymentProvider` in one SQLite file, shared by all processes that open it.

    Args:
        path: Its file, or `:memory:`.
        timeouts: Share of first calls, chosen by a hash of the key, that time out AFTER the money was moved; 0 to 1.
    """

    def __init__(self, path: str | Path = ":memory:", *, timeouts: float = 0.05) -> None:
        if str(path) != ":memory:":
            Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        self._timeouts = timeouts
        # Calls run on threads of the loop's pool; the lock makes them take turns on the one connection.
        self._turn = threading.Lock()
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        self._patiently("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # survives kill -9; a power cut may take the last calls
        for statement in _SCHEMA:
            self._patiently(statement)

    async def charge(
        self, *, idempotency_key: str, order_id: str, amount: Decimal, currency: str, token: str
    ) -> Captured | Declined:
        """See `PaymentProvider.charge`."""
        request = f"charge {order_id} {amount} {currency} {token}"

        def move() -> _Answer:
            if token.startswith(DECLINED_TOKEN):
                reason = token.removeprefix(DECLINED_TOKEN)
                self._enter(Entry(order_id, "decline", idempotency_key, _now(), reason=reason))
                return _Answer(None, reason)
            payment_id = f"pay_{sha256(idempotency_key.encode()).hexdigest()[:24]}"
            self._db.execute(
                "INSERT INTO provider_payment (payment_id, order_id) VALUES (?, ?)", (payment_id, order_id)
            )
            self._enter(Entry(order_id, "charge", idempotency_key, _now(), str(amount), currency))
            return _Answer(payment_id)

        answer = await asyncio.to_thread(self._once, idempotency_key, request, move)
        return Declined(answer.reason or "unknown") if answer.payment_id is None else Captured(answer.payment_id)

    async def refund(self, *, idempotency_key: str, payment_id: str, amount: Decimal, currency: str) -> None:
        """See `PaymentProvider.refund`."""
        request = f"refund {payment_id} {amount} {currency}"

        def move() -> _Answer:
            row = self._db.execute(
                "SELECT order_id FROM provider_payment WHERE payment_id = ?", (payment_id,)
            ).fetchone()
            if row is None:
                raise ValueError(f"there is no payment {payment_id}")
            self._enter(Entry(row[0], "refund", idempotency_key, _now(), str(amount), currency))
            return _Answer(payment_id)

        await asyncio.to_thread(self._once, idempotency_key, request, move)

    def statement(self) -> list[Entry]:
        """All it ever did, in order."""
        with self._turn:
            rows = self._db.execute(f"SELECT {', '.join(Entry._fields)} FROM provider_ledger ORDER BY rowid")
            return [Entry(*row) for row in rows]

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _once(self, key: str, request: str, move: Callable[[], _Answer]) -> _Answer:
        """Move money and remember the answer under `key` in one transaction; a known key only reads it.

        Raises:
            TimeoutError: First call of a key whose hash says so. The money has been moved.
            ValueError: The key was used for another request.
        """
        with self._turn:
            self._patiently("BEGIN IMMEDIATE")
            try:
                known: tuple[str, str | None, str | None] | None = self._db.execute(
                    "SELECT request, payment_id, reason FROM provider_request WHERE idempotency_key = ?", (key,)
                ).fetchone()
                if known is None:
                    answer = move()
                    self._db.execute(
                        "INSERT INTO provider_request (idempotency_key, request, payment_id, reason) "
                        "VALUES (?, ?, ?, ?)",
                        (key, request, *answer),
                    )
                elif known[0] != request:
                    raise ValueError("this idempotency key belongs to another request")
                else:
                    answer = _Answer(*known[1:])
                self._patiently("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        if known is None and sha256(b"time-out " + key.encode()).digest()[0] < 256 * self._timeouts:
            raise TimeoutError("the payment provider did not answer in time")
        return answer

    def _enter(self, entry: Entry) -> None:
        """The ledger has no unique key, so that two charges of one order can be seen."""
        self._db.execute(
            f"INSERT INTO provider_ledger ({', '.join(Entry._fields)}) VALUES (?, ?, ?, ?, ?, ?, ?)", entry
        )

    def _patiently(self, statement: str) -> None:
        """Execute as soon as no other process holds the lock.

        SQLite's own busy handler sleeps up to 100 ms at a time and lets a waiter starve; short jittered sleeps do
        not.
        """
        deadline_s = time.monotonic() + BUSY_S_MAX
        while True:
            try:
                self._db.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
            time.sleep(random.uniform(0.0005, 0.005))


def _now() -> str:
    return datetime.now(UTC).isoformat()
