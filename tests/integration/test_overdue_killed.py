"""Processes that watch a flow, killed in the middle of it: who waits is told once, and who was served never."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.integration.overdue_child import told

TIMERS = "choreo.stores.sqlite.instances:SqliteInstances.cancel_timers"
"""Inside the transaction of a change of state: the 4th is of the first timer, the 5th of the one that tells."""
NOTED, SENT = "choreo.stores.sqlite:SqliteStore.due_sent", "choreo.transports.embedded:EmbeddedTransport.send"
COMMIT = "choreo.stores.sqlite:SqliteStore.commit"
POINTS = [
    *((moment, TIMERS, call) for moment in ("before", "after") for call in (4, 5)),
    *((moment, NOTED, call) for moment in ("before", "after") for call in (1, 2)),
    *((moment, SENT, 4) for moment in ("before", "after")),
    *(("after", COMMIT, call) for call in (6, 8)),
]
AT_ONCE = 4


async def lived(path: Path, *point: object) -> int:
    """One life of a process; its exit code."""
    arguments = [str(each) for each in (path, *point)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.overdue_child", *arguments, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


@pytest.mark.slow
async def test_who_waits_is_told_once_wherever_the_watch_is_killed(tmp_path: Path) -> None:
    """In the transactions of its timers, while they are sent, and after commits."""
    room = asyncio.Semaphore(AT_ONCE)

    async def killed(number: int) -> tuple[int, int, list[str]]:
        path = tmp_path / f"{number}.db"
        async with room:
            first = await lived(path, *POINTS[number])
            return first, await lived(path), told(str(path))

    found = await asyncio.gather(*(killed(number) for number in range(len(POINTS))))
    assert dict(zip(POINTS, found, strict=True)) == dict.fromkeys(POINTS, (-signal.SIGKILL, 0, ["Eve"]))
