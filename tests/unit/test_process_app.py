"""A process in an app on the embedded broker: events, timers in virtual time, rows and emits together."""

import asyncio
import json
import re
from pathlib import Path

from typer.testing import CliRunner

from choreo import App, Flow, Service
from choreo.cli import main
from choreo.cli.tracing import Where, declared_topics
from choreo.flow.model import EventRef, from_json, to_json
from choreo.runtime.levels import Gauge
from choreo.testing import TestApp
from tests.unit.process_stage import (
    Approval,
    ApprovalRequested,
    Approved,
    AskManager,
    Decided,
)


def office() -> App:
    """The approval, and somebody who is asked."""
    mailbox = Service("mailbox")

    @mailbox.handler(AskManager)
    def send(asked: AskManager) -> None: ...

    return App(Approval, mailbox, flows=[Flow("approval", starts=ApprovalRequested, ends=Decided)])


async def test_a_process_runs_on_the_embedded_broker() -> None:
    """From its start to its end, with the command it sends."""
    async with TestApp(office()) as t:
        flow = await t.publish(ApprovalRequested(request_id="r1", manager="ann"))
        await flow.settled()
        assert flow.types == ["approval.requested", "approval.ask"]
        await t.publish(Approved(request_id="r1"))
        await t.settle()
        assert t.rows("SELECT state, ended FROM choreo_instance") == [("done", 1)]
        assert t.rows("SELECT * FROM choreo_timer") == []
        assert not t.dead_letters


async def test_timers_fire_in_virtual_time() -> None:
    """Two reminders a day apart, then the escalation; none before it is due."""
    async with TestApp(office()) as t:
        flow = await t.publish(ApprovalRequested(request_id="r1", manager="ann"))
        await flow.settled()
        await t.advance(hours=23)
        await t.settle()
        assert "approval.reminder-due" not in flow.types
        await t.advance(days=4)
        await t.settle()
        kinds = [each for each in flow.types if each.startswith(("approval.rem", "approval.esc"))]
        assert kinds == ["approval.reminder-due", "approval.reminder-due", "approval.escalated"]
        assert t.rows("SELECT state FROM choreo_instance") == [("escalated",)]


def test_a_capability_names_the_timers_of_a_process() -> None:
    """So that trace and drift read and know them; who reads events is not asked to, and older files have none."""
    capability = office().capability()
    services = {each.name: each for each in capability.services}
    assert services["approval"].timers == EventRef(type="approval.timer", version=1, topic="approval.timers")
    assert services["mailbox"].timers is None
    assert "approval.timers" in declared_topics(Where(capability=capability))
    assert "approval.timer" not in {each.type for each in services["approval"].events}
    older = json.loads(to_json(capability))
    for each in older["services"]:
        del each["timers"]
    assert all(each.timers is None for each in from_json(json.dumps(older), "older").services)


def test_trace_tells_what_a_flow_waits_for(tmp_path: Path) -> None:
    """The timers of its instance, and when they are due; in the tree, for programs, and on the page."""
    broker = f"embedded:{tmp_path}/office.db"

    async def begin() -> tuple[str, int | None]:
        async with office().running(broker=broker, create_topics=True) as running:
            reference = await running.publish(ApprovalRequested(request_id="r1", manager="ann"))
            async with asyncio.timeout(20):
                while not await running.stores["approval"].timers_of(reference.correlation_id):  # type: ignore[attr-defined]  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            levels = await Gauge(running.workers["approval"]).look()
            other = await Gauge(running.workers["mailbox"]).look()
            assert other.timers_due is None
            return reference.correlation_id, levels.timers_due

    flow, due = asyncio.run(begin())
    assert due == 0
    page = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["trace", flow, "--broker", broker, "--html", str(page)])
    assert re.search(r"timer approval\.remind of r1: due in 23:59:\d\d", result.stdout), result.output
    assert re.search(r"timer approval\.escalate of r1: due in 2 d 23:59:\d\d", result.stdout)
    assert "timer approval.remind of r1" in page.read_text()
    data = json.loads(CliRunner().invoke(main, ["trace", flow, "--broker", broker, "--json"]).stdout)
    assert [each["name"] for each in data["flows"][0]["timers"]] == ["remind", "escalate"]
