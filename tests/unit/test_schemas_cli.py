"""`choreo schemas`: files written and compared, with a folder and with commits of a repository."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tea_app import MODULE, TARGET, choreo, tea_folder

ROOT = Path(__file__).parents[2]
here = pytest.fixture(tea_folder)

OLD = "    who: str\n    cups: int = 1\n"
CHANGES = {
    "needs": OLD + "    milk: bool\n",
    "added": OLD + "    milk: bool = False\n",
}


UPCASTER = """
@Asked.upcast(from_version=1)
def _(data):
    return data

"""


def declare(folder: Path, body: str, *, version: int = 1, after: str = "") -> None:
    """Change `tea.asked`; the module is imported anew."""
    text = MODULE.replace(OLD, body).replace('"tea.asked", version=1', f'"tea.asked", version={version}')
    text = text.replace("kitchen, bell =", after + "kitchen, bell =")
    (folder / "tea_for_tests.py").write_text(text)
    sys.modules.pop("tea_for_tests", None)


def git(*arguments: str) -> None:
    """Git in the current folder, as somebody."""
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


def found(against: str, *more: str, code: int = 0) -> dict[str, Any]:
    """What `check` says to programs."""
    said: dict[str, Any] = json.loads(
        choreo("schemas", "check", TARGET, "--against", against, "--json", *more, code=code).stdout
    )
    assert said["ok"] == (code == 0)
    return said


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules of one size, written in one second, are told apart."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def repository(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as a repository with its schemas committed."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    choreo("schemas", "export", TARGET)
    git("init", "--quiet", "--initial-branch", "main")
    git("add", "schemas")
    git("commit", "--quiet", "--message", "first")
    return here


def test_the_repositorys_own_schemas_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make schemas` writes them; every app in handlers/ is among them."""
    monkeypatch.chdir(ROOT)
    apps = [f"handlers.{path.parent.name}.app:app" for path in sorted(ROOT.glob("handlers/*/app.py"))]
    assert apps
    choreo("schemas", "export", *apps, "--check")


