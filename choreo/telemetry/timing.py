"""A store, a transport and its consumers with their calls timed. In between only where somebody wants metrics."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from choreo.ports import Assignment, Consumer
from choreo.record import ProducerRecord, Record, TopicPartition

STORE_CALLS = ("acquire", "renew", "claim", "commit", "pending", "sent", "release", "purge")

Took = Callable[[float, BaseException | None], None]
"""Told how long a call took, in seconds, and what it raised."""
T = TypeVar("T")


class _Timed:
    """All that is not timed is the target's own."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


class TimedStore(_Timed):
    """As `IdempotencyStore`.

    Args:
        took: Told the call's name first; of a commit with handlers inside, `transact`.
    """

    def __init__(self, store: Any, took: Callable[[str, float, BaseException | None], None]) -> None:
        super().__init__(store)
        self._took = took
        for name in STORE_CALLS:
            setattr(self, name, partial(self._call, name, getattr(store, name)))

    async def _call(self, name: str, function: Callable[..., Awaitable[T]], *given: Any, **named: Any) -> T:
        inside = name == "commit" and given[0].transacted
        return await _timed(function(*given, **named), partial(self._took, "transact" if inside else name))


class TimedTransport(_Timed):
    """As `Transport`.

    Args:
        sent: Told of each `send`, and the records.
        joined: Makes a consumer a timed one; given the group and the consumer.
    """

    def __init__(
        self,
        transport: Any,
        sent: Callable[[Sequence[ProducerRecord], float, BaseException | None], None],
        joined: Callable[[str, Consumer], Any],
    ) -> None:
        super().__init__(transport)
        self._sent = sent
        self._joined = joined

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> Any:
        """The target's, timed."""
        return self._joined(group, await self._target.consumer(group, topics, assignment))

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Timed."""
        await _timed(self._target.send(records), partial(self._sent, records))


class TimedConsumer(_Timed):
    """As `Consumer`.

    Args:
        fetched: Told of each `fetch` that returned records, and of those.
        committed: Told of each `commit`.
    """

    def __init__(self, consumer: Any, fetched: Callable[[Sequence[Record], float], None], committed: Took) -> None:
        super().__init__(consumer)
        self._fetched = fetched
        self._committed = committed

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """Timed if it returns something: else it measures for how long nothing came."""
        began_s = perf_counter()
        records: Sequence[Record] = await self._target.fetch(records_max=records_max, wait_s=wait_s)
        if records:
            self._fetched(records, perf_counter() - began_s)
        return records

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Timed."""
        await _timed(self._target.commit(offsets), self._committed)


async def _timed(call: Awaitable[T], took: Took) -> T:
    began_s = perf_counter()
    try:
        result = await call
    except asyncio.CancelledError:
        raise  # it says nothing of the other end
    except BaseException as error:
        took(perf_counter() - began_s, error)
        raise
    took(perf_counter() - began_s, None)
    return result
