"""The supervisor of workers, with small programs for workers."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from choreo.cli import supervising
from choreo.cli.supervising import PAUSE_MAX_S, RESTARTS_MAX, WELL_S, Restarts, Supervisor, asked_at

WAITS = "import time; open('up', 'a').write('up\\n'); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS


def supervisor(code: str, *, workers: int = 2) -> Supervisor:
    """Of workers that run this code."""
    return Supervisor([sys.executable, "-c", code], dict(os.environ), workers=workers, drain_s=0.2, health=None)


def text(name: str) -> str:
    """What workers wrote, nothing yet being nothing."""
    return Path(name).read_text() if Path(name).exists() else ""


async def up(workers: int) -> None:
    """Wait until so many have started."""
    async with asyncio.timeout(20):
        while len(text("up").splitlines()) < workers:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and pauses that are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervising, "PAUSE_S", 0.01)
    monkeypatch.setattr(supervising, "KILL_S", 0.3)


def test_restarts_are_bounded_and_slower_each_time() -> None:
    """Five in a row; a life of a minute begins a new row."""
    restarts = Restarts()
    pauses = [restarts.pause_s(1.0) for _ in range(RESTARTS_MAX + 1)]
    assert pauses[-1] is None
    given = [pause for pause in pauses if pause is not None]
    assert len(given) == RESTARTS_MAX
    assert given == sorted(set(given))
    assert max(given) <= PAUSE_MAX_S
    assert restarts.pause_s(WELL_S) == given[0]


async def test_a_worker_that_cannot_live_ends_all() -> None:
    """Started again as often as is allowed, then exit code 1; the one that was well is drained."""
    code = (
        "import os, sys, time; open('lives', 'a').write('x'); os.path.exists('broken') and sys.exit(3); "
        "open('up', 'a').write('up\\n'); time.sleep(60)"
    )
    running = supervisor(code)
    task = asyncio.create_task(running.run(asyncio.Event()))
    await up(2)
    open("broken", "w").close()  # noqa: ASYNC230
    first = running.slots[0].process
    assert first is not None
    first.kill()
    assert await asyncio.wait_for(task, 30) == 1
    assert len(text("lives")) == 2 + RESTARTS_MAX
    other = running.slots[1].process
    assert other is not None
    assert other.returncode == -signal.SIGTERM


async def test_a_worker_that_is_misconfigured_is_not_started_again() -> None:
    """Exit code 2 is its own, and the command's."""
    code = "open('lives', 'a').write('x'); raise SystemExit(2)"
    assert await asyncio.wait_for(supervisor(code, workers=1).run(asyncio.Event()), 30) == 2
    assert text("lives") == "x"


@pytest.mark.parametrize(("code", "expected"), [(WAITS, 0), (DEAF, 1)])
async def test_all_are_told_and_those_that_do_not_hear_are_killed(code: str, expected: int) -> None:
    """Within the drain and what is added to it; that is a failure."""
    running, stop = supervisor(code), asyncio.Event()
    task = asyncio.create_task(running.run(stop))
    await up(2)
    stop.set()
    assert await asyncio.wait_for(task, 10) == expected
    ended = {slot.process.returncode for slot in running.slots if slot.process is not None}
    assert ended == {-signal.SIGKILL if expected else -signal.SIGTERM}


async def test_told_in_a_pause_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is not waited for."""
    monkeypatch.setattr(supervising, "PAUSE_S", 15.0)
    running, stop = supervisor("open('up', 'a').write('up\\n'); raise SystemExit(3)"), asyncio.Event()
    task = asyncio.create_task(running.run(stop))
    await up(2)
    await asyncio.sleep(0.3)
    stop.set()
    assert await asyncio.wait_for(task, 5) == 0
    assert len(text("up").splitlines()) == 2


async def test_static_members_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members of one name would throw each other out of the group."""
    monkeypatch.setenv("CHOREO_KAFKA_GROUP_INSTANCE_ID", "pod")
    code = "import os; open('names', 'a').write(os.environ['CHOREO_KAFKA_GROUP_INSTANCE_ID'] + ' '); " + WAITS
    running, stop = supervisor(code), asyncio.Event()
    task = asyncio.create_task(running.run(stop))
    await up(2)
    stop.set()
    await task
    assert sorted(text("names").split()) == ["pod-1", "pod-2"]


async def test_a_second_signal_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kill` ends them in the middle of their drain, deaf ones too."""
    monkeypatch.setattr(supervising, "KILL_S", 60.0)
    running, stop = supervisor(DEAF), asyncio.Event()
    task = asyncio.create_task(running.run(stop))
    await up(2)
    stop.set()
    await asyncio.sleep(0.1)
    assert not task.done()
    running.kill()
    assert await asyncio.wait_for(task, 5) == 1
    assert {slot.process.returncode for slot in running.slots if slot.process is not None} == {-signal.SIGKILL}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - what is asked about
        ("::", "::1"),
        ("", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
    ],
)
def test_workers_that_listen_everywhere_are_asked_on_loopback(host: str, expected: str) -> None:
    """What is listened at is not always what can be asked."""
    assert asked_at(host) == expected
