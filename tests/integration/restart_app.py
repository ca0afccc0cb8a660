"""The order flow with consumer groups of one run, for a broker where groups of its names may have been of another kind.

A group of static members stays for its session after they have gone, and takes no members of the other protocol.
"""

import os

from handlers.order_stores.app import app

for service in app.services.values():
    service.group = f"{os.environ['CHOREO_TOPIC_PREFIX']}{service.name}"
