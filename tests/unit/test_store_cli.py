"""`choreo store` as a shell runs it, on SQLite files."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from choreo.running import services
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.transports.embedded import EmbeddedTransport
from tests.sqlite_versions import make_first
from tests.tea_app import TARGET, choreo, tea_folder

here = pytest.fixture(tea_folder)
STORE = ("--store", "sqlite:{service}.db")
KITCHEN = (*STORE, "--service", "kitchen")


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Execute on a connection of its own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(sql).fetchall()


def schema(path: Path) -> list[tuple[object, ...]]:
    """Tables and indexes of a file."""
    return query(path, "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name")


def test_plan_fails_while_there_is_something_to_do(here: Path) -> None:
    """Exit 1 for an old file, 0 after `apply`; people see a line a service, programs JSON."""
    make_first(here / "kitchen.db")
    said = choreo("store", "plan", TARGET, *KITCHEN, code=1).stdout
    assert "kitchen: 29 statements to run" in said
    found = json.loads(choreo("store", "plan", TARGET, *KITCHEN, "--json", code=1).stdout)
    assert (found["ok"], list(found["services"]), len(found["services"]["kitchen"])) == (False, ["kitchen"], 29)
    assert "kitchen: 29 statements done" in choreo("store", "apply", TARGET, *KITCHEN).stdout
    assert "kitchen: was up to date" in choreo("store", "apply", TARGET, *KITCHEN).stdout
    assert "kitchen: up to date" in choreo("store", "plan", TARGET, *KITCHEN).stdout
    assert json.loads(choreo("store", "plan", TARGET, *KITCHEN, "--json").stdout)["ok"]


def test_printed_statements_do_what_apply_does(here: Path) -> None:
    """`plan --sql` is for those who run their own DDL: SQLite takes it as it is printed."""
    make_first(here / "kitchen.db")
    make_first(here / "bell.db")
    printed = choreo("store", "plan", TARGET, *STORE, "--sql").stdout
    assert printed.count("ALTER TABLE") == 2  # the same for both
    with closing(sqlite3.connect(here / "bell.db")) as db:
        db.executescript(printed)
    choreo("store", "apply", TARGET, *KITCHEN)
    assert schema(here / "kitchen.db") == schema(here / "bell.db")
    assert choreo("store", "plan", TARGET, *STORE, "--sql").stdout == ""


def test_apply_creates_the_file_and_its_folder(here: Path) -> None:
    """A first deploy needs nothing else."""
    choreo("store", "apply", TARGET, "--store", "sqlite:data/stores/{service}.db")
    assert sorted(path.name for path in (here / "data" / "stores").glob("*.db")) == ["bell.db", "kitchen.db"]
    choreo("store", "plan", TARGET, "--store", "sqlite:data/stores/{service}.db")


def test_stats_count_by_group(here: Path) -> None:
    """Keys, claims, unsent emits and log times; groups in one file are told apart."""
    time_ms = 1_700_000_000_000
    make_first(here / "one.db", time_ms=time_ms)
    choreo("store", "apply", TARGET, "--store", "sqlite:one.db")
    query(here / "one.db", "INSERT INTO choreo_outbox VALUES (1, 'bell', 't', 0, 'to', NULL, NULL, x'')")
    found = json.loads(choreo("store", "stats", TARGET, "--store", "sqlite:one.db", "--json").stdout)
    nothing = {"claims": 0, "oldest_ms": None, "progress_ms": None}
    assert found == {
        "bell": {**nothing, "keys": 0, "outbox": 1},
        "kitchen": {**nothing, "keys": 1, "outbox": 0, "oldest_ms": time_ms},
    }
    query(here / "one.db", f"UPDATE choreo_lease SET progress_ms = {time_ms + 60_000}")
    table = choreo("store", "stats", TARGET, "--store", "sqlite:one.db").stdout
    assert all(word in table for word in ("group", "claims", "unknown", "2023-11-14 22:13:20", "2023-11-14 22:14:20"))


def test_purge_takes_what_is_older_than_ttl_before_the_progress(here: Path) -> None:
    """Nothing while the progress is unknown; then by log time and not by the wall's."""
    time_ms = int((time.time() - 10 * 86_400) * 1000)
    make_first(here / "kitchen.db", time_ms=time_ms)
    choreo("store", "apply", TARGET, *KITCHEN)
    query(here / "kitchen.db", "UPDATE choreo_lease SET topic = 'asks'")
    assert "kitchen: 0 keys forgotten" in choreo("store", "purge", TARGET, *KITCHEN, "--ttl", "1s").stdout
    query(here / "kitchen.db", f"UPDATE choreo_lease SET progress_ms = {time_ms + 86_400_000}")
    none, one = ({"kitchen": {"keys": number}} for number in (0, 1))
    assert json.loads(choreo("store", "purge", TARGET, *KITCHEN, "--ttl", "2d", "--json").stdout) == none
    assert json.loads(choreo("store", "purge", TARGET, *KITCHEN, "--ttl", "12h", "--json").stdout) == one
    assert query(here / "kitchen.db", "SELECT COUNT(*) FROM choreo_key") == [(0,)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "--store", "mysql://u:secret@h/d"), "the store mysql:... is not understood; write sqlite:PATH"),
        (("plan", "--store", "sqlite:"), "the store sqlite:... is not understood"),
        (("plan", "--store", "sqlite::memory:"), "the store sqlite:... is not understood"),
        (("plan", "--store", "sqlite:gone/{service}.db"), "there is no store at gone/kitchen.db"),
        (("stats", "--store", "sqlite:gone.db"), "choreo store apply"),
        (("purge", "--store", "sqlite:gone.db"), "there is no store at gone.db"),
        (("purge", "--store", "sqlite:gone.db", "--ttl", "soon"), "--ttl soon: write a number and s, m, h, d or w"),
        (("stats", "--store", "sqlite:gone.db", "--service", "cellar"), "there is no service 'cellar'"),
        (("apply", "--store", "changelog"), "a changelog has no schema"),
    ],
)
def test_wrong_use_is_one_line(here: Path, arguments: tuple[str, ...], said: str) -> None:
    """Exit 2, the reason and the next step; no password, and no file made by looking."""
    before = sorted(here.iterdir())
    result = choreo("store", arguments[0], TARGET, *arguments[1:], code=2)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.output
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]


