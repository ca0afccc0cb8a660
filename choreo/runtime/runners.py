"""Tasks in which handlers are invoked: one goes through the units whose turn it is until a handler waits.

Most handlers of a stream do not wait for anything. For those a task each, and a step of the core each, cost more
than the handler; so a task invokes one after the other and tells the core of all of them at once. As soon as a
handler does wait, the task is that handler's alone and another goes on with the queue: no unit waits for another.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import Context, copy_context
from types import coroutine
from typing import Any, TypeVar

from choreo.core import messages as m
from choreo.core.units import State, Unit

Result = TypeVar("Result")


class Runners:
    """The tasks of one worker.

    Args:
        invoke: Calls the unit's handler, and returns what the core is to be told. Each call has a context (PEP 567)
            of its own, as if it were a task of its own.
        tell: Told what became of units, n >= 1.
        spawn: Makes a task.
    """

    def __init__(
        self,
        invoke: Callable[[Unit], Coroutine[Any, Any, m.Input]],
        tell: Callable[[Sequence[m.Input]], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._invoke, self._tell, self._spawn = invoke, tell, spawn
        self._queue: deque[Unit] = deque()
        self._waiting: dict[Unit, asyncio.Task[Any]] = {}  # units whose handlers wait, each with a task to itself
        self._taken = False  # there is a task that goes through the queue

    def add(self, unit: Unit) -> None:
        """It is the unit's turn."""
        self._queue.append(unit)
        if not self._taken:
            self._go_on()

    def cancel_dropped(self) -> None:
        """Interrupt the handlers of units that are not ours any more; of those that wait their turn none begins."""
        for unit, task in list(self._waiting.items()):
            if unit.state is State.DROPPED:
                task.cancel()

    def _go_on(self) -> None:
        if self._queue and not self._taken:
            self._taken = True
            self._spawn(self._run())

    async def _run(self) -> None:
        """Invoke what is queued, to the first handler that waits, and that one to its end."""
        ended: list[m.Input] = []
        waited = False
        task = asyncio.current_task()
        assert task is not None

        def waits() -> None:
            nonlocal waited
            waited = True
            self._waiting[unit] = task
            self._taken = False
            self._go_on()
            if ended:
                told = ended.copy()
                ended.clear()
                self._tell(told)

        while self._queue and not waited:
            unit = self._queue.popleft()
            if unit.state is not State.RUNNING:
                continue
            invocation, context = self._invoke(unit), copy_context()
            try:
                asked = context.run(invocation.send, None)
            except StopIteration as end:
                ended.append(end.value)
            except asyncio.CancelledError:
                pass  # its handler raised it, and the unit was dropped: the others go on
            else:
                waits()
                try:
                    ended.append(await _driven(invocation, context, asked))
                finally:
                    self._waiting.pop(unit, None)
            if not waited and task.cancelling():
                await _absorbed(task)
        if not waited:
            self._taken = False
        if ended:
            self._tell(ended)


async def apart(invocation: Coroutine[Any, Any, Result]) -> Result:
    """Await it in a context (PEP 567) of its own, as if it were a task of its own, in this one."""
    context = copy_context()
    try:
        asked = context.run(invocation.send, None)
    except StopIteration as end:
        result: Result = end.value
        return result
    return await _driven(invocation, context, asked)


@coroutine
def _driven(invocation: Coroutine[Any, Any, Result], context: Context, asked: Any) -> Generator[Any, Any, Result]:
    """Await the rest of `invocation`, which waits for `asked`, within `context`."""
    run, send, throw = context.run, invocation.send, invocation.throw
    try:
        while True:
            try:
                answer = yield asked
            except BaseException as error:
                asked = run(throw, error)
            else:
                asked = run(send, answer)
    except StopIteration as end:
        ended: Result = end.value
        return ended


async def _absorbed(task: asyncio.Task[Any]) -> None:
    """A handler has cancelled the task it ran in, and ended before it came to that: the next one is not to blame."""
    while task.cancelling():
        task.uncancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        pass