def test_export_writes_a_file_a_version_and_the_same_bytes_again(here: Path) -> None:
    """JSON Schema of 2020-12 under the name that records carry."""
    choreo("schemas", "export", TARGET)
    files = {path.relative_to(here).as_posix(): path.read_bytes() for path in here.glob("schemas/**/*.json")}
    assert set(files) == {"schemas/tea.asked/1.json", "schemas/tea.poured/1.json"}
    asked = json.loads(files["schemas/tea.asked/1.json"])
    assert asked["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert asked["$id"] == "urn:choreo:tea.asked:1"
    assert asked["required"] == ["who"]
    assert "0 files changed" in choreo("schemas", "export", TARGET).stdout
    assert {name: (here / name).read_bytes() for name in files} == files


def test_export_check_fails_on_what_is_missing_changed_or_stale(here: Path) -> None:
    """It writes nothing; without --check all is mended, and files that are not ours stay."""
    choreo("schemas", "export", TARGET)
    (here / "schemas/README.md").write_text("ours")
    (here / "schemas/tea.asked/1.json").write_text("{}")
    (here / "schemas/tea.poured/1.json").unlink()
    (here / "schemas/tea.cold").mkdir()
    (here / "schemas/tea.cold/1.json").write_text("{}")
    result = choreo("schemas", "export", TARGET, "--check", "--json", code=1)
    assert json.loads(result.stdout)["changed"] == {
        "tea.asked/1.json": "changed",
        "tea.cold/1.json": "stale",
        "tea.poured/1.json": "missing",
    }
    assert "run it without --check" in choreo("schemas", "export", TARGET, "--check", code=1).stdout
    assert (here / "schemas/tea.asked/1.json").read_text() == "{}"
    choreo("schemas", "export", TARGET)
    choreo("schemas", "export", TARGET, "--check")
    assert (here / "schemas/README.md").exists()
    assert not (here / "schemas/tea.cold").exists()


def test_check_against_a_folder_names_the_handler_that_breaks(here: Path) -> None:
    """Exit 1 at a violation, 0 at a change that is let through."""
    choreo("schemas", "export", TARGET, "--out", "released")
    assert found("released") == {
        "ok": True,
        "against": "released",
        "mode": "lenient",
        "versions": 2,
        "states": 1,
        "findings": [],
    }
    declare(here, CHANGES["added"])
    assert not found("released")["findings"]
    declare(here, CHANGES["needs"])
    (finding,) = found("released", code=1)["findings"]
    assert finding["id"] == "required_added"
    assert (finding["type"], finding["version"], finding["path"]) == ("tea.asked", 1, "milk")
    assert finding["handlers"] == ["kitchen.pour"]
    said = choreo("schemas", "check", TARGET, "--against", "released", code=1).stdout
    assert "violation tea.asked v1 milk required_added" in said
    assert "breaks kitchen.pour" in said


def test_check_against_a_commit_reads_what_was_committed(repository: Path) -> None:
    """Whatever is in the working tree; strict modes are stricter."""
    declare(repository, CHANGES["added"])
    choreo("schemas", "export", TARGET)
    assert found("main")["ok"]
    assert found("HEAD", "--mode", "forward")["ok"]
    assert [each["id"] for each in found("main", "--mode", "backward", code=1)["findings"]] == ["added_to_open"]
    assert found("schemas", "--mode", "full")["ok"]


def test_a_transitive_mode_looks_at_every_commit(repository: Path) -> None:
    """What was released between, and is so no more, was released."""
    declare(repository, OLD + "    sugar: int\n")
    choreo("schemas", "export", TARGET)
    git("commit", "--quiet", "--all", "--message", "second")
    declare(repository, OLD)
    choreo("schemas", "export", TARGET)
    git("commit", "--quiet", "--all", "--message", "third")
    assert found("HEAD")["ok"]
    said = found("HEAD", "--mode", "lenient_transitive", code=1)
    assert said["states"] == 2
    assert [(each["path"], each["direction"]) for each in said["findings"]] == [("sugar", "forward")]


def test_check_from_a_folder_of_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are from the current folder, as everywhere else."""
    (repository / "deep").mkdir()
    monkeypatch.chdir(repository / "deep")
    assert found("HEAD", "--folder", "../schemas")["versions"] == 2


def test_a_removed_version_breaks_the_handler_that_has_it(repository: Path) -> None:
    """Until the new class upcasts it."""
    declare(repository, OLD, version=2)
    (finding,) = found("HEAD", code=1)["findings"]
    assert (finding["id"], finding["handlers"]) == ("version_removed", ["kitchen.pour"])
    assert "upcast(from_version=1)" in finding["message"]
    declare(repository, OLD, version=2, after=UPCASTER)
    assert [each["level"] for each in found("HEAD")["findings"]] == ["information"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "gone"], "gone is no folder and no commit that this repository has; fetch it first"),
        (["--against", "--output=x"], "'--output=x' is no folder and no commit"),
        (["--against", "HEAD", "--folder", "elsewhere"], "HEAD holds no schemas in elsewhere/"),
        (["--against", "empty"], "empty holds no schemas (TYPE/VERSION.json); write them with"),
        (["--against", "schemas", "--mode", "strict"], "there is no mode 'strict'; take one of"),
        (["--against", "schemas", "--mode", "full_transitive"], "a mode of all states needs a commit"),
    ],
)
def test_wrong_use_of_check_is_one_line(repository: Path, arguments: list[str], said: str) -> None:
    """Exit code 2 and a sentence that says what to do."""
    (repository / "empty").mkdir()
    assert said in choreo("schemas", "check", TARGET, *arguments, code=2).stderr


@pytest.mark.parametrize("content", ["nope", "[]", ""])
def test_a_released_file_that_is_no_schema_is_named(here: Path, content: str) -> None:
    """In whichever folder it is."""
    choreo("schemas", "export", TARGET)
    (here / "schemas/tea.asked/1.json").write_text(content)
    said = choreo("schemas", "check", TARGET, "--against", "schemas", code=2).stderr
    assert "schemas/tea.asked/1.json is no JSON Schema" in said


def test_outside_of_a_repository_and_without_git_it_is_said_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two things that a commit needs."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(here.parent))
    assert "is in no git repository" in choreo("schemas", "check", TARGET, "--against", "main", code=2).stderr
    monkeypatch.setenv("PATH", str(here))
    assert "git is not there" in choreo("schemas", "check", TARGET, "--against", "main", code=2).stderr


def test_export_to_a_file_is_refused(here: Path) -> None:
    """Exit code 2."""
    said = choreo("schemas", "export", TARGET, "--out", "tea_for_tests.py", code=2).stderr
    assert "is no folder; name another with --out" in said
