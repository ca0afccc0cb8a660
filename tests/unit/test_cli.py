"""The commands as a shell runs them, on an embedded broker in a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from choreo.cli import console, dev
from choreo.errors import ConfigurationError
from handlers.order_fulfilment.orders import shipped_lines
from tests.tea_app import TARGET, choreo, events, tea_folder

here = pytest.fixture(tea_folder)


def test_topics_are_planned_and_applied(here: Path) -> None:
    """`plan` fails while topics are missing or have fewer partitions, and `apply` creates the missing ones."""
    assert "missing" in choreo("topics", "plan", TARGET, code=1).stdout
    choreo("topics", "apply", TARGET, "--partitions", "2")
    rows = json.loads(choreo("topics", "plan", TARGET, "--partitions", "2", "--json").stdout)["topics"]
    own = {f"{service}.{what}" for service in ("kitchen", "bell") for what in ("dlq", "replay")}
    assert {row["topic"] for row in rows} == {"asks", "pours", *own}
    assert "fewer partitions" in choreo("topics", "plan", TARGET, "--partitions", "3", code=1).stdout
    assert "fewer partitions" in choreo("topics", "apply", TARGET, "--partitions", "3", code=1).stdout


def test_one_event_is_published_and_traced(here: Path) -> None:
    """Text is converted to the field's type, `:=` takes JSON, and the event is found by its correlation id."""
    choreo("topics", "apply", TARGET)
    said = choreo("publish", TARGET, "tea.asked", "who=Ada", "cups:=2").stdout
    assert events(said.split()[-1])[0]["source"] == "/guests"
    choreo("publish", TARGET, "tea.asked", "who=Bob", "cups=3", "--id", "who")
    assert "tea.asked" in choreo("trace", "Bob", TARGET).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tea.spilt"], "there is no event type 'tea.spilt'"),
        ([], "name the TYPE"),
        (["tea.asked", "whom=Ada"], "'whom' is no FIELD=VALUE"),
        (["tea.asked", "who"], "'who' is no FIELD=VALUE"),
        (["tea.asked", "cups:=x"], "cups:= wants JSON"),
        (["tea.asked", "who=Ada", "cups=many"], "cups int_parsing"),
        (["tea.asked", "who=Ada", "--id", "nose"], "no such field"),
        (["tea.asked", "--file", "gone.jsonl"], "gone.jsonl cannot be read"),
        (["tea.asked", "who=Ada", "--file", "-"], "not both"),
    ],
)
def test_wrong_use_of_publish_is_one_line(here: Path, arguments: list[str], said: str) -> None:
    """What cannot be published as it was asked for ends with exit code 2 and a sentence."""
    assert said in choreo("publish", TARGET, *arguments, code=2).stderr


def test_publishing_to_a_missing_topic_says_how_to_create_it(here: Path) -> None:
    """The broker's refusal is one line with the next step, and exit code 1."""
    assert "choreo topics apply" in choreo("publish", TARGET, "tea.asked", "who=Ada", code=1).stderr


def test_broken_lines_are_counted_and_never_shown(here: Path) -> None:
    """Good lines are published; of broken ones number and reason are told, and the exit code is 1."""
    choreo("topics", "apply", TARGET)
    lines = [b'{"who":"Ada"}', b'{"who":"Bob","secret":', b"", b'{"cups":1}', b'{"who":"\xff"}', b'{"who":"Ada"}']
    lines.append(b'{"who":"' + b"x" * 1_100_000 + b'"}')
    (here / "asks.jsonl").write_bytes(b"\n".join(lines))
    result = choreo("publish", TARGET, "--file", "asks.jsonl", "--id", "who", code=1)
    assert "2 published, 5 lines refused" in result.stdout
    assert "line 2 refused: not_json" in result.stderr
    assert "line 4 refused: invalid_data" in result.stderr
    assert "line 7 refused: payload_too_large" in result.stderr
    assert "secret" not in result.output
    assert len(events("Ada")[0]["repeats"]) == 1


def test_lines_of_standard_input_are_published(here: Path) -> None:
    """A pipe is read to its end, and a program gets the count as JSON."""
    choreo("topics", "apply", TARGET)
    result = choreo("publish", TARGET, "tea.asked", "--file", "-", "--json", stdin='{"who":"Ada"}\n{"who":"Bob"}\n')
    assert json.loads(result.stdout) == {"published": 2, "refused": {"count": 0, "by_reason": {}, "lines": []}}


def test_dev_sees_what_changed(tmp_path: Path) -> None:
    """Files of Python count, those of environments do not."""
    (tmp_path / ".venv").mkdir()
    for name in ("a.py", "b.txt", ".venv/c.py"):
        (tmp_path / name).touch()
    assert set(dev.changed_files(tmp_path)) == {"a.py"}


