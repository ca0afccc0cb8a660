"""`choreo dlq` and `choreo replay` as a shell runs them, on an embedded broker in a file."""

import asyncio
import base64
import importlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from choreo.cli import console
from choreo.errors import ConfigurationError
from choreo.opening import open_transport
from choreo.record import ProducerRecord
from tests.tea_app import TARGET, choreo, tea_folder

here = pytest.fixture(tea_folder)
TOO_MUCH = 12


@pytest.fixture
def letters(here: Path) -> Path:
    """Ada, Bob and Eve asked for too much tea, and something came that cannot be read."""
    choreo("topics", "apply", TARGET)
    for who in ("Ada", "Bob", "Eve"):
        choreo("publish", TARGET, "tea.asked", f"who={who}", f"cups:={TOO_MUCH}", "--id", "who")
    headers = (("ce_id", b"1"), ("ce_source", b"/s"), ("ce_type", b"tea.asked"), ("x\udcff", b"\xfe"))
    asyncio.run(sent(ProducerRecord("asks", b"\xff", b"\xff{secret", headers)))
    handle(4)
    return here


async def sent(record: ProducerRecord) -> None:
    """Onto the log as it is."""
    transport = open_transport("embedded:tea.db")
    await transport.open()
    await transport.send([record])
    await transport.close()


def handle(units: int) -> None:
    """Run the services until so many units are done."""
    app = importlib.import_module("tea_for_tests").app

    async def run() -> None:
        async with app.running(broker="embedded:tea.db") as running:
            until_s = time.monotonic() + 20
            while sum(_done(worker.counts) for worker in running.workers.values()) < units:
                assert time.monotonic() < until_s, [worker.counts for worker in running.workers.values()]
                await asyncio.sleep(0.01)

    asyncio.run(run())


def _done(counts: Any) -> int:
    return int(counts["handled"] + counts["dead_letters"] + counts["duplicates"] + counts["skipped"])


def listed(*arguments: str) -> list[dict[str, Any]]:
    """Dead letters as a program gets them."""
    found: list[dict[str, Any]] = json.loads(choreo("dlq", "list", TARGET, "--json", *arguments).stdout)[
        "dead_letters"
    ]
    return found


def states() -> dict[str | None, str]:
    """By key."""
    return {row["key"]: row["state"] for row in listed()}


def test_list_says_what_is_there_and_of_which_range(letters: Path) -> None:
    """Newest last, filtered, with coordinates to name each by; JSON has the same."""
    said = choreo("dlq", "list", TARGET).stdout
    assert "kitchen.dlq/" in said.splitlines()[0]
    assert "4 dead letters: 4 open" in said
    assert "secret" not in said
    assert {row["reason"] for row in listed()} == {"rejected", "not_json"}
    assert [row["key"] for row in listed("--key", "Bob")] == ["Bob"]
    assert len(listed("--handler", "kitchen.pour")) == 3
    assert len(listed("--reason", "not_json")) == 1
    assert len(listed("--service", "bell")) == 0
    assert len(listed("--type", "tea.*")) == 4
    assert len(listed("--until", "1h")) == 0
    said = choreo("dlq", "list", TARGET, "--limit", "1").stdout
    assert "newest 1 of 4" in said
    assert sum(line.startswith("kitchen.dlq/") for line in said.splitlines()) == 1


def test_show_keeps_the_payload_to_itself_unless_asked(letters: Path) -> None:
    """It may hold secrets; what is no text is shown harmlessly."""
    (row,) = listed("--reason", "not_json")
    said = choreo("dlq", "show", TARGET, row["id"]).stdout
    assert "secret" not in said
    assert "asks/" in said
    assert "10 bytes" in said or "8 bytes" in said
    assert "secret" in choreo("dlq", "show", TARGET, row["id"], "--payload").stdout
    assert "record" not in json.loads(choreo("dlq", "show", TARGET, row["id"], "--json").stdout)
    assert "no dead letter kitchen.dlq/0@99" in choreo("dlq", "show", TARGET, "kitchen.dlq/0@99", code=2).stderr
    assert "is no dead letter's id" in choreo("dlq", "show", TARGET, "99", code=2).stderr


