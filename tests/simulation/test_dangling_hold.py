"""The tutorial's shop: its bug is found, shortened and told by a decorated test, as docs/simulation.md shows it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from choreo.errors import ConfigurationError, DeclarationError
from choreo.testing import TestApp
from choreo.testing.simulation import Faults, World, simulate
from choreo.testing.simulation.faults import KINDS
from tests.simulation import dangling_hold as shop

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "simulation.md").read_text()
FLOW = Path(shop.__file__).read_text()
SEEDS = 10
"""The mended shop passes as many, and the bug is found in fewer."""


def blocks(name: str) -> list[str]:
    """The page's Python blocks of one file."""
    return re.findall(rf"^<!-- {re.escape(name)} -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever runs the tests."""
    for variable in ("CHOREO_SEEDS", "CHOREO_SEED", "CHOREO_ALLOWED"):
        monkeypatch.delenv(variable, raising=False)


def run_in(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python there, as somebody who has installed choreo runs it."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "COLUMNS": "160", **variables}
    environment.pop("PYTEST_CURRENT_TEST", None)
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )


def test_the_bug_is_found_shortened_told_and_replayed(tmp_path: Path) -> None:
    """Under pytest, as on the page; the command it prints fails in the same way without any other fault."""
    (block,) = blocks("test_shop.py")
    (tmp_path / "test_shop.py").write_text(block)
    shutil.copy(shop.__file__, tmp_path / "shop.py")
    pytest_words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    result = run_in(tmp_path, *pytest_words, "test_shop.py", CHOREO_SEEDS=str(SEEDS))
    said = result.stdout
    assert result.returncode == 1, said + result.stderr
    assert re.search(r"^1 failed in ", said, re.MULTILINE)
    assert re.search(r"^    test_no_dangling_hold: neither shipped nor released: \[\('A-\d+',\)", said, re.MULTILINE)
    schedule = re.search(r"^the shortest schedule, of (\d+) faults:\n((?:    .*\n)+)", said, re.MULTILINE)
    assert schedule
    assert 1 <= len(schedule[2].splitlines()) <= 3 < int(schedule[1])
    story = said.partition("lines left out\n")[2].partition("  violated: ")[0]
    for step in ("order.placed", "goods.held", "payment.timed_out", "payment.refunded"):
        assert re.search(rf"appends \w+/\d@\d+ {re.escape(step)} published-\d+\n", story)
    assert "goods.released" not in story
    assert "\n! " in story

    (command,) = set(re.findall(r"^replay it: (.*)$", said, re.MULTILINE))  # said twice where CI is set
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in words[:2])
    assert (list(variables), words[2:]) == (
        ["CHOREO_SEED", "CHOREO_ALLOWED"],
        ["pytest", "test_shop.py::test_no_dangling_hold"],
    )
    again = run_in(tmp_path, *pytest_words, words[3], **variables)
    assert again.returncode == 1
    assert again.stdout.partition("lines left out\n")[2].partition("  violated: ")[0] == story


@simulate(shop.mended, publish=shop.orders, resources={shop.Bank: shop.Bank()}, seeds=SEEDS)
def test_the_mended_shop_forgets_nothing(world: World) -> None:
    """Neither goods nor money, with two processes a service."""
    assert not world.rows("SELECT order_id FROM hold WHERE state = 'held'")
    assert len(world.rows("hold")) == 20
    released = {order_id for (order_id,) in world.rows("SELECT order_id FROM hold WHERE state = 'released'")}
    assert not released & world.resources[shop.Bank].paid.keys()


async def test_a_test_without_faults_does_not_find_the_bug() -> None:
    """Every time-out is asked about again, and answered: what is needed is another failure at the same time."""
    async with TestApp(shop.app, resources={shop.Bank: shop.Bank()}) as t:
        for number in range(20):
            await t.publish(shop.OrderPlaced(order_id=f"A-{number}", cents=100))
        await t.settle()
        assert t.rows("SELECT DISTINCT state FROM hold") == [("shipped",)]
        assert not t.dead_letters


# ---- the decorator

peaceful = simulate(
    shop.mended,
    publish=lambda chance: shop.orders(chance)[:2],
    resources={shop.Bank: shop.Bank()},
    seeds=2,
    members=1,
    faults=Faults.none(),
)


def test_a_decorated_test_keeps_its_name_and_takes_fixtures(capsys: pytest.CaptureFixture[str]) -> None:
    """Its world is not looked for among them; it is called once a seed, and once more for the first."""
    seen: list[object] = []

    @peaceful
    def test_it(tmp_path: Path, world: World, answer: int = 42) -> None:
        """What it is about."""
        seen.append((tmp_path, answer, len(world.rows("hold"))))

    assert (test_it.__name__, test_it.__doc__) == ("test_it", "What it is about.")
    assert test_it.simulation.checkers[-1].__name__ == "test_it"
    test_it(tmp_path=ROOT)
    assert seen == [(ROOT, 42, 2)] * 3
    assert capsys.readouterr().out == ""


