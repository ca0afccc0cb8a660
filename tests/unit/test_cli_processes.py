"""The commands that go on running, each in a process of its own, on an embedded broker in a file."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from choreo.cli import main
from tests.tea_app import MODULE, TARGET, choreo, events, tea_folder

here = pytest.fixture(tea_folder)


def start(here: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "choreo", *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), root])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what is in its background with SIGINT ignored, and everything below it inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_events(correlation_id: str, count: int) -> list[dict[str, Any]]:
    """The flow's events once there are `count` of them."""
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        result = CliRunner().invoke(main, ["trace", correlation_id, "--json"])
        found: list[dict[str, Any]] = json.loads(result.stdout)["flows"][0]["events"] if result.exit_code == 0 else []
        if len(found) >= count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{correlation_id} has no {count} events")


def test_run_handles_until_it_is_told_to_stop(here: Path) -> None:
    """`run` handles what was published, drains on SIGTERM with exit code 0, and `trace` shows what it did."""
    choreo("topics", "apply", TARGET)
    choreo("publish", TARGET, "tea.asked", "who=Ada", "--id", "who")
    choreo("publish", TARGET, "tea.asked", "who=Bob", "cups=10", "--id", "who")
    process = start(here, "run", TARGET, "--log-json")
    try:
        asked, poured = wait_for_events("Ada", 2)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        _, logs = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    lines = [json.loads(line) for line in logs.splitlines()]
    assert lines[-1]["message"] == "drained"
    (letter,) = [line for line in lines if line["message"].startswith("dead letter")]
    assert (letter["correlation_id"], letter["service"], letter["handler"]) == ("Bob", "kitchen", "pour")
    assert poured["causation_id"] == asked["id"]
    assert [each["handler"] for each in asked["handlings"]] == ["kitchen.pour"]
    (rejected,) = events("Bob")
    assert rejected["dead_letters"][0]["service"] == "kitchen"
    assert "dead letter" in choreo("trace", "Bob").stdout


@pytest.mark.parametrize("command", ["run", "dev"])
def test_health_is_served_where_asked_for(here: Path, command: str) -> None:
    """`--health-port` answers once all services have joined; `dev` hands it on to the process it watches."""
    choreo("topics", "apply", TARGET)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    broker = ["--broker", "embedded:tea.db"]
    process = start(here, command, TARGET, *broker, "--health-port", str(port), "--trace-mode", "both")
    try:
        until_s = time.monotonic() + 20
        found = ""
        while time.monotonic() < until_s and found != "ok\n":
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
                    found = answer.read().decode()
            except OSError:
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert found == "ok\n"


def test_wrong_telemetry_settings_are_refused(here: Path) -> None:
    """Exit 2, and what there is."""
    choreo("topics", "apply", TARGET)
    for arguments in (["--trace-mode", "child"], ["--trace-split-after", "soon"], ["--health-port", "70000"]):
        choreo("run", TARGET, *arguments, code=2)


def test_run_of_one_service_leaves_the_others_alone(here: Path) -> None:
    """With `--service` only that one handles."""
    choreo("topics", "apply", TARGET)
    choreo("publish", TARGET, "tea.asked", "who=Ada", "--id", "who")
    process = start(here, "run", TARGET, "--service", "kitchen")
    try:
        _, poured = wait_for_events("Ada", 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert poured["handlings"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--service", "cellar"], "has no service cellar; it has kitchen, bell"),
        ([], "choreo topics apply"),
        (["--broker", "carrier-pigeon:x", "--store", "sqlite:x"], "is not understood"),
        (["--store", "sqlite:x"], "leave --store out"),
        (["--log-level", "loud"], "there is debug"),
    ],
)
def test_run_refuses_what_cannot_work(here: Path, arguments: list[str], said: str) -> None:
    """Unknown services, missing topics and wrong URLs are told at the start."""
    process = start(here, "run", TARGET, *arguments)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert said in errors
    assert "Traceback" not in errors


def test_dev_starts_again_when_the_code_changes(here: Path) -> None:
    """`dev` creates topics, handles, and takes up a change of the code."""
    process = start(here, "dev", TARGET, "--broker", "embedded:tea.db")
    try:
        until_s = time.monotonic() + 20
        while CliRunner().invoke(main, ["publish", TARGET, "tea.asked", "who=Ada", "--id", "who"]).exit_code:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        wait_for_events("Ada", 2)
        (here / "tea_for_tests.py").write_text(MODULE.replace("who=asked.who", "who=asked.who.upper()"))
        assert process.stderr is not None
        while "starting again" not in process.stderr.readline():
            pass
        while "publish with" not in process.stderr.readline():
            pass
        choreo("publish", TARGET, "tea.asked", "who=Bob", "--id", "who")
        wait_for_events("Bob", 2)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "ring for Ada" in output
    assert "ring for BOB" in output


def test_second_signal_ends_run_at_once(here: Path) -> None:
    """Whoever does not want to wait for a slow handler sends the signal again."""
    choreo("topics", "apply", TARGET)
    choreo("publish", TARGET, "tea.asked", "who=Ada", "cups=7", "--id", "who")
    process = start(here, "run", TARGET, "--service", "kitchen")
    try:
        until_s = time.monotonic() + 20
        while not events("Ada")[0]["handlings"]:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 1
    finally:
        process.kill()
        process.communicate()
