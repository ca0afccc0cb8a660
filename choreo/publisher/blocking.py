"""The Publisher of applications without an event loop: scripts, Django, Flask, from any of their threads."""

import asyncio
import atexit
import contextvars
import os
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from itertools import islice
from typing import Any, Self, TypeVar

from choreo.event import Event
from choreo.publisher.publishing import SLICE_EVENTS, Publisher
from choreo.publisher.stamping import Reference

T = TypeVar("T")


class BlockingPublisher:
    """A `Publisher` whose calls block, on an event loop in a thread of its own. Threads may share it.

        with BlockingPublisher() as publisher:
            publisher.publish(OrderPlaced(...), id=request_key)

    One at module level connects at the first publication, in each process anew where a server forks, and disconnects
    when the process ends.

    Args:
        broker: As `Publisher`.
        settings: The other arguments of `Publisher`.
    """

    def __init__(self, broker: str | None = None, **settings: Any) -> None:
        self._broker = broker
        self._settings = settings
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._closes_at_exit = False
        Publisher(broker, **settings)  # a wrong argument is said here, not at the first publication

    def __enter__(self) -> Self:
        """Connect; raises as `Publisher` does."""
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is on its way, and disconnect."""
        self.close()

    def publish(self, event: Event, *, id: str | None = None, correlation_id: str | None = None) -> Reference:
        """As `Publisher.publish`."""
        running = self._open()
        return running.call(running.publisher.publish(event, id=id, correlation_id=correlation_id))

    def publish_many(
        self, events: Iterable[Event | tuple[Event, str | None]], *, correlation_id: str | None = None
    ) -> list[Reference]:
        """As `Publisher.publish_many`."""
        running, left, references = self._open(), iter(events), list[Reference]()
        while part := list(islice(left, SLICE_EVENTS)):
            references += running.call(running.publisher.publish_many(part, correlation_id=correlation_id))
        return references

    def close(self) -> None:
        """Wait for what is on its way, and disconnect; the next publication connects again."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None and running.pid == os.getpid():
            running.stop()

    def _open(self) -> "_Running":
        with self._lock:
            running = self._running
            if running is None or running.pid != os.getpid():  # a fork has no threads of its parent's
                running = _Running(Publisher(self._broker, **self._settings))
                running.start()
                self._running = running
                self._close_at_exit()
            return running

    def _close_at_exit(self) -> None:
        if not self._closes_at_exit:
            self._closes_at_exit = True
            # atexit's own come when no executor takes work any more, and closing a transport needs one.
            register = getattr(threading, "_register_atexit", atexit.register)
            register(self.close)


class _Running:
    """An event loop on its thread, and the publisher that is open there."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="choreo-publisher", daemon=True)

    def start(self) -> None:
        """Connect."""
        self._thread.start()
        try:
            self.call(self.publisher.__aenter__())
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """Disconnect."""
        try:
            self.call(self.publisher.__aexit__())
        finally:
            self._end()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns. It runs in the caller's context, so that spans nest below the caller's."""
        result: Future[T] = Future()

        def begin() -> None:
            task = self._loop.create_task(coroutine)
            task.add_done_callback(lambda done: _settle(done, result))

        self._loop.call_soon_threadsafe(begin, context=contextvars.copy_context())
        return result.result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _settle(done: "asyncio.Task[T]", result: "Future[T]") -> None:
    if done.cancelled():
        result.cancel()
    elif (error := done.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result())