def test_the_environment_says_which_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another number, one seed, which is told, or one with some of its faults; nonsense is refused."""
    worlds: list[World] = []
    test = peaceful(lambda world: worlds.append(world))
    monkeypatch.setenv("CHOREO_SEEDS", "4")
    test()
    assert len(worlds) == 5
    monkeypatch.setenv("CHOREO_SEED", "7")
    test()
    assert len(worlds) == 6
    assert capsys.readouterr().out.startswith("seed 7: all of it; ")
    monkeypatch.setenv("CHOREO_ALLOWED", "crash@nobody#1")
    test()
    assert capsys.readouterr().out.startswith("allowed, and did not happen: crash@nobody#1\nseed 7: ")
    for variable, text in (("CHOREO_SEED", "seven"), ("CHOREO_SEEDS", "0")):
        monkeypatch.delenv("CHOREO_SEED", raising=False)
        monkeypatch.setenv(variable, text)
        with pytest.raises(ConfigurationError, match=variable):
            test()
        monkeypatch.undo()
    monkeypatch.setenv("CHOREO_ALLOWED", "")
    with pytest.raises(ConfigurationError, match="set CHOREO_SEED, too"):
        test()


@pytest.mark.parametrize(
    ("message", "said"),
    [("two\n  lines", "two lines"), (None, "raise AssertionError(*[message] if message else [])")],
)
def test_what_is_asserted_in_vain_is_one_line(message: str | None, said: str) -> None:
    """Its message; without one, the line of code. The first seed fails, and without a fault."""

    @peaceful
    def test_it(world: World) -> None:
        raise AssertionError(*[message] if message else [])

    with pytest.raises(pytest.fail.Exception) as failed:
        test_it()
    lines = str(failed.value).splitlines()
    assert lines[:2] == ["seed 1: 1 violation", f"    test_it: {said}"]
    assert lines[2].startswith("replay it: CHOREO_SEED=1 CHOREO_ALLOWED='' pytest ")
    assert lines[3] == "it needs no fault"


def test_what_is_wrong_may_be_yielded() -> None:
    """As by any other checker: nothing that is written in a generator is passed over."""

    @peaceful
    def test_it(world: World) -> Iterator[str]:
        yield "this"
        raise AssertionError("that")

    with pytest.raises(pytest.fail.Exception, match=r"2 violations\n    test_it: this\n    test_it: that\n"):
        test_it()


def test_an_error_of_the_test_itself_names_its_seed() -> None:
    """It is no violation, and is raised on."""

    @peaceful
    def test_it(world: World) -> None:
        raise KeyError("no such row")

    with pytest.raises(KeyError) as failed:
        test_it()
    assert failed.value.__notes__ == ["in seed 1 of a simulation; run it alone with CHOREO_SEED=1"]


def test_a_resource_that_remembers_is_found() -> None:
    """The app's own instance is the same one in the second run: what it says there is not the seed's doing."""
    test = simulate(shop.app, publish=shop.orders, members=1, faults=Faults.none())(lambda world: None)
    with pytest.raises(pytest.fail.Exception, match=r"^not deterministic: seed 1 twice: line \d+ was "):
        test()


async def coroutine(world: World) -> None:
    """Nobody would await it."""


@pytest.mark.parametrize(("test", "said"), [(coroutine, "a plain def"), (lambda: None, "does not take the world")])
def test_what_would_pass_unseen_is_refused(test: object, said: str) -> None:
    """When it is decorated; no seeds at all, too."""
    with pytest.raises(DeclarationError, match=said):
        peaceful(test)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="at least one"):
        simulate(shop.app, publish=shop.orders, seeds=0)


def test_without_pytest_it_is_an_assertion_error(tmp_path: Path) -> None:
    """Nothing of pytest is imported, and the command calls the function."""
    (tmp_path / "shop.py").write_text(FLOW)
    (tmp_path / "alone.py").write_text(
        "from choreo.testing.simulation import Faults, simulate\nfrom shop import app, orders\n"
        "@simulate(app, publish=lambda c: orders(c)[:1], seeds=1, members=1, faults=Faults.none())\n"
        "def test_it(world):\n    assert world is None\n"
    )
    code = "import sys, alone\ntry: alone.test_it()\nexcept AssertionError as e: print('pytest' in sys.modules, e)"
    result = run_in(tmp_path, "-c", code)
    said = result.stdout or result.stderr
    assert said.startswith("False seed 1: 1 violation\n    test_it: assert world is None\n")
    assert "python -c 'from alone import test_it; test_it()'\n" in said


# ---- the page


def test_the_page_shows_the_shop() -> None:
    """Its blocks are of the file, word for word."""
    shown = blocks("shop.py")
    assert shown
    for block in shown:
        for part in block.split("\n\n\n"):
            assert part.strip() in FLOW


def test_the_page_has_every_fault_and_its_default() -> None:
    """In the order and the words of the code."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| ([\d.]+) \| ", PAGE, re.MULTILINE)
    assert {kind: (said, float(chance)) for kind, said, chance in rows} == {
        each.name: (KINDS[each.name], each.default) for each in fields(Faults)
    }
