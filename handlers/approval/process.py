"""The approval of an expense, version 2: large ones are looked at a second time.

Version 1 (`process_v1.py`) is still there: expenses that were submitted under it end under it.
"""

from datetime import timedelta

from choreo import Context, ProcessManager
from choreo.process import Declared

from .events import (
    ApprovalDelegated,
    ApprovalEnded,
    ExpenseApproved,
    ExpenseRejected,
    ExpenseSubmitted,
    ExpenseWithdrawn,
    SendLetter,
)
from .process_v1 import ApprovalV1

DAY = timedelta(days=1)
LARGE_CENTS = 100_000
FINANCE = "finance"


class Approval(ProcessManager, name="approval", version=2, by="request_id", previous=ApprovalV1):
    """One expense: who submitted it, and whose turn it is."""

    request_id: str
    employee: str
    asked: str
    cents: int
    reminders: int = 0


waiting = Approval.state("waiting")
escalated = Approval.state("escalated")
second_look = Approval.state("second-look")
ended = Approval.final("ended")


def is_large(self: Approval, approved: ExpenseApproved) -> bool:
    """Whether one approval is not enough."""
    return self.cents > LARGE_CENTS


@Approval.starts(ExpenseSubmitted, to=waiting)
def submitted(expense: ExpenseSubmitted) -> Approval:
    """The manager is the first to be asked."""
    return Approval(
        request_id=expense.request_id, employee=expense.employee, asked=expense.manager, cents=expense.cents
    )


@waiting.entry
def ask(self: Approval) -> SendLetter:
    """Whoever's turn it is gets a letter."""
    return _letter(self, self.asked, "please decide")


@waiting.every(DAY, at_most=2)
def remind(self: Approval) -> SendLetter:
    """Once a day, twice."""
    self.reminders += 1
    return _letter(self, self.asked, f"reminder {self.reminders}")


@waiting.on(ApprovalDelegated, to=waiting)
def delegate(self: Approval, delegated: ApprovalDelegated) -> None:
    """Somebody else's turn: asked anew, with all the time there was."""
    self.asked = delegated.to


@waiting.after(3 * DAY, to=escalated)
def escalate(self: Approval) -> SendLetter:
    """Nobody answered: the head of the department is told."""
    self.asked = "head"
    return _letter(self, self.asked, "nobody decided")


@waiting.on(ExpenseApproved, to=second_look, guard=is_large)
@escalated.on(ExpenseApproved, to=second_look, guard=is_large)
def look_again(self: Approval, approved: ExpenseApproved) -> SendLetter:
    """Finance has to agree."""
    self.asked = FINANCE
    return _letter(self, FINANCE, f"{approved.by} has approved {self.cents} cents")


@waiting.on(ExpenseApproved, ExpenseRejected, to=ended)
@escalated.on(ExpenseApproved, ExpenseRejected, to=ended)
@second_look.on(ExpenseApproved, ExpenseRejected, to=ended)
def decide(self: Approval, decision: ExpenseApproved | ExpenseRejected) -> ApprovalEnded:
    """It is decided."""
    outcome = "approved" if isinstance(decision, ExpenseApproved) else "rejected"
    return ApprovalEnded(request_id=self.request_id, outcome=outcome, by=decision.by)


@waiting.on(ExpenseWithdrawn, to=ended)
@escalated.on(ExpenseWithdrawn, to=ended)
@second_look.on(ExpenseWithdrawn, to=ended)
def withdraw(self: Approval, withdrawn: ExpenseWithdrawn) -> ApprovalEnded:
    """There is nothing to decide any more."""
    return ApprovalEnded(request_id=self.request_id, outcome="withdrawn", by=self.employee)


@escalated.after(5 * DAY, to=ended)
@second_look.after(5 * DAY, to=ended)
def expire(self: Approval, ctx: Context) -> ApprovalEnded:
    """Nobody ever will."""
    ctx.log.warning("%s expired", self.request_id)
    return ApprovalEnded(request_id=self.request_id, outcome="expired", by="")


@Approval.migrate(from_version=1)
def from_v1(old: ApprovalV1, state: str) -> tuple[Approval, Declared]:
    """For who does not want to wait until the last of version 1 has ended: all that wait, wait.

    The expiry of version 1 goes, reminders and escalation begin now. What an expense is worth was not kept, so that
    none of these is looked at twice, as before.
    """
    return Approval(request_id=old.request_id, employee=old.employee, asked=old.manager, cents=0), waiting


escalated.ignores(ApprovalDelegated)
second_look.ignores(ApprovalDelegated)


def _letter(self: Approval, to: str, text: str) -> SendLetter:
    return SendLetter(request_id=self.request_id, to=to, text=text)