@pytest.mark.parametrize(
    ("record", "does"),
    [
        ({"headers": {"ce_type": "tea.asked"}, "value": {"who": "Ada"}}, ["handle", "skip"]),
        ({"headers": {"ce_type": "tea.spilt"}, "value": {"who": "Ada"}}, ["skip", "skip"]),
        ({"headers": {"ce_type": "tea.asked"}, "value": {"cups": 1}}, ["dead_letter", "skip"]),
        ({"headers": {"ce_type": "tea.asked"}}, ["skip", "skip"]),
    ],
)
def test_explain_says_what_would_happen(here: Path, record: dict[str, Any], does: list[str]) -> None:
    """For each service: handled by whom under which key, dead-lettered, or passed over."""
    record["headers"] |= {"ce_id": "1", "ce_source": "/s", "ce_specversion": "1.0"}
    (here / "record.json").write_text(json.dumps(record))
    rows = json.loads(choreo("explain", TARGET, "asks", "record.json", "--json").stdout)["services"]
    assert [row["does"] for row in rows] == does
    if does[0] == "handle":
        assert rows[0]["handler"] == "kitchen.pour"
        assert len(bytes.fromhex(rows[0]["key"])) == 16
        assert "Asked (tea.asked v1)" in choreo("explain", TARGET, "asks", "record.json").stdout


def test_explain_refuses_what_is_no_record(here: Path) -> None:
    """A file that holds no record is a wrong use."""
    (here / "record.json").write_text("[]")
    assert "is no record" in choreo("explain", TARGET, "asks", "record.json", code=2).stderr
    assert "cannot be read" in choreo("explain", TARGET, "asks", "gone.json", code=2).stderr


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("tea_for_tests", "is no MODULE:APP"),
        ("gone_for_tests:app", "there is no module 'gone_for_tests'"),
        ("tea_for_tests:bpp", "has no such name; there is tea_for_tests:app"),
        ("tea_for_tests:other", "is a int and no App"),
        ("broken_for_tests:app", "ZeroDivisionError: division by zero"),
    ],
)
def test_wrong_target_is_one_line(here: Path, target: str, said: str) -> None:
    """A MODULE:APP that is none is told with what there is, and without a traceback."""
    (here / "broken_for_tests.py").write_text("1 / 0\n")
    result = choreo("topics", "plan", target, code=2)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_trace_refuses_what_it_cannot_look_at(here: Path) -> None:
    """A log that is not there is not created, and a flow that is not there is exit code 1."""
    assert (
        "there is no embedded log at gone.db" in choreo("trace", "x", "--broker", "embedded:gone.db", code=2).stderr
    )
    assert not (here / "gone.db").exists()
    choreo("topics", "apply", TARGET)
    assert "no event of x" in choreo("trace", "x", code=1).stderr
    assert "no topic gone" in choreo("trace", "x", "--topics", "gone", code=2).stderr
    assert "cannot be asked" in choreo("trace", "x", "--jaeger", "http://127.0.0.1:9", code=1).stderr


def test_lengths_of_time_are_read() -> None:
    """`--since` takes a number and a unit and nothing else."""
    assert (console.seconds("90s"), console.seconds("7d")) == (90, 604_800)
    with pytest.raises(ConfigurationError):
        console.seconds("soon")


def test_demo_of_fifty_orders_reconciles(here: Path, tmp_path: Path) -> None:
    """The demo runs any file of orders, counts what it refused and shows a declined order."""
    lines = shipped_lines()
    declined = next(line for line in lines if b'"tok_declined_' in line.replace(b" ", b""))
    (tmp_path / "orders.jsonl").write_bytes(b"\n".join([*lines[:48], declined, b"{"]) + b"\n")
    result = choreo("demo", "--orders", "orders.jsonl", "--dir", "kept", "--json")
    found = json.loads(result.stdout)
    assert found["ok"]
    assert found["orders"]["published"] + sum(found["refused"].values()) == 50
    assert found["refused"]["not_json"] >= 1
    types = [event["type"] for event in found["declined_order"]["events"]]
    assert types[-1] == "stock.released"
    assert "payment.declined" in types
    assert (here / "kept" / "demo.db").exists()
    assert "former run" in choreo("demo", "--dir", "kept", code=2).stderr


def test_help_names_every_command() -> None:
    """`choreo --help` is where a newcomer looks."""
    said = choreo("--help").stdout
    assert all(name in said for name in ("demo", "dev", "run", "publish", "topics", "trace", "explain"))
