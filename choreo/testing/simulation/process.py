"""One simulated process: its life, its clock, and its calls to the broker and the store, with what can go wrong."""

import asyncio
import contextvars
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from choreo.errors import ChoreoError, StoreError, TransportError
from choreo.testing.simulation.loop import PROCESS, Life

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

_Result = TypeVar("_Result")

LATENCY_S = 0.0005, 0.008
SLOW_S = 0.5, 4.0
TIMEOUT_S = 1.0, 3.0
"""How long a call waits for an answer that does not come."""
_READS = ("crash", "ack_lost", "store_slow")
_WRITES = ("crash", "crash_after", "ack_lost", "write_lost", "store_slow")
_SENDS = ("crash", "crash_after", "ack_lost", "write_lost", "write_late")
LATE_S = 0.5, 5.0
HEALTHY_S = 10.0


class Process:
    """A process of the simulated world. A killed one is never run again; its successor is another object.

    Attributes:
        name: `service-number`; the same for its successors.
        skew_s: What its clock is ahead of the world's.
        hangs: Whether it stands still for good.
        mortal: Whether it may crash in a call: somebody starts it again.
        cut_until_s, store_down_until_s: Until when it cannot reach the broker, the store.
    """

    def __init__(self, world: "World", name: str, service: str, *, mortal: bool = True) -> None:
        self.world = world
        self.name = name
        self.service = service
        self.mortal = mortal
        self.life = Life()
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self.life)
        self.skew_s = 0.0
        self.hangs = False
        self.went_on_s = 0.0
        self.cut_until_s = self.store_down_until_s = 0.0

    # ---- as a Clock

    def now_s(self) -> float:
        """What its clock says."""
        return self.world.loop.now_s + self.skew_s

    def monotonic_s(self) -> float:
        """What its timers go by."""
        return self.world.loop.now_s

    async def sleep(self, delay_s: float) -> None:
        """Return so much later."""
        await asyncio.sleep(delay_s)

    def healthy(self) -> bool:
        """Whether it runs, and has long enough, and hears what it is told."""
        since_s = max(self.cut_until_s, self.went_on_s) + HEALTHY_S
        return not (self.life.dead or self.life.stopped) and self.world.loop.now_s > since_s

    # ---- calls

    async def call(
        self,
        what: str,
        perform: Callable[[], _Result],
        *,
        to: Literal["broker", "store"],
        writes: bool,
        mortal: bool = True,
    ) -> _Result:
        """Do it over there and answer, unless something happens on the way; who is not `mortal` does not crash.

        Raises:
            TransportError, StoreError: No answer came; what was asked may have been done or not.
        """
        world, place = self.world, f"{self.name}/{what}"
        dice, loop = world.dice, world.loop
        await asyncio.sleep(dice.between(f"{place}~", *LATENCY_S))
        if loop.now_s < (self.cut_until_s if to == "broker" else self.store_down_until_s):
            await asyncio.sleep(dice.between(f"{place}?", *TIMEOUT_S))
            raise self._unanswered(what, to)
        fault = dice.fault(
            place,
            (_READS if not writes else _WRITES if to == "store" else _SENDS)[
                0 if mortal and self.mortal else 1 + writes :
            ],
        )
        if fault is None:
            return perform()
        world.note(self, fault, what)
        if fault == "store_slow":
            await asyncio.sleep(dice.between(f"{place}?", *SLOW_S))
            return perform()
        if fault in ("ack_lost", "crash_after"):
            perform()
        if fault == "write_late":
            late_s = dice.between(f"{place}?", *TIMEOUT_S) + dice.between(f"{place}?", *LATE_S)
            loop.call_later(late_s, self._late, what, perform, context=world.context)
        if fault.startswith("crash"):
            world.crash(self)
            await loop.create_future()  # nothing of it runs any more
        await asyncio.sleep(dice.between(f"{place}?", *TIMEOUT_S))
        raise self._unanswered(what, to)

    def _late(self, what: str, perform: Callable[[], object]) -> None:
        """A request arrives that nobody waits for any more; what it is answered, nobody hears."""
        self.world.note(self, "arrives late", what)
        self.world.arriving_late = True
        with suppress(Exception):
            perform()
        self.world.arriving_late = False

    def _unanswered(self, what: str, to: str) -> ChoreoError:
        error = TransportError if to == "broker" else StoreError
        return error(f"no answer to {what} from the simulated {to}")

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run it as a part of this process."""
        return self.world.loop.create_task(coroutine, context=self.context)
