"""Two builds of the approval, for `choreo run`: version 1 alone, and version 2 with version 1 beside it.

`ROLLING_DAY_S`: how long a day of theirs takes, in seconds; `ROLLING_LOOK_S`: how often an event that waits for
another build is looked at.
"""

import os

from choreo import App
from choreo.errors import UnknownVersion
from handlers.approval.process import Approval
from handlers.approval.process_v1 import ApprovalV1

DAY_S = 86_400.0
UnknownVersion.delay_s = float(os.environ.get("ROLLING_LOOK_S", UnknownVersion.delay_s))

v1, v2 = App(ApprovalV1), App(Approval)
for app in (v1, v2):
    app.processes["approval"].hasten(DAY_S / float(os.environ.get("ROLLING_DAY_S", DAY_S)))
