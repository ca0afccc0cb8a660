"""`choreo instances` and `choreo check --instances` as a shell runs them, beside a service on an embedded broker."""

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from choreo import App, Event, ProcessManager
from choreo.cli.console import load_app
from choreo.errors import ConfigurationError, DeclarationError, StoreError
from choreo.instances import Instances, Intervention
from choreo.looking import connected
from choreo.process.operating import Hand
from choreo.runtime import migrating
from handlers.approval.events import ExpenseApproved, ExpenseSubmitted
from handlers.approval.process import Approval
from handlers.approval.process_v1 import ApprovalV1
from tests.tea_app import choreo

OLD, NEW, AHEAD = (f"approvals_for_tests:{name}" for name in ("old", "new", "ahead"))
MODULE = """
from datetime import timedelta
from choreo import App, ProcessManager, Reject
from handlers.approval.events import ApprovalEnded, ExpenseApproved, ExpenseSubmitted
from handlers.approval.process_v1 import ApprovalV1

def version(number, previous):
    class Next(ProcessManager, name="approval", version=number, by="request_id", previous=previous):
        request_id: str
        asked: str

    waiting, ended = Next.state("waiting"), Next.final("ended")

    @Next.starts(ExpenseSubmitted, to=waiting)
    def begin(expense: ExpenseSubmitted) -> Next:
        return Next(request_id=expense.request_id, asked=expense.manager)

    @waiting.on(ExpenseApproved, to=ended)
    def decide(self: Next, approved: ExpenseApproved) -> ApprovalEnded:
        return ApprovalEnded(request_id=self.request_id, outcome="approved", by=approved.by)

    if previous:
        @Next.migrate(from_version=1)
        def from_v1(old: ApprovalV1, state: str):
            if old.employee == "nobody":
                raise Reject("who is it?")
            return Next(request_id=old.request_id, asked=old.manager), waiting

    return Next

old, new, ahead = App(ApprovalV1), App(version(3, ApprovalV1)), App(version(3, ()))
"""
HOSTILE = "r[red]\x1b[2J"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an app, its file, and three instances of version 1."""
    (tmp_path / "approvals_for_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHOREO_BROKER", "embedded:approvals.db")
    monkeypatch.setattr(sys, "path", list(sys.path))
    handle(App(ApprovalV1), *(submitted(key) for key in ("r1", "r2", HOSTILE)))
    yield tmp_path
    sys.modules.pop("approvals_for_tests", None)


class Other(ProcessManager, version=1, by="x"):
    """Of another app."""


def submitted(key: str, employee: str = "e") -> Event:
    """An expense."""
    return ExpenseSubmitted(request_id=key, employee=employee, manager="m", cents=5)


def handle(app: App, *events: Event) -> None:
    """Run the service until it has handled them."""

    async def run() -> None:
        async with app.running(broker="embedded:approvals.db", create_topics=True) as running:
            for event in events:
                await running.publish(event, id=event.model_dump_json(), correlation_id="flow")
            async with asyncio.timeout(15):
                engine = running.workers["approval"].engine
                while True:
                    await asyncio.sleep(0.1)
                    found = await app.instances(next(iter(app.processes.values())).newest.made).list()
                    if {each.key for each in found} >= {e.request_id for e in events} and not engine.unfinished():  # type: ignore[attr-defined]
                        return

    asyncio.run(run())


@contextmanager
def service(app: App) -> Iterator[None]:
    """It runs beside the commands, in a thread of its own."""
    up, done = threading.Event(), threading.Event()

    async def run() -> None:
        async with app.running(broker="embedded:approvals.db"):
            up.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    up.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


def shown(key: str, target: str = OLD) -> dict[str, Any]:
    """What `show` says of an instance."""
    found: dict[str, Any] = json.loads(choreo("instances", "show", target, key, "--json").stdout)
    return found


def test_list_counts_and_names(here: Path) -> None:
    """By version and state; one by one with a state; hostile keys are shown, and do nothing to the terminal."""
    (row,) = json.loads(choreo("instances", "list", OLD, "--json").stdout)
    assert row == {
        "process": "approval",
        "version": 1,
        "state": "waiting",
        "ended": False,
        "instances": 3,
        "in_this_build": True,
    }
    assert "waiting" in choreo("instances", "list", OLD).stdout
    said = choreo("instances", "list", OLD, "--state", "waiting").stdout
    assert "r[red]?[2J" in said
    page = json.loads(choreo("instances", "list", OLD, "--keys", "--after", "r1", "--limit", "1", "--json").stdout)
    assert [each["key"] for each in page] == ["r2"]
    assert json.loads(choreo("instances", "list", OLD, "--state", "ended", "--json").stdout) == []


def test_show_tells_where_an_instance_stands(here: Path) -> None:
    """Fields, state and when its timers are due; exit 1 if there is none."""
    found = shown("r1")
    assert (found["state"], found["version"], found["fields"]["employee"]) == ("waiting", 1, "e")
    assert list(found["timers"]) == ["expire"]
    said = choreo("instances", "show", OLD, HOSTILE).stdout
    assert "r[red]?[2J" in said
    assert "\x1b[2J" not in said
    assert "no instance r9" in choreo("instances", "show", OLD, "r9", code=1).stderr


def test_interventions_take_effect_beside_a_running_service_and_are_told(here: Path) -> None:
    """A timer fired by hand ends the instance; who did it and why is shown with it, and by `choreo trace`."""
    with service(App(ApprovalV1)):
        choreo("instances", "fire-timer", OLD, "r1", "expire", "--yes", "--reason", "it is over", "--by", "ann")
        for _ in range(100):
            if shown("r1")["ended"]:
                break
            threading.Event().wait(0.1)
    found = shown("r1")
    assert (found["state"], found["timers"]) == ("ended", {})
    (done,) = found["by hand"]
    assert (done["what"], done["who"], done["why"]) == ("fire-timer expire", "ann", "it is over")
    assert "ann: fire-timer expire (it is over)" in choreo("instances", "show", OLD, "r1").stdout
    assert "ann: approval r1: fire-timer expire (it is over)" in choreo("trace", "flow").stdout


def test_an_entry_asked_for_is_called_by_the_service(here: Path) -> None:
    """The letter is sent once more, in a commit of the service's own."""
    choreo("instances", "set-state", OLD, "r1", "waiting", "--entry", "--yes", "--reason", "the letter was lost")
    with service(App(ApprovalV1)):
        for _ in range(100):
            if list(shown("r1")["timers"]) == ["expire"]:
                break
            threading.Event().wait(0.1)
    (flow,) = json.loads(choreo("trace", "flow", "--json").stdout)["flows"]
    assert len([each for each in flow["events"] if each["type"] == "letter.send"]) == 3 + 1


