"""The approval and the mailbox it writes to, for `choreo dev handlers.approval.app:app`."""

import sqlite3
from datetime import timedelta

from choreo import App, Flow, Service
from choreo.process import FlowOverdue, overdue

from .events import ApprovalEnded, ExpenseSubmitted, LetterSent, SendLetter
from .process import FINANCE, Approval

mailbox = Service("mailbox")


@mailbox.on_start
def tables(db: sqlite3.Connection) -> None:
    """What was sent."""
    db.execute("CREATE TABLE IF NOT EXISTS letter (request_id TEXT, recipient TEXT, text TEXT)")


@mailbox.handler(SendLetter)
def send(letter: SendLetter, db: sqlite3.Connection) -> LetterSent:
    """Write it down; a real one would hand it to a mail server, under `ctx.idempotency_key`."""
    db.execute("INSERT INTO letter VALUES (?, ?, ?)", (letter.request_id, letter.to, letter.text))
    return LetterSent(request_id=letter.request_id, to=letter.to)


approval = Flow("approval", starts=ExpenseSubmitted, ends=ApprovalEnded, deadline=timedelta(days=7))


@overdue(approval)
def chase(late: FlowOverdue) -> SendLetter:
    """Finance hears of an expense that has been under way for a week, whoever's turn it is and whatever is stuck."""
    return SendLetter(request_id=late.key, to=FINANCE, text=f"without an end since {late.started_at:%d %B}")


app = App(Approval, chase, mailbox, flows=[approval])
