"""An event loop in virtual time, on which processes live, stand still and die.

Nothing on it waits for anything real: when all that is ready has run, time moves to the next timer. Every callback
belongs to the simulated process whose context it was scheduled in; those of a dead process are never run again, and
those of one that stands still wait for it, which is what SIGKILL and SIGSTOP do to a real one.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NoReturn

from choreo.testing.simulation.errors import Stalled, Unsimulated

PROCESS: contextvars.ContextVar["Life | None"] = contextvars.ContextVar("choreo_process", default=None)
"""Whose code is running; None is the world's own."""


class Life:
    """What the loop knows of one process."""

    __slots__ = ("_held", "dead", "stopped", "tasks")

    def __init__(self) -> None:
        self.dead = self.stopped = False
        self.tasks: list[asyncio.Task[Any]] = []
        """All it ever began: what a dead process left is not collected, which would run some of it."""
        self._held: list[asyncio.Handle] = []

    def stop(self) -> None:
        """Let nothing of it run until `go_on`."""
        self.stopped = True

    def go_on(self, loop: "SimulationLoop") -> None:
        """Run what has come due meanwhile, in its order."""
        self.stopped = False
        loop.ready(self._held)
        self._held = []

    def kill(self) -> None:
        """Nothing of it runs any more: no `finally`, no `except`."""
        self.dead = True
        self._held.clear()

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep it for `go_on`."""
        self._held.append(handle)


RESOLUTION_S = 1e-6
"""Timers closer than that are due at once."""


class SimulationLoop(asyncio.BaseEventLoop):
    """The loop; `now_s` is virtual seconds since the epoch."""

    def __init__(self, start_s: float) -> None:
        super().__init__()
        self.now_s = start_s
        self.set_task_factory(_task)  # type: ignore[arg-type]

    def time(self) -> float:
        """The virtual time."""
        return self.now_s

    def ready(self, handles: list[Any]) -> None:
        """Run these next."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def _run_once(self) -> None:
        """What asyncio's does, without what only a real one needs, and with an eye on whose each callback is."""
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0].cancelled():
            heappop(timers)._scheduled = False  # type: ignore[attr-defined]
        if not (ready or self._stopping):  # type: ignore[attr-defined]
            if not timers:
                raise Stalled("nothing is left that could happen, and the simulation has not ended: a deadlock")
            self.now_s = max(self.now_s, timers[0].when())
        due_s = self.now_s + RESOLUTION_S
        while timers and timers[0].when() < due_s:
            timer = heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]
            ready.append(timer)
        for _ in range(len(ready)):
            handle: Any = ready.popleft()
            if handle._cancelled:
                continue
            context = handle._context
            life: Life | None = context.get(PROCESS)
            if life is None or not (life.dead or life.stopped):
                try:
                    context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"an exception in {handle}", "exception": error})
            elif not life.dead:
                life.hold(handle)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's, without what is asked of who calls from another thread."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """The same of a time."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """The same of a time from now."""
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def wait(self, delay_s: float) -> asyncio.Future[None]:
        """What `asyncio.sleep` awaits; one that is cancelled meanwhile comes due, and nothing happens."""
        future = self.create_future()
        self.call_at(self.now_s + delay_s, _arrive, future)
        return future

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call it at once: there are no threads here, so that there is one order of things."""
        future = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def abandon(self, life: Life) -> None:
        """At the end: unwind what a dead process left, where nothing it does can be seen any more."""
        asyncio._set_running_loop(self)  # else what asks for a loop while it is unwound makes one, never closed
        try:
            for task in life.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with suppress(BaseException):
                    task.get_coro().close()
        finally:
            asyncio._set_running_loop(None)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise Unsimulated(
            "a socket, file descriptor or process of the real world was asked for in a simulation: give the handler "
            "a resource that stands for it, resources={...}"
        )

    if not TYPE_CHECKING:
        create_connection = create_server = create_datagram_endpoint = _refuse
        create_unix_connection = create_unix_server = sock_connect = sock_recv = sock_sendall = sock_accept = _refuse
        getaddrinfo = getnameinfo = subprocess_exec = subprocess_shell = add_reader = add_writer = _refuse
        connect_accepted_socket = connect_read_pipe = connect_write_pipe = add_signal_handler = _refuse


def _arrive(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(coroutine, loop=loop, **options)
    context = options.get("context")
    life = PROCESS.get() if context is None else context.get(PROCESS)
    if life is not None:
        life.tasks.append(task)
    return task
