"""Ending aiokafka's clients in bounded time, whatever their state. Private API of 0.14.0, as in kafka_client.py."""

import asyncio
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors
from aiokafka.consumer.group_coordinator import GroupCoordinator

DISCARD_S = 2.0


async def discard(producer: AIOKafkaProducer) -> None:
    """Disconnect without flushing, whatever state it is in, and fail what is still queued.

    `AIOKafkaProducer.stop` flushes first (0.14: producer.py:342), for ever if no broker answers.
    """
    producer._closed = True  # else its __del__ warns
    accumulator, client, task = producer._message_accumulator, producer.client, producer._sender.sender_task
    accumulator._exception = errors.ProducerClosed()  # refuse what another task is handing over
    if task is not None:
        task.cancel()
    await _close_client(client)
    if task is not None:  # it waits for its requests, which have just failed
        await asyncio.wait({task}, timeout=DISCARD_S)
        await _close_client(client)  # what they may have opened again
    accumulator.fail_all(errors.ProducerClosed())
    if accumulator._wakeup_handle is not None:
        accumulator._wakeup_handle.cancel()
    for batch in (*accumulator._pending_batches, *(one for queue in accumulator._batches.values() for one in queue)):
        if batch._drain_waiter.done():
            batch._drain_waiter.exception()  # seen: asyncio would log it as never retrieved


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
