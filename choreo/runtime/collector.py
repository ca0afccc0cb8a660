"""Python's garbage collector, in a process that choreo owns."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

ALLOCATIONS = 500_000
"""Objects made and not freed until Python itself looks through the young ones: not what is in flight at full load, a
hundred thousand, but what grows beside it. Python's own 700 are those of 20 events."""
COLLECT_S = 10.0
FULL_EVERY = 60
"""Every so manieth time the old ones too, which takes 0.2 s where ten million keys are held in memory."""


@asynccontextmanager
async def collecting_less() -> AsyncIterator[None]:
    """Never look again at what is loaded by now, and at what comes by the clock rather than by number.

    Some thousand events in flight are a hundred thousand objects, none of them garbage, which Python goes through
    again and again: a fifth of the CPU time of an event. Garbage is what failures leave, tracebacks mostly.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, 10, 10)
    task = asyncio.create_task(_collect())
    try:
        yield
    finally:
        task.cancel()
        gc.unfreeze()
        gc.set_threshold(*before)


async def _collect() -> None:
    times = 0
    while True:
        await asyncio.sleep(COLLECT_S)
        times += 1
        gc.collect(1 if times % FULL_EVERY else 2)