def test_store_is_asked_for(here: Path) -> None:
    """Without --store and CHOREO_STORE there is nothing to look at."""
    assert "--store" in choreo("store", "stats", TARGET, code=2).stderr


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_newer_schema_is_refused(here: Path, command: str) -> None:
    """Exit 2: this choreo must not touch it."""
    choreo("store", "apply", TARGET, *KITCHEN)
    query(here / "kitchen.db", "UPDATE choreo_schema SET version = 99")
    said = choreo("store", command, TARGET, *KITCHEN, code=2).stderr
    assert "kitchen.db has schema version 99, and this choreo knows" in said
    assert "run the newer choreo" in said
    assert query(here / "kitchen.db", "SELECT version FROM choreo_schema") == [(99,)]


def test_file_that_is_no_database_is_told(here: Path) -> None:
    """Exit 1: the command was right, the file is not."""
    (here / "kitchen.db").write_text("no database\n" * 100)
    assert "kitchen.db cannot be opened" in choreo("store", "plan", TARGET, *KITCHEN, code=1).stderr


def test_run_refuses_an_older_schema_with_the_hint(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 and the two commands that help; a log in another file stands for Kafka."""
    choreo("topics", "apply", TARGET)
    make_first(here / "kitchen.db")
    monkeypatch.setattr(
        services, "open_transport", lambda _, clock: EmbeddedTransport(Database("tea.db"), SystemClock())
    )
    said = choreo("run", TARGET, "--broker", "kafka://elsewhere:9092", *KITCHEN, code=2).stderr
    assert "choreo store plan --sql" in said
    assert "choreo store apply" in said
    assert "choreo_schema" not in [name for _, name, _ in schema(here / "kitchen.db")]
