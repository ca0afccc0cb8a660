"""`choreo new`: what it writes passes its own tests, linter and type checker as it is."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from choreo.cli.new import NAME_CHARACTERS_MAX
from tests.tea_app import choreo

LONGEST = "-".join(["long"] * 12)


def ran(project: Path, *arguments: str, seeds: int = 5) -> subprocess.CompletedProcess[str]:
    """A module of ours, run in the project as its developer would."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CHOREO_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env={**environment, "CHOREO_SEEDS": str(seeds)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project just made."""
    monkeypatch.chdir(tmp_path)
    choreo("new", "shop-orders")
    return tmp_path / "shop-orders"


def test_a_new_project_passes_its_own_tests(project: Path) -> None:
    """And they are tests: a service that does otherwise fails them."""
    passed = ran(project, "pytest", "-q")
    assert passed.returncode == 0, passed.stdout
    assert "4 passed" in passed.stdout
    service = project / "shop_orders" / "service.py"
    text = service.read_text()
    for right, wrong in (("<= QUANTITY_MAX", "< QUANTITY_MAX"), ("(order_id=order.order_id)", "(order_id='A-0')")):
        assert right in text
        service.write_text(text.replace(right, wrong))
        test = "tests/test_flow.py" if "<" in right else "tests/test_bad_days.py"
        failed = ran(project, "pytest", "-q", test, seeds=1)
        assert failed.returncode == 1, failed.stdout


@pytest.mark.parametrize("name", ["a", LONGEST])
def test_a_new_project_is_clean(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the length of its name."""
    assert len(LONGEST) < NAME_CHARACTERS_MAX
    monkeypatch.chdir(tmp_path)
    choreo("new", name, "--dir", "project")
    here = tmp_path / "project"
    types = [("mypy",)] if name == LONGEST else []
    for command in (("ruff", "check", "."), ("ruff", "format", "--check", "."), *types):
        found = ran(here, *command)
        assert found.returncode == 0, found.stdout


def test_what_is_written_fits_together(project: Path) -> None:
    """The image runs the project's own app, of which a copy is in it; nothing is left to be filled in."""
    there = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert {"Dockerfile", ".dockerignore", ".gitignore", "README.md", "tests/test_bad_days.py"} <= there
    for path in there:
        text = (project / path).read_text()
        assert not any(hole in text for hole in ("$name", "$package", "$version", "$$"))
    assert 'CMD ["run", "shop_orders.app:app"' in (project / "Dockerfile").read_text()
    assert "!shop_orders" in (project / ".dockerignore").read_text()
    made = tomllib.loads((project / "pyproject.toml").read_text())
    assert made["project"]["name"] == "shop-orders"
    checked = ran(project, "choreo", "check", "shop_orders.app:app")
    assert checked.returncode == 0, checked.stderr


def test_nothing_is_overwritten(project: Path) -> None:
    """A folder that is not empty is left as it is."""
    (project / "README.md").write_text("mine")
    assert "not empty" in choreo("new", "shop-orders", code=2).stderr
    assert (project / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "Shop", "1shop", "shop--orders", "shop_orders", "../shop", "x" * 61, "choreo"])
def test_bad_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what a name looks like; nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert "error:" in choreo("new", name, code=2).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["class", "json", "tests"])
def test_names_of_other_modules_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `json` would be imported in place of Python's."""
    monkeypatch.chdir(tmp_path)
    assert "uses itself" in choreo("new", name, code=2).stderr
