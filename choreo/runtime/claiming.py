"""Asks the store who may handle what was fetched: a call at a time, and what comes meanwhile goes with the next one.

Where little comes each fetch is claimed at once; where much comes it is the calls that grow, and not their number.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from choreo.core import messages as m
from choreo.core.parking import follows
from choreo.core.units import CLAIMING, Unit
from choreo.errors import ChoreoError, LeaseLost
from choreo.ports import Claimed, ClaimRequest, Lease
from choreo.record import TopicPartition, new

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

log = logging.getLogger("choreo.worker")
PATIENCE_S = 0.5
"""A call may wait for a lock that a paused process holds; what has nothing to do with it is asked beside it then."""
_NOT_OURS = Claimed("busy")


class Claimer:
    """Claims of one worker.

    Args:
        tell: Told the store's answers, n >= 1.
        spawn: Makes a task.
        renew: Finds out which leases are lost.
    """

    def __init__(
        self,
        worker: "Worker",
        tell: Callable[[Sequence[m.Input]], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self._worker, self._tell, self._spawn, self._renew = worker, tell, spawn, renew
        self._waiting: list[m.Claim] = []
        self._taken = False

    def add(self, claim: m.Claim) -> None:
        """Ask for it, together with all else that waits."""
        self._waiting.append(claim)
        if not self._taken:
            self._taken = True
            self._spawn(self._run())

    async def _run(self) -> None:
        while self._waiting:
            claims, self._waiting = self._waiting, []
            await asyncio.wait({self._spawn(self._ask(claims))}, timeout=PATIENCE_S)
        self._taken = False

    async def _ask(self, claims: Sequence[m.Claim]) -> None:
        """In one call, unless a lease is lost: then each by itself, since the others' are not."""
        held = dict(self._worker.leases)
        # Of what was revoked while it waited nobody wants to know.
        asked = [([unit for unit in units if unit.state is CLAIMING], solo) for units, solo in claims]
        requests = self._requests(asked, held)
        wanted = {request.partition for request in requests}
        try:
            found = await self._worker.ports.store.claim([held[id_] for id_ in wanted], requests) if wanted else ()
        except LeaseLost:
            if len(claims) == 1:
                self._tell([m.ClaimFailed(claims[0].units)])
                await self._renew()
                return
            for claim in claims:
                await self._ask([claim])
            return
        except ChoreoError as error:
            log.warning("%s: the store did not take a claim, trying again: %s", self._worker.service.name, error)
            self._tell([m.ClaimFailed(units) for units, _ in claims])
            return
        verdicts = iter(found)
        self._tell(
            [
                m.Claimed(units, [next(verdicts) if unit.partition in held else _NOT_OURS for unit in units])
                for units, _ in asked
            ]
        )

    def _requests(
        self, asked: Iterable[tuple[Iterable[Unit], bool]], held: Mapping[TopicPartition, Lease]
    ) -> list[ClaimRequest]:
        name = self._worker.service.name
        return [
            _request(unit, f"{name}.{unit.handler}", solo)
            for units, solo in asked
            for unit in units
            if unit.partition in held
        ]


def _request(unit: Unit, handler: str, solo: bool) -> ClaimRequest:
    digest, fingerprint, flow, log_ms = unit.digest, unit.fingerprint, unit.correlation_id, unit.entry.timestamp_ms
    queue = unit.queue if unit.queue is not None and follows(unit) else None
    return new(ClaimRequest, (unit.partition, digest, fingerprint, handler, unit.offset, flow, log_ms, solo, queue))
