"""Versions and interventions on PostgreSQL, beside members that handle events."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from choreo import App, ProcessManager
from choreo.errors import UnknownVersion
from choreo.instances import OperatedStore
from choreo.looking import connected
from choreo.process.operating import Hand
from choreo.process.states import Declared
from choreo.runtime.migrating import migrate
from handlers.approval.events import ApprovalEnded, ExpenseApproved, ExpenseSubmitted
from handlers.approval.process_v1 import ApprovalV1
from tests.unit.test_versions import Stage, roll, until

COUNT = 120


class Moved(ProcessManager, name="approval", version=2, by="request_id", previous=ApprovalV1):
    """What is moved to."""

    request_id: str
    asked: str


waiting, ended = Moved.state("waiting"), Moved.final("ended")


@Moved.starts(ExpenseSubmitted, to=waiting)
def submitted(expense: ExpenseSubmitted) -> Moved:
    """It begins."""
    return Moved(request_id=expense.request_id, asked=expense.manager)


@waiting.on(ExpenseApproved, to=ended)
def decide(self: Moved, approved: ExpenseApproved) -> ApprovalEnded:
    """It is decided."""
    return ApprovalEnded(request_id=self.request_id, outcome="approved", by="v2")


@Moved.migrate(from_version=1)
def from_v1(old: ApprovalV1, state: str) -> tuple[Moved, Declared]:
    """All of them wait."""
    return Moved(request_id=old.request_id, asked=old.manager), waiting


@pytest.fixture
def store(postgres: str) -> Iterator[str]:
    """Tables of its own."""
    schema = f"operating_{uuid4().hex[:10]}"
    yield f"{postgres}{'&' if '?' in postgres else '?'}choreo_schema={schema}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


async def test_builds_roll_forward_and_back_on_postgresql(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on one file: each instance ends once, under the version it began under."""
    monkeypatch.setattr(UnknownVersion, "delay_s", 0.05)
    await roll(Stage(tmp_path, store))


async def test_a_migration_beside_a_running_service_loses_nothing(tmp_path: Path, store: str) -> None:
    """Decisions come while instances are moved: each ends once, under one version or the other, none is left."""
    stage, app = Stage(tmp_path, store), App(Moved)
    process = app.processes["approval"]
    keys = [f"r{number:03}" for number in range(COUNT)]
    async with stage.running(stage.v1) as old, connected(process, store=store, broker=None) as opened:
        for key in keys:
            await old.publish(ExpenseSubmitted(request_id=key, employee="e", manager="m", cents=1))
        await until(partial(_began, opened), COUNT)
    async with connected(process, store=store, broker=None) as opened, stage.running(app) as member:

        async def decisions() -> None:
            for key in reversed(keys):
                await member.publish(ExpenseApproved(request_id=key, by="m"))
                await asyncio.sleep(0.002)

        done, _ = await asyncio.gather(migrate(opened, process, 2, Hand("ann", "test")), decisions())
        await until(lambda: stage.ended(member), Counter(keys))
        counts = [each for each in await opened.census("approval") if each.timer is None]
        assert sum(each.number for each in counts if each.ended) == COUNT
        moved = [key for key in keys if await opened.interventions("approval", key)]
        assert (len(moved), done.left_count) == (done.count, 0)
        found = await opened.instances("approval", limit=COUNT)
        assert [each.key for each in found if each.version == 2] == moved
        assert moved, "nothing was moved before it was decided"


async def _began(store: OperatedStore) -> int:
    return sum(each.number for each in await store.census("approval") if each.timer is None)
