"""Ending aiokafka's clients in bounded time, whatever their state. Private API of 0.14.0, as in kafka/client.py."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors
from aiokafka.consumer.group_coordinator import GroupCoordinator

log = logging.getLogger(__name__)

DISCARD_S = 2.0


async def discard(producer: AIOKafkaProducer) -> None:
    """Disconnect without flushing, whatever state it is in, and fail what is still queued.

    `AIOKafkaProducer.stop` flushes first (0.14: producer.py:342), for ever if no broker answers.
    """
    producer._closed = True  # else its __del__ warns
    # What still runs in it could connect again, find the coordinator and end a transaction behind our back.
    producer.client.send = _refuse
    accumulator, client, task = producer._message_accumulator, producer.client, producer._sender.sender_task
    manager = producer._txn_manager
    # Looked up before it fails: 0.14 takes those it has failed out of its lists, and nobody may wait for them.
    waiting = [] if manager is None else _waiting(manager)
    accumulator._exception = errors.ProducerClosed()  # refuse what another task is handing over
    accumulator.reenqueue = _fail  # what failed and waits to be sent again
    if task is not None:
        task.cancel()
    await _close_client(client)
    if task is not None:  # it waits for its requests, which have just failed
        await asyncio.wait({task}, timeout=DISCARD_S)
        await _close_client(client)  # what they may have opened again
    # 0.14 looks there for each batch that was sent before, also for those to be sent again, which it took out.
    accumulator._pending_batches.update(one for queue in accumulator._batches.values() for one in queue)
    accumulator.fail_all(errors.ProducerClosed())
    if accumulator._wakeup_handle is not None:
        accumulator._wakeup_handle.cancel()
    for batch in accumulator._pending_batches:
        if batch._drain_waiter.done():
            batch._drain_waiter.exception()  # seen: asyncio would log it as never retrieved
    if manager is not None:
        _end_transaction(manager, waiting)


async def quietly(work: Coroutine[Any, Any, None]) -> None:
    """Do it in the background of what matters: an error is logged."""
    try:
        await work
    except Exception:
        log.exception("a discarded Kafka producer did not close cleanly")


def _fail(batch: Any) -> None:
    batch.failure(errors.ProducerClosed())


async def _refuse(*_: Any, **__: Any) -> Any:
    raise errors.ProducerClosed()


def _waiting(manager: Any) -> list[asyncio.Future[Any]]:
    """Who waits for a transaction's offsets or its end."""
    ends = [] if manager._transaction_waiter is None else [manager._transaction_waiter]
    return [*(future for *_, future in manager._pending_txn_offsets), *ends]


def _end_transaction(manager: Any, waiting: Sequence[asyncio.Future[Any]]) -> None:
    """Fail those who wait for its offsets or its end; 0.14 does so only if the sender ends with an exception."""
    waiting = [*waiting, *_waiting(manager)]
    manager._pending_txn_offsets.clear()
    for future in waiting:
        if not future.done():
            future.set_exception(errors.ProducerClosed())
        if not future.cancelled():
            future.exception()  # seen


async def _close_client(client: Any) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            await client.close()
    # The task that would answer those who wait for metadata is gone: 0.14 lets them wait for ever (client.py:close).
    if client._md_update_fut is None:
        client._md_update_fut = asyncio.get_running_loop().create_future()
    if not client._md_update_fut.done():
        client._md_update_fut.set_result(False)


async def stop(consumer: AIOKafkaConsumer, *, timeout_s: float) -> bool:
    """`AIOKafkaConsumer.stop`, and whether it came to its end; 0.14 waits in it for a rebalance to be over."""
    stopping = asyncio.ensure_future(consumer.stop())  # a task of its own: 0.14 may raise CancelledError out of it
    await asyncio.wait({stopping}, timeout=timeout_s)
    if stopping.done() and not stopping.cancelled() and stopping.exception() is None:
        return True
    stopping.cancel()
    await asyncio.wait({stopping}, timeout=DISCARD_S)
    await abandon(consumer)
    return False


async def abandon(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and disconnect although `stop` did not end, e.g. while a rebalance holds it up."""
    consumer._closed = True  # else its __del__ warns
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            if isinstance(coordinator, GroupCoordinator):
                coordinator._coordination_task.cancel()
                await asyncio.wait({coordinator._coordination_task})
                await coordinator._stop_heartbeat_task()
                await coordinator._stop_commit_offsets_refresh_task()
                await coordinator._maybe_leave_group()
    if fetcher is not None:
        await asyncio.wait({asyncio.ensure_future(fetcher.close())}, timeout=DISCARD_S)
    await _close_client(consumer._client)
