"""Tells the store what was sent and the broker what is done, beside the next flush, which does not wait for it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from choreo.errors import ChoreoError
from choreo.ports import CommitRequest, CommitResult, Lease
from choreo.record import TopicPartition

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")
OFFSETS_S = 0.05
"""Between two times that the broker is told the offset, where the store knows what is done: after a crash that much
more comes again and is found done, and under load it is one request for several flushes."""
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class _Beside:
    """Done in a task of its own, and once more, `pause_s` later, if it is asked for meanwhile."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], spawn: Spawn, pause_s: float = 0.0) -> None:
        self._work, self._spawn, self._pause_s = work, spawn, pause_s
        self._asked = self._at_work = False

    def ask(self) -> None:
        """It is to be done from now on."""
        self._asked = True
        if not self._at_work:
            self._at_work = True
            self._spawn(self._run())

    async def _run(self) -> None:
        try:
            while self._asked:
                self._asked = False
                await self._work()
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)
        finally:
            self._at_work = False


class Teller:
    """What store and broker of one worker are still to be told; `spawn` makes a task.

    Attributes:
        on_log: Rows of the outbox that were sent, and that the store does not know to be.
    """

    def __init__(self, worker: "Worker", spawn: Spawn) -> None:
        self.on_log: set[int] = set()
        self._worker = worker
        self._offsets: dict[TopicPartition, tuple[Lease, int]] = {}
        self._telling = asyncio.Lock()
        self._store = _Beside(self._confirm, spawn)
        self._broker = _Beside(self.commit_offsets, spawn, OFFSETS_S)

    def sent(self, rows: Iterable[int]) -> None:
        """The store is to be told that these are on the log."""
        self.on_log.update(rows)
        self._store.ask()

    def done(self, request: CommitRequest, result: CommitResult) -> None:
        """The broker is to be told the offsets of a commit."""
        kept = {id_: offset for id_, offset in request.offsets.items() if id_ not in result.refused}
        self._offsets.update({id_: (request.leases[id_], offset) for id_, offset in kept.items()})
        if kept:
            self._broker.ask()

    async def tell(self) -> None:
        """Tell both all of it now; what fails is tried again later."""
        await self._confirm()
        await self.commit_offsets()

    async def _confirm(self) -> None:
        rows = sorted(self.on_log)
        if not rows:
            return
        try:
            await self._worker.ports.store.sent(rows)
        except ChoreoError as error:
            log.info("%s: %d emits stay in the outbox for now: %s", self._worker.service.name, len(rows), error)
        else:
            self.on_log.difference_update(rows)

    async def commit_offsets(self) -> None:
        """Commit those that a flush was to commit and the broker has not taken yet; what fails is tried again later.

        Until then no harm is done: what comes again is found done.
        """
        async with self._telling:  # one after the other, or an older one could come last
            # Of a partition that was lost meanwhile, and perhaps assigned again, another owner has committed more.
            leases = self._worker.leases
            ours = {id_: each for id_, each in self._offsets.items() if leases.get(id_) == each[0]}
            self._offsets = ours.copy()
            if not ours:
                return
            try:
                await self._worker.consumer.commit({id_: offset for id_, (_, offset) in ours.items()})
            except ChoreoError as error:
                log.info("%s: offsets were not committed: %s", self._worker.service.name, error)
                return
            for id_, each in ours.items():
                if self._offsets.get(id_) == each:
                    del self._offsets[id_]
