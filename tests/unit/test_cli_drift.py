"""`choreo drift` as a shell runs it."""

import json
from pathlib import Path
from typing import Any

import pytest

from choreo.flow.drift_findings import DRIFT_LEVEL_OF
from tests.tea_app import TARGET, choreo, tea_folder

here = pytest.fixture(tea_folder)
ROOT = Path(__file__).parent.parent.parent


def publish_one() -> str:
    """One cup is asked for, and nobody runs who would pour it; returns the flow's correlation id."""
    choreo("topics", "apply", TARGET)
    published = choreo("publish", TARGET, "tea.asked", "who=Ada", "--json")
    return str(json.loads(published.stdout)["correlation_id"])


def drift(*more: str, code: int = 0) -> dict[str, Any]:
    """What it says to programs."""
    found: dict[str, Any] = json.loads(choreo("drift", TARGET, "--timeout", "0s", "--json", *more, code=code).stdout)
    return found


def test_event_that_nobody_takes_in_is_found(here: Path) -> None:
    """From the embedded broker, whose store is in the same file; with every field that programs may rely on."""
    flow = publish_one()
    found = drift()
    assert found["basis"] == "log and store"
    assert (found["ok"], found["fitness"], found["precision"], found["sampled"]) == (True, None, 0.0, 1.0)
    assert found["sample"] == {"correlation_ids": 1, "events": 1, "units": 0, "edges": 0}
    (unconsumed,) = (each for each in found["findings"] if each["level"] == "improvement")
    assert (unconsumed.pop("first_seen_ms"), unconsumed.pop("example_trace_ids")) == (unconsumed["last_seen_ms"], [])
    assert unconsumed.pop("last_seen_ms") > found["window"]["from_ms"]
    assert unconsumed.pop("message").startswith("1 of tea.asked v1 were not handled by kitchen.pour in time")
    assert unconsumed == {
        "id": "unconsumed_event",
        "level": "improvement",
        "edge": "tea.asked v1 -> kitchen.pour",
        "count": 1,
        "example_correlation_ids": [flow],
        "page": "docs/drift.md#unconsumed_event",
    }


def test_table_says_where_what_and_how_to_go_on(here: Path) -> None:
    """And nothing of what was silenced."""
    flow = publish_one()
    shown = choreo("drift", TARGET, "--timeout", "0s").stdout
    assert "unconsumed_event" in shown
    assert flow in shown
    assert "see docs/drift.md" in shown
    silent = choreo("drift", TARGET, "--ignore", "never_observed_edge")
    assert "nothing differs" in silent.stdout
    assert silent.stderr == ""


def test_finding_is_silenced_by_its_edge(here: Path) -> None:
    """What silences nothing is said, so that it does not stay for ever."""
    publish_one()
    one = "unconsumed_event:tea.asked v1 -> kitchen.pour"
    found = drift("--ignore", one, "--ignore", "never_observed_edge")
    assert (found["findings"], found["silenced"]) == ([], 3)
    other = choreo("drift", TARGET, "--timeout", "0s", "--ignore", "unconsumed_event:elsewhere")
    assert "--ignore unconsumed_event:elsewhere silences nothing" in other.stderr
    assert "tea.asked" in other.stdout


def test_only_one_service_is_judged(here: Path) -> None:
    """The other's silence is the other's."""
    publish_one()
    assert {each["edge"] for each in drift("--service", "bell")["findings"]} == {"tea.poured v1 -> bell.ring"}


def test_stranger_on_the_log_writes_no_markup(here: Path) -> None:
    """Names come from headers, which anybody may write."""
    publish_one()
    capability = json.loads(choreo("graph", TARGET, "--format", "json").stdout)
    capability["flows"][0]["name"] = "[red]\x1b[31mtea"
    (here / "tea.json").write_text(json.dumps(capability))
    shown = choreo("drift", "tea.json", "--timeout", "0s").stdout
    assert "flow [red]?[31mtea: 1 started" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name at least one MODULE:APP"),
        ([TARGET, "--broker", "embedded:gone.db"], "there is no embedded log at gone.db"),
        ([TARGET, "--broker", "kafka://127.0.0.1:1"], "127.0.0.1:1"),
        ([TARGET, "--jaeger", "http://127.0.0.1:1"], "cannot be asked"),
        ([TARGET, "--sampled", "0.1"], "--sampled is of traces"),
        ([TARGET, "--jaeger", "http://127.0.0.1:1", "--sampled", "2"], "a share above 0 and at most 1"),
        ([TARGET, "--since", "long"], "is no length of time"),
        ([TARGET], "nothing was seen in the last 24h"),
        ([TARGET, "--ignore", "typo"], "there is no such id; there are: broken_trace, cardinality_exceeded"),
        ([TARGET, "--service", "cellar"], "there is no service 'cellar'; there are: bell, kitchen"),
    ],
)
def test_what_cannot_be_evaluated_is_no_drift(here: Path, arguments: list[str], said: str) -> None:
    """Exit code 2, which a pipeline can tell from 1; of wrong names before anything is looked at."""
    choreo("topics", "apply", TARGET)
    assert said in choreo("drift", *arguments, code=2).stderr


def test_nowhere_to_look_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is guessed."""
    monkeypatch.delenv("CHOREO_BROKER")
    assert "say where to look" in choreo("drift", TARGET, code=2).stderr


def test_every_finding_has_a_section_in_the_docs() -> None:
    """Of its own name, with its level."""
    page = (ROOT / "docs" / "drift.md").read_text()
    for id_, level in DRIFT_LEVEL_OF.items():
        section = page.partition(f"\n### {id_}\n")[2].partition("\n### ")[0]
        assert section.strip().lower().startswith(level), id_
