"""The system's clock; the virtual one is in `choreo.testing`."""

import asyncio
import time


class SystemClock:
    """Real time."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, delay_s: float) -> None:
        """Return `delay_s` seconds later."""
        await asyncio.sleep(delay_s)
