"""The code in the pages: Python is run, or done by a page's own test; commands exist and have the options shown."""

import ast
import asyncio
import inspect
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from choreo.cli import main

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "docs/*.md", "docs/flows/*.md", "deploy/**/README.md", "handlers/*/README.md")
PAGES = {str(path.relative_to(ROOT)): path for pattern in FILES for path in sorted(ROOT.glob(pattern))}
DONE = {
    "README.md": "tests/test_readme.py",
    "docs/deploying-changes.md": "tests/test_deploying_changes.py",
    "docs/incident.md": "tests/test_incident.py",
    "docs/publishing.md": "tests/integration/test_publishing_page.py",
    "docs/simulation.md": "tests/simulation/test_dangling_hold.py",
}
"""Pages whose Python is saved to files and run by a test of their own."""
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```$|`(choreo [^`]+|make [^`]+)`", re.DOTALL | re.MULTILINE)
WITH_PYTHON = [name for name, path in PAGES.items() if "```python\n" in path.read_text()]


def evaluate(example: Example) -> None:
    """Run one block, which may await; what it prints is what the page shows below it."""
    code = compile(
        "\n" * (example.line + example.parsed.line_offset) + example.parsed,
        example.path,
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    printed = io.StringIO()
    with redirect_stdout(printed):
        result = eval(code, example.namespace)  # noqa: S307
        if inspect.iscoroutine(result):
            asyncio.run(result)
    shown = re.match(r"\s*```\n(.*?)^```$", example.document.text[example.region.end :], re.DOTALL | re.MULTILINE)
    assert not shown or printed.getvalue() == shown[1]


@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if name not in DONE])
def test_python_runs(name: str) -> None:
    """Block by block, in one namespace a page; tests that it defines are called.

    What a page takes for granted, such as the events of a flow, is in tests/pages/.
    """
    document = Sybil([CodeBlockParser("python", evaluate), SkipParser()]).parse(PAGES[name])
    given = Path(__file__).parent / "pages" / f"{PAGES[name].stem.replace('-', '_')}.py"
    if given.exists():
        document.namespace.update(runpy.run_path(str(given), run_name=given.stem))
    for example in document.examples():
        example.evaluate()
    for test in [each for key, each in document.namespace.items() if key.startswith("test_")]:
        asyncio.run(test())


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_can_be_read(name: str) -> None:
    """Also what is not run; and a page that is done by a test of its own is read by that test."""
    blocks = PYTHON.findall(PAGES[name].read_text())
    assert blocks
    for block in blocks:
        compile(block, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if name in DONE:
        assert f'"{PAGES[name].name}"' in (ROOT / DONE[name]).read_text()


def lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every `choreo` and `make` of a page with its words: in blocks, and within sentences."""
    for block, within in SHELL.findall(text):
        line = ""
        for part in (block or within).splitlines():
            line += part.removesuffix("\\")
            if part.endswith("\\"):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            try:
                yield from commands(list(lexer))
            except ValueError:  # a quotation goes on in the next line
                line += " "
            else:
                line = ""


def commands(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """What is at the begin of a command: of the line, after a pipe and the like, or after variables."""
    begins = True
    for number, word in enumerate(words):
        if begins and word in ("choreo", "make"):
            yield word, list(takewhile(lambda each: each.strip("|;&()<>"), words[number + 1 :]))
        begins = not word.strip("|;&()") or word.endswith("$") or (begins and bool(re.match(r"\w+=", word)))


def unknown(words: list[str]) -> Iterator[str]:
    """Commands and options that `choreo` does not have."""
    command: Any = typer.main.get_command(main)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            if words[0].islower():  # else it stands for one
                yield words[0]
            return
        command, words = command.commands[words[0]], words[1:]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    yield from (word for word in words if word.startswith("-") and word != "-" and word.split("=")[0] not in known)


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name: str) -> None:
    """With the options that are shown, in blocks and in sentences; and so do targets of make."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, words in lines(PAGES[name].read_text()):
        if program == "make":
            assert targets >= {word for word in words[:1] if word.islower() and word.replace("-", "").isalpha()}, (
                words
            )
        else:
            assert not list(unknown(words)), words


def test_there_are_commands_to_look_at() -> None:
    """A pattern that finds nothing would let everything pass; and a wrong one is found."""
    seen = [words for path in PAGES.values() for program, words in lines(path.read_text()) if program == "choreo"]
    assert len(seen) > 150
    assert list(unknown(["dlq", "list", "orders:app", "--nonsense", "--json"])) == ["--nonsense"]
    assert list(unknown(["trase", "--key", "A-1"])) == ["trase"]


@pytest.mark.parametrize("name", PAGES)
def test_paths_exist(name: str) -> None:
    """Files of the repository that a page names in words, or runs."""
    text = PAGES[name].read_text()
    named = re.findall(r"`((?:choreo|tests|scripts|deploy|handlers|docs)/[\w./-]+)`", text)
    for path in named + re.findall(r"\bpython3? (scripts/[\w/]+\.py)", text):
        assert (ROOT / path.rstrip("/")).exists(), path
