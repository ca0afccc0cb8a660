"""What a store is left with by a choreo that was killed, told through its port; and that today's goes on from there.

Each store gets as much of it as it carries.
"""

from typing import Any, cast

from choreo.instances import INSTANCES, Instance, Instances, Intervention, OperatedStore, Timer
from choreo.parked import ParkedStore, Waits
from choreo.ports import Claimed, ClaimRequest, CommitRequest, Finished, IdempotencyStore, Lease, Transacted
from choreo.record import ProducerRecord, TopicPartition

GROUP = "kitchen"
P = TopicPartition("orders", 0)
HEADERS = (("ce_specversion", b"1.0"), ("ce_id", "ü-1".encode()), ("traceparent", None), ("\udcff", b"\xff"))
EMIT = ProducerRecord("out", b"k\x00", b'{"id": 1}', HEADERS)
HANDLED, LETTER, OPEN, PARKED, MOVED = (bytes([number]) * 16 for number in range(1, 6))
QUEUE, ROW = b"q" * 16, b"r" * 16
PRINT = b"12345678"
TIME_MS = 1_767_225_600_000
INSTANCE = Instance("story", "ö-1", 2, "waiting", b'{"note": "x"}', False, b'[["a.b", "{}"]]', "flow-1")
TIMER = Timer("story", "ö-1", "reminder", "token-1", 4_000_000_000_000, 3, "flow-1", "00-" + "1" * 32)
BY_HAND = Intervention("story", "ö-1", "set_state", "Ada", "it was stuck", "flow-1")


def _request(digest: bytes, offset: int, fingerprint: bytes = PRINT) -> ClaimRequest:
    return ClaimRequest(P, digest, fingerprint, "kitchen.cook", offset, "flow-1", TIME_MS + offset)


async def leave(store: IdempotencyStore) -> None:
    """Two keys done, an emit that is not sent, a claim of one who was killed; a queue, an instance, a timer."""
    (lease,) = await store.acquire(GROUP, [P], "old")
    await store.claim([lease], [_request(HANDLED, 7), _request(LETTER, 8), _request(OPEN, 9)])
    finished = [
        Finished(P, 7, HANDLED, (EMIT,) if "outbox" in store.carries else (), "handled", 2, 0.25),
        Finished(P, 8, LETTER, (), "dead_letter:rejected"),
    ]
    if "parked" in store.carries:
        await store.claim([lease], [_request(PARKED, 10)])
        waits = Waits(QUEUE, ROW, "cook", EMIT, "handler_failed", "détail", 3, "flow-1")
        finished.append(Finished(P, 10, PARKED, (), "parked:", parking=waits))
    await store.commit(CommitRequest({P: lease}, finished, {P: 9}))
    if INSTANCES in store.transaction_types:
        await _moved(store, lease)
    await store.renew([lease], 30.0, {P: TIME_MS + 9})


async def _moved(store: IdempotencyStore, lease: Lease) -> None:
    await store.claim([lease], [_request(MOVED, 11)])

    def invoke(instances: Any, _: Any) -> Finished:
        cast("Instances", instances).save(INSTANCE)
        cast("Instances", instances).set_timer(TIMER)
        return Finished(P, 11, MOVED, (), "handled")

    inside = Transacted(P, MOVED, "lane", INSTANCES, False, invoke)
    result = await store.commit(CommitRequest({P: lease}, [], {}, (inside,)))
    assert isinstance(result.transacted[0], Finished)
    await cast("OperatedStore", store).intervene(lambda _: [BY_HAND])


async def goes_on(store: IdempotencyStore) -> None:
    """Every key, row and claim is what it was to the choreo that left it."""
    stats = (await store.stats())[GROUP]
    assert stats.progress_ms == TIME_MS + 9
    assert stats.keys == 2 + ("parked" in store.carries) + (INSTANCES in store.transaction_types)
    (lease,) = await store.acquire(GROUP, [P], "new")
    assert lease.epoch > 1
    answers = await store.claim(
        [lease],
        [_request(HANDLED, 7), _request(LETTER, 8), _request(OPEN, 9), _request(HANDLED, 7, b"another!")],
    )
    assert [each.verdict for each in answers] == ["done", "done", "fresh", "conflict"]
    assert answers[2] == Claimed("fresh", deliveries=2)
    if "outbox" in store.carries:
        ((row, record),) = await store.pending(lease)
        assert record == EMIT
        await store.sent([row])
    if "parked" in store.carries:
        await _still_parked(store)
    if INSTANCES in store.transaction_types:
        await _still_there(cast("OperatedStore", store))
    await store.commit(CommitRequest({P: lease}, [Finished(P, 9, OPEN, (), "handled")], {P: 12}))
    await store.release([lease])


async def _still_parked(store: Any) -> None:
    (head,) = await cast("ParkedStore", store).parked(GROUP)
    assert (head.row, head.handler, head.record) == (ROW, "cook", EMIT)
    assert (head.reason, head.detail, head.attempts, head.correlation_id) == ("handler_failed", "détail", 3, "flow-1")
    assert (head.due_ms, head.behind) == (None, 0)


async def _still_there(store: OperatedStore) -> None:
    found = await store.instance("story", INSTANCE.key)
    assert found is not None
    instance, timers = found
    assert instance._replace(updated_ms=0) == INSTANCE._replace(revision=1)
    assert list(timers) == [TIMER]
    (by_hand,) = await store.interventions("story", INSTANCE.key)
    assert by_hand._replace(at_ms=0) == BY_HAND
