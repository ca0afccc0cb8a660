"""Expenses that somebody has to approve: a process that waits for days, reminds, escalates and ends by itself."""
