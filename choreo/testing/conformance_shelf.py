"""What the conformance suite of stores plays on: a store as a worker uses it, and what it made durable."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, Literal
from uuid import uuid4

from choreo.ports import (
    Carries,
    Claimed,
    ClaimRequest,
    CommitRequest,
    Finished,
    IdempotencyStore,
    Lease,
    TopicSpec,
    Transacted,
    Transport,
)
from choreo.record import ProducerRecord, TopicPartition
from choreo.testing.conformance_stage import Conformance

StoreGuarantee = Carries | Literal["anywhere", "deliveries"]
"""What a store carries; and whether it knows a key from whichever partition it comes, and counts deliveries."""

CARRIES = frozenset({"offset", "emits", "outbox", "rows", "parked"})


class Shelf:
    """A store as a worker uses it, with a group, two partitions and an output topic of its own."""

    def __init__(self, store: IdempotencyStore, group: str) -> None:
        self.store = store
        self.group = group
        self.output = f"output-{uuid4()}"
        input_ = f"input-{uuid4()}"
        self.p, self.q = TopicPartition(input_, 0), TopicPartition(input_, 1)

    async def lease(self, partition: TopicPartition, owner: str = "one") -> Lease:
        """Take one partition."""
        (lease,) = await self.store.acquire(self.group, [partition], owner)
        return lease

    async def claim(
        self, lease: Lease, key: bytes, fingerprint: bytes = b"12345678", *, solo: bool = False
    ) -> Claimed:
        """Claim one key."""
        request = ClaimRequest(lease.partition, key, fingerprint, "service.handler", 7, "flow", 0, solo)
        (answer,) = await self.store.claim([lease], [request])
        return answer

    def emit(self, number: int) -> ProducerRecord:
        """A follow-on event."""
        return ProducerRecord(self.output, b"k", b"%d" % number, (("ce_id", b"%d" % number),))

    def request(self, *units: tuple[Lease, bytes, int], inside: tuple[Transacted, ...] = ()) -> CommitRequest:
        """A flush of units (lease, key, number of its one emit), or of none but those `inside`."""
        leases = {lease.partition: lease for lease, _, _ in units}
        finished = [
            Finished(lease.partition, 7, key, (self.emit(number),), "handled") for lease, key, number in units
        ]
        return CommitRequest(leases, finished, dict.fromkeys(leases, 8), inside)


class OnShelf(Conformance):
    """What an author of a store writes, and what its tests look at.

    Attributes:
        row_sql: Of the rows' table: to create it, to insert `{}` into it, and to read it, on `execute`.
        wants: The one of the store's `transaction_types` that handlers ask for.
        is_async: Whether they are coroutines, and `insert` has to be awaited.
    """

    guarantees: ClassVar[frozenset[StoreGuarantee]]
    wants: ClassVar[str] = "sqlite3.Connection"
    is_async: ClassVar[bool] = False
    row_sql: ClassVar[tuple[str, str, str]] = (
        "CREATE TABLE IF NOT EXISTS conformance_row (text VARCHAR(200))",
        "INSERT INTO conformance_row VALUES ('{}')",
        "SELECT text FROM conformance_row",
    )

    def store(self) -> AbstractAsyncContextManager[IdempotencyStore]:
        """An open store, closed with the block."""
        raise NotImplementedError

    def log(self) -> Transport:
        """The open transport whose log a commit writes to, within the block of `store`; for `emits` and `offset`."""
        raise NotImplementedError

    def group(self) -> str:
        """A consumer group that nobody used before."""
        return f"group-{uuid4()}"

    async def prepare(self, shelf: Shelf) -> None:
        """Whatever else has to be there before the first `acquire`, when input and output topics are."""

    def insert(self, transaction: Any, sql: str) -> Any:
        """Execute one statement of a handler's on its transaction."""
        return transaction.execute(sql)

    @asynccontextmanager
    async def shelf(self) -> AsyncIterator[Shelf]:
        """What one test plays on."""
        async with self.store() as store:
            shelf = Shelf(store, self.group())
            if self.guarantees & {"emits", "offset"}:
                await self.log().create_topics([TopicSpec(shelf.output, 1), TopicSpec(shelf.p.topic, 2)])
                output = [shelf.emit(number) for number in range(8)]
                await self.log().send([ProducerRecord(shelf.p.topic, *each[1:4], 0) for each in output])
            await self.prepare(shelf)
            if "rows" in self.guarantees:
                await store.run(lambda connection: connection.execute(self.row_sql[0]))
            yield shelf

    async def emitted(self, shelf: Shelf, lease: Lease) -> list[int]:
        """The numbers of the emits that are durable, on the log or in the outbox of a partition."""
        if "emits" in self.guarantees:
            return [int(each.value or b"") for each in await self.log().scan([shelf.output], since_ms=0)]
        if "outbox" in self.guarantees:
            return [int(each.value or b"") for _, each in await shelf.store.pending(lease)]
        return []

    def durable(self, *numbers: int) -> list[int]:
        """What `emitted` is to say."""
        return list(numbers) if self.guarantees & {"emits", "outbox"} else []

    def inside(
        self, shelf: Shelf, lease: Lease, key: bytes, name: str, number: int, lane: str, *, fails: bool = False
    ) -> Transacted:
        """A handler that writes one row and emits one number, inside the commit."""

        statement = self.row_sql[1].format(name)

        def done() -> Finished:
            if fails:
                raise ZeroDivisionError
            return Finished(lease.partition, 7, key, (shelf.emit(number),), "handled")

        def invoke(transaction: Any, _: Any) -> Finished:
            self.insert(transaction, statement)
            return done()

        async def invoke_async(transaction: Any, _: Any) -> Finished:
            await self.insert(transaction, statement)
            return done()

        call = invoke_async if self.is_async else invoke
        return Transacted(lease.partition, key, lane, self.wants, self.is_async, call)

    async def found(self, shelf: Shelf, names: list[str]) -> list[str]:
        """Those of the texts that are in the table, as often as they are."""
        found: list[str] = []

        def read(connection: Any) -> None:
            rows = connection.execute(self.row_sql[2]).fetchall()
            found.extend(row[0] for row in rows if row[0] in names)

        await shelf.store.run(read)
        return found
