"""A process in an app on the embedded broker: events, timers in virtual time, rows and emits together."""

from choreo import App, Flow, Service
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
