"""Limits of size and names, so that no module grows into one that nobody reads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "choreo").rglob("*.py"))
LINES_MAX, FUNCTION_LINES_MAX = 500, 70
NAMES_REFUSED = {"utils", "helpers", "common", "manager", "base", "misc"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, _Function]]:
    """Functions and methods whose name, and whose class's name, do not begin with an underscore."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, _Function) and not node.name.startswith("_"):
            yield prefix + node.name, node


def test_there_is_something_to_look_at() -> None:
    """A wrong path would let everything pass."""
    assert len(MODULES) > 20


@each_module
def test_no_module_is_too_long(path: Path) -> None:
    """At most 500 lines."""
    assert len(path.read_text().splitlines()) <= LINES_MAX


@each_module
def test_no_function_is_too_long(path: Path) -> None:
    """At most 70 lines, its docstring among them."""
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, _Function)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


@each_module
def test_a_module_is_named_by_what_it_does(path: Path) -> None:
    """Neither it nor its package has a name under which anything could be put."""
    assert not NAMES_REFUSED & {part.lower() for part in path.relative_to(ROOT).with_suffix("").parts}


@each_module
def test_every_public_function_has_a_docstring(path: Path) -> None:
    """And every module."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has none"
    assert [name for name, node in public_functions(tree.body) if not ast.get_docstring(node)] == []