def test_export_is_byte_exact(letters: Path) -> None:
    """Text where it is UTF-8, base64 where not; headers too. A file that exists is not written over."""
    choreo("dlq", "export", TARGET, "--out", "letters.jsonl")
    rows = [json.loads(line) for line in (letters / "letters.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    (odd,) = [row["record"] for row in rows if row["reason"] == "not_json"]
    assert base64.b64decode(odd["value_base64"]) == b"\xff{secret"
    assert base64.b64decode(odd["key_base64"]) == b"\xff"
    assert {"name_base64": base64.b64encode(b"x\xff").decode(), "value_base64": "/g=="} in odd["headers"]
    (ada,) = [row for row in rows if row["key"] == "Ada"]
    assert json.loads(ada["record"]["value"]) == {"who": "Ada", "cups": TOO_MUCH}
    assert "cannot be written" in choreo("dlq", "export", TARGET, "--out", "letters.jsonl", code=2).stderr
    assert len(choreo("dlq", "export", TARGET, "--key", "Ada").stdout.splitlines()) == 1


def test_replay_asks_first_and_a_dry_run_does_nothing(letters: Path) -> None:
    """Where there is no terminal to ask at, it wants to be told."""
    assert "would replay: 3 of kitchen.pour" in choreo("dlq", "replay", TARGET, "--dry-run").stdout
    assert "--yes" in choreo("dlq", "replay", TARGET, code=2).stderr
    assert set(states().values()) == {"open"}


def test_replay_drop_and_list_say_who_did_what(letters: Path) -> None:
    """By filter and by id; what is dealt with is left out the next time; what fails again is another letter."""
    (ada,) = [row["id"] for row in listed("--key", "Ada")]
    said = choreo("dlq", "replay", TARGET, ada, "--yes", "--rate", "100", "--by", "me", "--note", "mended").stdout
    assert "1 replayed" in said
    assert "1 dropped" in choreo("dlq", "drop", TARGET, "--key", "Eve", "--yes", "--by", "you").stdout
    assert (states()["Ada"], states()["Bob"], states()["Eve"]) == ("replayed", "open", "dropped")
    (row,) = listed("--key", "Ada")
    assert [(each["by"], each["note"], each["mode"]) for each in row["orders"]] == [("me", "mended", "if-not-done")]
    assert "replayed by me" in choreo("dlq", "list", TARGET).stdout
    assert "replayed already" in choreo("dlq", "replay", TARGET, ada, "--yes").stdout
    found = json.loads(choreo("dlq", "replay", TARGET, "--handler", "pour", "--yes", "--json").stdout)
    assert (found["done"], found["left_out"]) == (
        1,
        {"replayed already": 1, "dropped: --mode force replays it all the same": 1},
    )
    forced = choreo("dlq", "replay", TARGET, "--key", "Eve", "--mode", "force", "--yes")
    assert "--run " in forced.stderr
    assert states()["Eve"] == "replayed"
    handle(4)  # the tea is still too much for all of them
    assert Counter(row["state"] for row in listed()) == {"failed_again": 3, "open": 4}
    assert "failed again by me" in choreo("dlq", "list", TARGET, "--key", "Ada", "--state", "failed_again").stdout


def test_force_goes_on_with_its_run(letters: Path) -> None:
    """The id that it said repeats nothing; without it everything is sent again."""
    first = json.loads(choreo("dlq", "replay", TARGET, "--mode", "force", "--yes", "--json").stdout)
    assert first["done"] == 4
    arguments = ["dlq", "replay", TARGET, "--mode", "force", "--yes", "--json"]
    again = json.loads(choreo(*arguments, "--run", first["run"]).stdout)
    assert (again["done"], again["left_out"]) == (0, {"replayed in this run already": 4})
    assert json.loads(choreo(*arguments).stdout)["done"] == 4
    assert "--run goes on" in choreo("dlq", "replay", TARGET, "--run", "x", "--yes", code=2).stderr


def test_replay_needs_the_topic_that_the_service_reads(here: Path) -> None:
    """An older deployment has none: the message says what to do."""

    async def without() -> None:
        app = importlib.import_module("tea_for_tests").app
        async with app.running(broker="embedded:tea.db", create_topics=True):
            pass

    importlib.invalidate_caches()
    console.load_app(TARGET)
    asyncio.run(without())
    choreo("publish", TARGET, "tea.asked", "who=Ada", f"cups:={TOO_MUCH}")
    handle(1)
    assert "1 open" in choreo("dlq", "list", TARGET).stdout
    said = choreo("dlq", "replay", TARGET, "--yes", code=2).stderr
    assert "kitchen.replay does not exist" in said
    assert "choreo topics apply" in said


def test_letters_whose_handler_is_gone_cannot_be_replayed(letters: Path) -> None:
    """They are counted and the exit code is 1; the others go."""
    module = letters / "tea_for_tests.py"
    module.write_text(module.read_text().replace("def pour(", "def brew("))
    sys.modules.pop("tea_for_tests", None)
    importlib.invalidate_caches()
    said = choreo("dlq", "replay", TARGET, "--yes", code=1).stdout
    assert "not possible: 3, kitchen has no handler 'pour' any more" in said
    assert "1 replayed" in said


def test_history_is_replayed_to_one_handler(letters: Path) -> None:
    """From a time or an offset to another; what it cannot be given is counted."""
    base = ["replay", TARGET, "--topic", "asks", "--handler", "kitchen.pour"]
    found = json.loads(choreo(*base, "--from", "1h", "--yes", "--json").stdout)
    assert (found["done"], found["left_out"]) == (3, {"it cannot be read": 1})
    assert json.loads(choreo(*base, "--from", "1h", "--to", "30m", "--yes", "--json").stdout)["done"] == 0
    assert "--partition" in choreo(*base, "--from", "0", "--yes", code=2).stderr
    partitions = [["--from", "0", "--to", "1", "--partition", str(n)] for n in range(4)]
    counts = [json.loads(choreo(*base, *each, "--dry-run", "--json").stdout)["selected"] for each in partitions]
    assert 1 <= sum(counts) <= 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--handler", "kitchen.brew", "--topic", "asks", "--from", "1h"], "there is no handler 'kitchen.brew'"),
        (["--handler", "bell.ring", "--topic", "asks", "--from", "1h"], "does not read the topic asks"),
        (["--handler", "kitchen.pour", "--topic", "asks", "--from", "soon"], "'soon' is no time"),
        (["--handler", "kitchen.pour", "--topic", "asks", "--from", "8d"], "longer ago than keys are kept"),
        (["--handler", "kitchen.pour", "--topic", "asks", "--from", "1h", "--mode", "twice"], "--mode twice"),
        (["--handler", "kitchen.pour", "--topic", "asks", "--from", "1h", "--store", "changelog"], "--mode force"),
        (["--handler", "kitchen.pour", "--topic", "asks", "--from", "0", "--partition", "9"], "no partition 9"),
    ],
)
def test_wrong_use_of_replay_is_one_line(letters: Path, arguments: list[str], said: str) -> None:
    """What would be done wrongly is refused, with what to write instead."""
    assert said in choreo("replay", TARGET, *arguments, code=2).stderr


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("1h", 6_400_000),
        ("1970-01-01T00:00:01", 1000),
        ("1970-01-01T01:00:01+01:00", 1000),
        ("1970-01-02", 86_400_000),
    ],
)
def test_moment_is_an_age_or_a_time(text: str, expected_ms: int) -> None:
    """UTC unless it says otherwise."""
    assert console.moment_ms(text, 10_000.0) == expected_ms


def test_moment_that_is_none_says_how_to_write_one() -> None:
    """Neither a length of time nor a date."""
    with pytest.raises(ConfigurationError, match="2026-07-01T12:00Z"):
        console.moment_ms("yesterday", 0.0)
