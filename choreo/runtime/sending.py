"""Sends records of concurrent tasks in order a key and in bounded memory: a queue a topic, one call of the broker at
a time for each.

What comes while a call is under way goes with the next one, so that many small publications make few calls, and a
topic that cannot be written to holds up no other.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from choreo.errors import RecordTooLarge, TransportError
from choreo.record import ProducerRecord

BYTES_MAX = 32 * 1024 * 1024
CALL_RECORDS_MAX = 1000

Send = Callable[[Sequence[ProducerRecord]], Awaitable[None]]
_Unsent = tuple[ProducerRecord, "asyncio.Future[BaseException | None]"]


class OrderedSender:
    """Hands records to `send`, as `Transport.send`.

    Args:
        bytes_max: Records wait outside while those inside have so many bytes together.
    """

    def __init__(self, send: Send, *, bytes_max: int = BYTES_MAX) -> None:
        self._send = send
        self._bytes_max = bytes_max
        self._bytes = 0
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._queues: dict[str, deque[_Unsent]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def send(self, records: Sequence[ProducerRecord]) -> list[BaseException | None]:
        """Send all; returns for each, in order, None once it is acknowledged, else why it is not.

        What a caller who is cancelled has queued already is sent all the same.
        """
        ends: list[asyncio.Future[BaseException | None]] = []
        async with self._turn:  # asyncio's locks let tasks in as they come: nobody overtakes
            for record in records:
                await self._enter(record)
                ends.append(self._put(record))
        if ends:
            await asyncio.wait(ends)
        return [each.result() for each in ends]

    async def flush(self) -> None:
        """Return when nothing is on its way."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def _enter(self, record: ProducerRecord) -> None:
        size = _size(record)
        while self._bytes and self._bytes + size > self._bytes_max:
            self._room.clear()
            await self._room.wait()
        self._bytes += size

    def _put(self, record: ProducerRecord) -> "asyncio.Future[BaseException | None]":
        end: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        topic = record.topic
        self._queues.setdefault(topic, deque()).append((record, end))
        if topic not in self._tasks:
            self._tasks[topic] = asyncio.create_task(self._run(topic))
        return end

    async def _run(self, topic: str) -> None:
        queue, call = self._queues[topic], list[_Unsent]()
        try:
            while queue:
                call = [queue.popleft() for _ in range(min(len(queue), CALL_RECORDS_MAX))]
                while call:
                    call = await self._call(call, queue)
        except BaseException as error:
            self._end([*call, *queue], TransportError(f"{topic}: {type(error).__name__} before it was acknowledged"))
            raise
        finally:
            del self._tasks[topic], self._queues[topic]

    async def _call(self, call: list[_Unsent], queue: deque[_Unsent]) -> list[_Unsent]:
        """Send; returns what is to be sent again without the one that was too large."""
        try:
            await self._send([record for record, _ in call])
        except RecordTooLarge as error:
            lost = call[error.index]
            self._fail([lost], queue, error)
            return self._without_successors([lost], [each for each in call if each is not lost], error)
        except Exception as error:
            self._fail(call, queue, error)
        else:
            self._end(call, None)
        return []

    def _fail(self, lost: Sequence[_Unsent], queue: deque[_Unsent], error: BaseException) -> None:
        self._end(lost, error)
        left = self._without_successors(lost, queue, error)
        queue.clear()
        queue.extend(left)

    def _without_successors(
        self, lost: Sequence[_Unsent], unsent: Iterable[_Unsent], error: BaseException
    ) -> list[_Unsent]:
        """What does not come behind one of `lost` in its key's order; what does would overtake it."""
        keys = {record.key for record, _ in lost if record.key is not None}
        behind = [each for each in unsent if each[0].key in keys]
        self._end(behind, error)
        return [each for each in unsent if each[0].key not in keys]

    def _end(self, unsent: Iterable[_Unsent], error: BaseException | None) -> None:
        for record, end in unsent:
            if end.done():
                continue
            self._bytes -= _size(record)
            end.set_result(error)
        self._room.set()


def _size(record: ProducerRecord) -> int:
    return len(record.key or b"") + len(record.value or b"") + sum(len(value or b"") for _, value in record.headers)
