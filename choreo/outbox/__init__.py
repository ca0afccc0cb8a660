"""Events that commit with an application's own rows, and the relay that moves them to the log.

outbox = Outbox("shop")
outbox.attach(Base.metadata)                                 # the application's own migrations
reference = outbox.add(session, OrderPlaced(...))            # sent if and only if the session commits
"""

from choreo.outbox.outbox import Outbox
from choreo.outbox.relay import Relay

__all__ = ["Outbox", "Relay"]
