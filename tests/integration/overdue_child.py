"""A process that watches a flow on an embedded broker's file, until it is killed or has told somebody.

`python -m tests.integration.overdue_child FILE [MOMENT TARGET CALL]`: where `arm` kills it.
"""

import asyncio
import sqlite3
import sys
from collections.abc import Sequence
from datetime import timedelta

from choreo import App, Event, Flow, Service
from choreo.process import FlowOverdue, overdue
from choreo.testing.crash_points import CrashPoint, arm
from choreo.transports.embedded import membership

DEADLINE = timedelta(seconds=1)
LIFE_S_MAX = 40.0
LINGER_S = 0.7
"""After it was told: what is told twice comes within it."""


class Asked(Event, type="tea.asked", version=1, topic="asked", key="who"):
    """Somebody wants tea."""

    who: str


class Poured(Event, type="tea.poured", version=1, topic="poured", key="who"):
    """They have it."""

    who: str


class TeaLate(Event, type="tea.late", version=1, topic="late", key="who"):
    """They wait."""

    who: str


kitchen, host = Service("kitchen"), Service("host")


@kitchen.handler(Asked)
def pour(asked: Asked) -> Poured | None:
    """Eve is forgotten."""
    return None if asked.who == "Eve" else Poured(who=asked.who)


@overdue(Flow("tea", starts=Asked, ends=Poured, deadline=DEADLINE))
def tea_late(late: FlowOverdue) -> TeaLate:
    """To be told by the host."""
    return TeaLate(who=late.key)


@host.on_start
def tables(db: sqlite3.Connection) -> None:
    """What was told."""
    db.execute("CREATE TABLE IF NOT EXISTS apology (who TEXT)")


@host.handler(TeaLate)
def apologise(late: TeaLate, db: sqlite3.Connection) -> None:
    """Once."""
    db.execute("INSERT INTO apology VALUES (?)", (late.who,))


def told(path: str) -> list[str]:
    """Whom the host has told, as often as that was."""
    with sqlite3.connect(path) as db:
        return [who for (who,) in db.execute("SELECT who FROM apology")]


async def live(path: str, point: Sequence[str]) -> None:
    """Ask for tea, under ids that stay the same, and wait."""
    if point:
        moment, target, call = point
        arm(CrashPoint(target, moment, target, int(call)))
    membership.HEARTBEAT_S, membership.MEMBER_S = 0.1, 0.8  # a killed member is replaced sooner
    app = App(kitchen, tea_late, host)
    running = app.running(broker=f"embedded:{path}", create_topics=True, partitions=1)
    async with asyncio.timeout(LIFE_S_MAX), running as services:
        for who in ("Ada", "Eve"):
            await services.publish(Asked(who=who), id=who)
        while not told(path):  # noqa: ASYNC110 - a file changes
            await asyncio.sleep(0.05)
        await asyncio.sleep(LINGER_S)


if __name__ == "__main__":
    asyncio.run(live(sys.argv[1], sys.argv[2:]))
