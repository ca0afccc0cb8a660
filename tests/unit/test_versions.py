"""Builds that follow each other, and go back, with instances in flight: versions never crossed, and nothing lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from choreo import App, ProcessManager
from choreo import envelope as cloudevents
from choreo.errors import UnknownVersion
from choreo.running import Running
from handlers.approval.events import ApprovalEnded, ExpenseApproved, ExpenseSubmitted
from handlers.approval.process import Approval
from handlers.approval.process_v1 import ApprovalV1

EACH = 8


class Stage:
    """One file, on which builds of the approval run."""

    def __init__(self, path: Path, store: str | None = None) -> None:
        self.broker, self.store = f"embedded:{path / 'approvals.db'}", store
        self.v1, self.v2 = App(ApprovalV1), App(Approval)

    @asynccontextmanager
    async def running(self, app: App) -> AsyncIterator[Running]:
        """One member of the build."""
        async with app.running(
            broker=self.broker, store=self.store, create_topics=True, create_schema=True
        ) as member:
            yield member
            assert member.workers["approval"].failure is None

    async def submit(self, member: Running, letter: str) -> None:
        """Some instances, named after when they began; they begin now."""
        for number in range(EACH):
            await member.publish(ExpenseSubmitted(request_id=f"{letter}{number}", employee="e", manager="m", cents=1))
        for number in range(EACH):
            await until(partial(self.state, f"{letter}{number}"), "waiting")

    async def approve(self, member: Running, *keys: str) -> None:
        """They are decided."""
        for key in keys:
            await member.publish(ExpenseApproved(request_id=key, by="m"))

    async def state(self, key: str) -> str | None:
        """Where the instance stands; None if there is none."""
        found = await self.v2.instances(Approval, store=self.store, broker=self.broker).get(key)
        return None if found is None else found.state

    async def ended(self, member: Running) -> Counter[str]:
        """How often each came to an end, and what is among the dead letters."""
        found: Counter[str] = Counter()
        for record in await member.transport.scan(["approvals", "approval.dlq"], since_ms=0):
            if record.topic == "approval.dlq":
                found["dead letters"] += 1
            else:
                assert cloudevents.read(record.headers, record.value or b"")[0].type == "approval.ended"
                found[ApprovalEnded.from_payload(record.value or b"").request_id] += 1
        return found


async def until(ask: Any, wanted: Any) -> None:
    """Wait, a moment at most, until the answer is the one that is wanted."""
    async with asyncio.timeout(15):
        while await ask() != wanted:  # noqa: ASYNC110 - it is the file that changes
            await asyncio.sleep(0.02)


async def test_builds_roll_forward_and_back_with_instances_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each instance ends once, under the version it began under; no event is a dead letter, however long it waits."""
    monkeypatch.setattr(UnknownVersion, "delay_s", 0.02)
    await roll(Stage(tmp_path))


async def roll(stage: Stage) -> None:
    """From version 1 to 2, back, both at once, and to 2 again."""
    async with stage.running(stage.v1) as old:
        await stage.submit(old, "a")
    async with stage.running(stage.v2) as new:
        await stage.submit(new, "b")
        await stage.approve(new, "a0", "b0")
        await until(lambda: stage.state("b0"), "ended")
    async with stage.running(stage.v1) as old:  # rolled back: what began under version 2 has to wait
        await stage.submit(old, "c")
        await stage.approve(old, "a1", "b1", "c1")
        await until(lambda: stage.state("c1"), "ended")
        await asyncio.sleep(0.5)  # many more times than there are attempts
        assert await stage.state("b1") == "waiting"
        assert not (await stage.ended(old))["dead letters"]
        async with stage.running(stage.v2) as new:  # both at once, and the older one leaves
            await stage.approve(old, *(f"{letter}{n}" for letter in "abc" for n in range(2, EACH)))
            await stage.approve(old, "c0")
            await asyncio.sleep(0.3)
    async with stage.running(stage.v2) as new:
        wanted = Counter(f"{letter}{number}" for letter in "abc" for number in range(EACH))
        await until(lambda: stage.ended(new), wanted)
        versions = {each.key: each.version for each in await stage.v2.instances(Approval).list()}
    assert versions == {key: 2 if key[0] == "b" else 1 for key in wanted}


async def test_a_state_that_a_build_does_not_have_waits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A definition was changed without a new version: its events wait for the build that has the state."""
    monkeypatch.setattr(UnknownVersion, "delay_s", 0.02)

    class Changed(ProcessManager, name="approval", version=1, by="request_id"):
        request_id: str

    asked, over = Changed.state("asked"), Changed.final("over")

    @Changed.starts(ExpenseSubmitted, to=asked)
    def begin(expense: ExpenseSubmitted) -> Changed:
        return Changed(request_id=expense.request_id)

    @asked.on(ExpenseApproved, to=over)
    def decide(self: Changed, approved: ExpenseApproved) -> None: ...

    stage = Stage(tmp_path)
    async with stage.running(stage.v1) as old:
        await stage.submit(old, "a")
    async with stage.running(App(Changed)) as changed:
        await stage.approve(changed, "a0")
        await asyncio.sleep(0.5)
        assert await stage.ended(changed) == Counter()
    async with stage.running(stage.v1) as old:
        await until(lambda: stage.ended(old), Counter(["a0"]))


async def test_what_comes_after_the_end_needs_no_former_version(tmp_path: Path) -> None:
    """An instance ended under a version that the build does not know: it is late, and holds nothing up."""
    stage = Stage(tmp_path)
    async with stage.running(stage.v2) as new:
        await stage.submit(new, "a")
        await stage.approve(new, "a0")
        await until(lambda: stage.state("a0"), "ended")
    async with stage.running(stage.v1) as old:
        await stage.approve(old, "a0")
        await stage.submit(old, "b")
        await until(lambda: _unfinished(old), 0)
        assert await stage.ended(old) == Counter(["a0"])


async def _unfinished(member: Running) -> int:
    return member.workers["approval"].engine.unfinished()