def test_a_dry_run_changes_nothing(here: Path) -> None:
    """And says what would be done, or what is wrong; neither is anything done that nobody confirmed."""
    before, put, fire = (
        shown("r1"),
        ("instances", "set-state", OLD, "r1"),
        ("instances", "fire-timer", OLD, "r1", "expire"),
    )
    assert "would do: set-state waiting -> ended" in choreo(*put, "ended", "--dry-run").stdout
    assert "no state 'gone'" in choreo(*put, "gone", "--dry-run", code=2).stderr
    assert "no state 'gone'" in choreo(*put, "gone", "--reason", "x", "--yes", code=2).stderr
    assert "--reason" in choreo(*put, "ended", "--yes", code=2).stderr
    assert "--yes" in choreo(*fire, "--reason", "x", "--json", code=2).stderr
    choreo(*fire, "--reason", "x", stdin="n\n", code=1)
    choreo("instances", "migrate", NEW, "--dry-run")
    assert shown("r1") == before


def test_migrate_moves_what_it_can_and_names_the_rest(here: Path) -> None:
    """Exit 1 while something stays; run again it finds that alone."""
    handle(App(ApprovalV1), submitted("r3", employee="nobody"))
    done = json.loads(choreo("instances", "migrate", NEW, "--reason", "v3", "--yes", "--json", code=1).stdout)
    assert done["left"] == [{"key": "r3", "reason": "who is it?"}]
    assert done["moved"] == [
        {"from": {"version": 1, "state": "waiting"}, "to": {"version": 3, "state": "waiting"}, "instances": 3}
    ]
    again = choreo("instances", "migrate", NEW, "--reason", "v3", "--yes", code=1)
    assert "stays r3: who is it?" in again.stderr
    assert shown("r1", NEW)["fields"]["asked"] == "m"
    assert shown("r1", NEW)["by hand"][0]["what"] == "migrate v1 waiting -> v3 waiting"
    assert (
        "nothing leads to approval v1"
        in choreo("instances", "migrate", NEW, "--to", "1", "--reason", "x", "--yes", code=2).stderr
    )


