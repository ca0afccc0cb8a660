"""The clock, so that time can be virtual."""

from typing import Protocol


class Clock(Protocol):
    """Time as the runtime sees it; the virtual one lives in `choreo.testing`."""

    def now_s(self) -> float:
        """Seconds since the epoch; set now and then, forward and back."""

    def monotonic_s(self) -> float:
        """Seconds since some moment, for what is to happen later; never set back."""

    async def sleep(self, delay_s: float) -> None:
        """Return `delay_s` seconds later."""
