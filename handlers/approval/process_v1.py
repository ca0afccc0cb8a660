"""The approval of an expense as it was first released: one decision, no delegation."""

from datetime import timedelta

from choreo import ProcessManager

from .events import ApprovalEnded, ExpenseApproved, ExpenseRejected, ExpenseSubmitted, ExpenseWithdrawn, SendLetter

DAY = timedelta(days=1)


class ApprovalV1(ProcessManager, name="approval", version=1, by="request_id"):
    """One expense."""

    request_id: str
    employee: str
    manager: str


waiting = ApprovalV1.state("waiting")
ended = ApprovalV1.final("ended")


@ApprovalV1.starts(ExpenseSubmitted, to=waiting)
def submitted(expense: ExpenseSubmitted) -> ApprovalV1:
    """The manager is asked."""
    return ApprovalV1(request_id=expense.request_id, employee=expense.employee, manager=expense.manager)


@waiting.entry
def ask(self: ApprovalV1) -> SendLetter:
    """By letter."""
    return SendLetter(request_id=self.request_id, to=self.manager, text="please decide")


@waiting.on(ExpenseApproved, ExpenseRejected, to=ended)
def decide(self: ApprovalV1, decision: ExpenseApproved | ExpenseRejected) -> ApprovalEnded:
    """It is decided."""
    outcome = "approved" if isinstance(decision, ExpenseApproved) else "rejected"
    return ApprovalEnded(request_id=self.request_id, outcome=outcome, by=decision.by)


@waiting.on(ExpenseWithdrawn, to=ended)
def withdraw(self: ApprovalV1, withdrawn: ExpenseWithdrawn) -> ApprovalEnded:
    """There is nothing to decide any more."""
    return ApprovalEnded(request_id=self.request_id, outcome="withdrawn", by=self.employee)


@waiting.after(8 * DAY, to=ended)
def expire(self: ApprovalV1) -> ApprovalEnded:
    """Nobody ever will."""
    return ApprovalEnded(request_id=self.request_id, outcome="expired", by="")
