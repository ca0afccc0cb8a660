"""The system's clock; the virtual one is in `choreo.testing`."""

import asyncio
import time


class SystemClock:
    """Real time."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        """Return `delay_s` seconds later."""
        await asyncio.sleep(delay_s)
