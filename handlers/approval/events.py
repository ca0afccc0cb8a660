"""What happens to an expense, and what is asked of the mailbox."""

from choreo import Command, Event


class Request(Event):
    """Which expense it is about."""

    request_id: str


class ExpenseSubmitted(Request, type="expense.submitted", version=1, topic="expenses", key="request_id"):
    """Somebody wants their money back."""

    employee: str
    manager: str
    cents: int


class ExpenseApproved(Request, type="expense.approved", version=1, topic="decisions", key="request_id"):
    """Whoever was asked says yes."""

    by: str


class ExpenseRejected(Request, type="expense.rejected", version=1, topic="decisions", key="request_id"):
    """Whoever was asked says no."""

    by: str
    reason: str


class ApprovalDelegated(Request, type="expense.delegated", version=1, topic="decisions", key="request_id"):
    """Whoever was asked wants somebody else to decide."""

    to: str


class ExpenseWithdrawn(Request, type="expense.withdrawn", version=1, topic="expenses", key="request_id"):
    """The employee wants it no more."""


class SendLetter(Request, Command, type="letter.send", version=1, topic="letters", key="request_id"):
    """Tell somebody something."""

    to: str
    text: str


class LetterSent(Request, type="letter.sent", version=1, topic="post", key="request_id"):
    """It is on its way."""

    to: str


class ApprovalEnded(Request, type="approval.ended", version=1, topic="approvals", key="request_id"):
    """How it ended: approved, rejected, withdrawn or expired."""

    outcome: str
    by: str
