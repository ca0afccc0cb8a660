"""docs/deploying-changes.md is done, line by line, with an order in flight; its table names findings there are."""

import re
import time

from choreo.flow.findings import LEVEL_OF
from tests.test_incident import BLOCK, ROOT, WAIT_S, Reader, plain, reader

PAGE = (ROOT / "docs" / "deploying-changes.md").read_text()
__all__ = ["reader"]


def test_a_change_is_deployed_in_two_steps(reader: Reader) -> None:
    """Every block of the page in its order: what is to be refused is, and no order is lost or dead-lettered."""
    for name, language, text in BLOCK.findall(PAGE):
        if language == "python":
            reader.save(name, text)
        elif language == "sh":
            for line in text.splitlines():
                until_s = time.monotonic() + WAIT_S
                reader.shell(line)
                while line.endswith("# order.shipped") and "order.shipped from /shipping" not in reader.said:
                    assert time.monotonic() < until_s, reader.said
                    reader.shell(line)
                if "dlq list" in line:
                    assert "\n0 dead letters" in reader.said
        else:
            assert plain(reader.said) == plain(text)


def test_the_table_names_findings_that_there_are() -> None:
    """In its last column; other words there are commands."""
    rows = re.findall(r"^\| .* \| (.*) \|$", PAGE, re.MULTILINE)[1:]
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert len(rows) >= 10
    assert named <= set(LEVEL_OF)
    against = {"dropped_version", "early_emission", "dropped_emission", "narrowed_handler", "changed_topic"}
    assert against <= named
