"""The companies outside that are asked, as ports; and a stand-in for each, slow or down for some."""

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

SLOW, DOWN = 0.06, 0.05
"""Share of companies about which the bureau thinks long, and about which the archive cannot be reached."""


class CreditBureau(Protocol):
    """Scores a company, from 0 to 1000."""

    async def score(self, company: str) -> int:
        """The score."""


class NewsArchive(Protocol):
    """Finds what was written."""

    async def search(self, company: str) -> Sequence[str]:
        """Headlines, the newest first.

        Raises:
            ConnectionError: It is down.
        """


class FakeBureau:
    """A `CreditBureau`; the same companies are always the slow ones.

    Args:
        quick_s, slow_s: How long it thinks, in seconds.
    """

    def __init__(self, quick_s: float = 0.02, slow_s: float = 15.0) -> None:
        self._quick_s, self._slow_s = quick_s, slow_s

    async def score(self, company: str) -> int:
        """See `CreditBureau.score`."""
        await asyncio.sleep(self._slow_s if is_slow(company) else self._quick_s)
        return int(1000 * _share("score", company))


class FakeArchive:
    """A `NewsArchive`; for some companies it is always down."""

    async def search(self, company: str) -> Sequence[str]:
        """See `NewsArchive.search`."""
        if is_down(company):
            raise ConnectionError("the archive does not answer")
        found = [f"{company} opens an office", f"{company} is looking for people"]
        return found[: int(3 * _share("news", company))]


def is_slow(company: str) -> bool:
    """Whether the fake bureau thinks long about it."""
    return _share("slow", company) < SLOW


def is_down(company: str) -> bool:
    """Whether the fake archive cannot be reached for it."""
    return _share("down", company) < DOWN


def _share(what: str, company: str) -> float:
    """From 0 up to 1, always the same one."""
    return sha256(f"{what} {company}".encode()).digest()[0] / 256
