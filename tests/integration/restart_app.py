"""The order flow with consumer groups of one run, as groups of its names may be of another kind on the broker.

A group of static members stays for its session after they have gone, and takes no members of the other protocol.
"""

import os

from handlers.order_stores.app import app

for service in app.services.values():
    service.group = f"{os.environ['CHOREO_TOPIC_PREFIX']}{service.name}"
