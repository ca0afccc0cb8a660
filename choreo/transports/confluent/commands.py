"""What other threads want done on the thread that polls."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from choreo.errors import TransportError

T = TypeVar("T")


def _look_again() -> None:
    """A command for the thread to wake up at."""


class Commands:
    """Given from any thread, run one after another on the one that obeys, until it is over."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._over = False

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run it between two polls, or while something is waited for; a TransportError when that is over."""
        future: Future[T] = Future()

        def act() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._over:
                    raise TransportError("this member of the group is closed")
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._given.put(act)
        if self._over:
            self.obey()
        return future

    def wake(self) -> None:
        """Have it look again at what it waits for."""
        self._given.put(_look_again)

    def obey(self, wait_s: float = 0.0) -> None:
        """Run all there are; if there are none, those that come within `wait_s`, as soon as they do."""
        try:
            while True:
                self._given.get(timeout=wait_s)() if wait_s else self._given.get_nowait()()
                wait_s = 0.0
        except queue.Empty:
            pass

    def end(self) -> None:
        """Nobody obeys any more: each command that is left, or comes, finds it over, and says so."""
        self._over = True
        self.obey()