def test_check_refuses_a_deploy_that_would_strand_instances(here: Path) -> None:
    """The build that holds the version passes, one without it does not, and names them."""
    assert "stranded" not in choreo("check", OLD, "--instances").output
    said = choreo("check", AHEAD, "--instances", code=1)
    assert "stranded_instances" in said.stderr
    assert "3 instances (r1, r2, r[red]" in said.stderr
    assert "docs/check.md#stranded_instances" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--broker", "embedded:none.db"], "no file none.db"),
        (["--store", "sqlite:none.db"], "no file none.db"),
        (["--store", "redis://localhost"], "keeps no instances"),
        (["--broker", "kafka://localhost:1"], "say where the instances are"),
        (["--process", "other"], "--process approval"),
    ],
)
def test_what_cannot_be_looked_at_is_said(here: Path, arguments: list[str], said: str) -> None:
    """Exit 2, and no file is made."""
    assert said in choreo("instances", "list", OLD, *arguments, code=2).stderr
    assert not (here / "none.db").exists()


async def test_a_status_page_sees_the_running_app(tmp_path: Path) -> None:
    """Within the running app, by a URL of its own, and connected for as long as a block; None where there is none."""
    app, broker = App(Approval), f"embedded:{tmp_path / 'a.db'}"
    with pytest.raises(ConfigurationError, match="say where"):
        await app.instances(Approval).get("r1")
    with pytest.raises(DeclarationError, match="'other' is no process of this app; it has: approval"):
        app.instances(Other)
    async with app.running(broker=broker, create_topics=True) as running:
        await running.publish(submitted("r1"))
        await running.publish(ExpenseApproved(request_id="early", by="m"))
        async with asyncio.timeout(10):
            while (found := await app.instances(Approval).get("r1")) is None:  # noqa: ASYNC110 - a file changes
                await asyncio.sleep(0.02)
        assert isinstance(found.instance, Approval)
        assert (found.state, found.version, found.ended, found.instance.asked) == ("waiting", 2, False, "m")
        assert sorted(found.timers) == ["escalate", "remind"]
        assert found.timers["remind"] > found.updated
        assert await app.instances(Approval).get("r2") is None
        assert await app.instances(Approval).get("early") is None
    async with app.instances(Approval, broker=broker) as approvals:
        assert await approvals.get("r1") == found
        assert [each.key for each in await approvals.list(state="waiting")] == ["r1"]
    assert await app.instances(Approval, broker=broker).get("r1") == found


async def test_a_migration_that_was_killed_goes_on_where_it_was(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is moved whole or not at all, none twice, and each is told of once."""
    monkeypatch.setattr(migrating, "BATCH", 1)
    process = load_app(NEW).processes["approval"]
    async with connected(process, store=None, broker="embedded:approvals.db") as store:
        intervene, calls = store.intervene, []

        async def dies(change: Any) -> Any:
            calls.append(change)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return await intervene(change)

        monkeypatch.setattr(store, "intervene", dies)
        with pytest.raises(KeyboardInterrupt):
            await migrating.migrate(store, process, 3, Hand("ann", "why"))
        monkeypatch.setattr(store, "intervene", intervene)
        assert migrating.waiting(await store.census("approval"), 3) == 2
        done = await migrating.migrate(store, process, 3, Hand("ann", "why"))
        assert (done.count, done.left_count) == (2, 0)
        for key in ("r1", "r2", HOSTILE):
            assert len(await store.interventions("approval", key)) == 1


async def test_a_batch_that_a_service_is_in_the_way_of_is_moved_one_by_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is locked is tried again."""
    process = load_app(NEW).processes["approval"]
    async with connected(process, store=None, broker="embedded:approvals.db") as store:
        intervene, locked = store.intervene, {"r2": 2}

        async def refuses(change: Any) -> Any:
            def changed(instances: Instances) -> list[Intervention]:
                found: list[Intervention] = list(change(instances))
                for each in found:
                    if locked.get(each.key, 0):
                        locked[each.key] -= 1
                        raise StoreError("locked")
                return found

            return await intervene(changed)

        monkeypatch.setattr(store, "intervene", refuses)
        assert (await migrating.migrate(store, process, 3, Hand("ann", "why"))).count == 3
        for key in ("r1", "r2", HOSTILE):
            assert len(await store.interventions("approval", key)) == 1
