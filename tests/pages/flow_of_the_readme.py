"""The README's `orders.py` with services that have no handlers yet: pages add theirs."""

import re
from pathlib import Path
from typing import Any

from choreo import Service


def names() -> dict[str, Any]:
    """Everything the file defines; `inventory` and `payments` anew."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    found = re.search(r"^<!-- orders.py -->\n```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert found
    given: dict[str, Any] = {"__name__": "orders"}
    exec(found[1], given)
    return given | {"inventory": Service("inventory"), "payments": Service("payments")}
