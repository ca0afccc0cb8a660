"""Calls of librdkafka that block, on a thread of their own, with a deadline also for one that never comes back."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from choreo.errors import TransportError
from choreo.transports.confluent.client import KafkaException, error_of

GRACE_S = 2.0
"""Beyond its deadline, after which a call is taken to hang."""


class Hung(TransportError):
    """A call did not come back; nothing more can be run on its thread."""


class CallThread:
    """Runs calls one after another, until it was `ended`.

    Not an executor: when the interpreter ends it waits for the threads of those, also for one that hangs.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], object], Future[Any]] | None] = queue.SimpleQueue()
        self.ended = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, function: Callable[[], object], within_s: float) -> None:
        """Run it behind what was called before; it goes on if the caller is cancelled.

        Raises:
            Hung: It did not come back within its deadline, and some.
        """
        if self.ended:
            raise TransportError("closed")
        future: Future[Any] = Future()
        self._calls.put((function, future))
        called = asyncio.wrap_future(future)
        called.add_done_callback(lambda found: found.cancelled() or found.exception())  # seen
        done, _ = await asyncio.wait({called}, timeout=within_s + GRACE_S)
        if not done:
            raise Hung("no end in time")
        called.result()

    def end(self, last: Callable[[], object] | None = None) -> None:
        """Run what was called, then `last`, then nothing more; does not wait."""
        self.ended = True
        if last is not None:
            self._calls.put((last, Future()))
        self._calls.put(None)

    def _run(self) -> None:
        while (found := self._calls.get()) is not None:
            function, future = found
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            del function, future, found


def until(until_s: float, function: Callable[[float], object]) -> None:
    """Call it again while librdkafka says so; each of these goes on where it stood."""
    while True:
        try:
            function(max(0.1, until_s - time.monotonic()))
            return
        except KafkaException as error:
            found = error_of(error)
            if found is None or not found.retriable() or time.monotonic() >= until_s:
                raise
