"""The site: built strictly, whole without a network, in structure as the pages are; its map, figures, names fit."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.test_pages import PAGES, PYTHON, ROOT

MAP = (ROOT / "docs" / "map.md").read_text()
WRITTEN = ("ol", "ul", "li", "pre", "table", "h1", "h2", "h3")
GENERATED = "docs/reference.md"
BUILD_S_MAX = 240.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it: a link to nothing or a page in no menu is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=BUILD_S_MAX,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def article(site: Path, page: str) -> str:
    """A page's own part of its HTML."""
    path = page.removeprefix("docs/").replace("README", "index").removesuffix(".md") + ".html"
    return (site / path).read_text().partition("<article")[2].partition("</article>")[0]


def counted(html: str) -> dict[str, int]:
    """How many there are of each kind of element that Markdown writes."""
    return {tag: len(re.findall(rf"<{tag}[ >]", html)) for tag in WRITTEN}


def test_nothing_is_fetched(site: Path) -> None:
    """No script, style, font or picture from elsewhere; pictures are drawn, and not by a script."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        html = page.read_text()
        assert not re.findall(r"<(?:script|img|iframe|source)[^>]+src=.?https?:", html), page
        assert not re.findall(r"<link[^>]+href=.?https?:", html), page
        assert "mermaid" not in html.partition("<article")[2] or "<svg" in html, page
    assert article(site, "docs/engine.md").count("<svg") == 1
    assert "payments.charge</text>" in article(site, "README.md")


def test_pages_are_on_the_site_as_in_a_checkout(site: Path) -> None:
    """Two dialects of Markdown: what is a list, a table or a block to one is one to the other."""
    render = MarkdownIt("commonmark").enable("table").render
    for name, path in PAGES.items():
        if name != GENERATED:
            text = re.sub(r"^```mermaid\n.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
            assert counted(article(site, name)) == counted(render(text)), name


def test_links_out_of_docs_lead_to_pages(site: Path) -> None:
    """Of READMEs elsewhere, and of files that are no Markdown."""
    assert 'href="handlers/order_saga/app.py.html"' in article(site, "docs/runbook.md")
    assert 'href="../../architectures.html"' in article(site, "handlers/order_saga/README.md")
    assert "Saga(" in re.sub(r"<[^>]+>", "", article(site, "handlers/order_saga/app.py.md"))


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    """Of `choreo`, of the modules the page names, and whatever the pages import; by its docstring, or in words."""
    there = set(re.findall(r'id="(choreo[\w.]*)"', article(site, GENERATED)))
    wanted = set()
    modules = re.findall(r"^## (choreo[\w.]*)$", (ROOT / GENERATED).read_text(), re.MULTILINE)
    for module in modules:
        names = getattr(importlib.import_module(module), "__all__", ())
        wanted |= {name for name in names if not name.endswith("Guarantee")}
    for path in PAGES.values():
        for block in PYTHON.findall(path.read_text()):
            for module, names in re.findall(r"^from (choreo[\w.]*) import ([\w, ]+)", block, re.MULTILINE):
                wanted |= {each.strip() for each in names.split(",")} if "simulation." not in module else set()
    assert len(wanted) > 40
    text = (ROOT / GENERATED).read_text()
    in_words = {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", quoted)}
    missing = wanted - {each.rpartition(".")[2] for each in there} - in_words
    assert not missing


def test_every_command_has_its_help(site: Path) -> None:
    """Those of groups too, with their options."""
    page = re.sub(r"<[^>]+>", "", article(site, "commands.md"))
    assert "choreo dlq replay" in page
    assert "--run" in page.partition("choreo dlq replay [OPTIONS]")[2].partition("choreo dlq")[0]


def test_the_map_has_every_layer() -> None:
    """In the order of the contract that import-linter holds; and each of them is there."""
    table = MAP.partition("| layer |")[2].partition("\n\n")[0]
    mapped = [re.findall(r"`(\w+)`", cell) for cell in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)]
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert mapped == [layer.split(" | ") for layer in contract["layers"]]
    there = {
        path.stem for path in (ROOT / "choreo").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {name for row in mapped for name in row} == there - {"__init__"}


def test_the_map_has_every_package() -> None:
    """Those within others too, by their path."""
    packages = {path.parent.relative_to(ROOT / "choreo") for path in (ROOT / "choreo").rglob("__init__.py")}
    nested = {str(each) for each in packages if len(each.parts) > 1}
    assert nested
    assert nested <= set(re.findall(r"`([\w/]+)`", MAP))


def test_capacity_reckons_with_what_was_measured() -> None:
    """Its inputs are those of docs/performance.md and docs/stores.md, or were a quarter of a change ago."""
    page = (ROOT / "docs" / "capacity.md").read_text()
    given = {name: float(value) for name, value in re.findall(r"^(\w+) = ([\d.]+)  #", page, re.MULTILINE)}
    cpu_us = measured("us")
    assert given["cpu_us"] == pytest.approx(cpu_us["postgres"], rel=0.25)
    assert given["traced_us"] == pytest.approx(cpu_us["changelog@100"] - cpu_us["changelog"], rel=0.25)
    keys = rows((ROOT / "docs" / "stores.md").read_text(), "| store | µs")["PostgreSQL"]["a key takes"]
    assert given["key_bytes"] == sum(map(int, re.findall(r"\d+", keys)))


def test_peers_are_compared_by_what_was_measured() -> None:
    """choreo's own ratios, as above."""
    told = rows((ROOT / "docs" / "peers.md").read_text(), "| | ratio |")
    ratios = measured("ratio")
    for row, name in (
        ("choreo, changelog", "changelog"),
        ("choreo, PostgreSQL", "postgres"),
        ("choreo, changelog, every event traced", "changelog@100"),
    ):
        assert float(told[row]["ratio"]) == pytest.approx(ratios[name], rel=0.25)


def measured(what: str) -> dict[str, float]:
    """A column of the table of docs/performance.md, by the rows' names."""
    page = (ROOT / "docs" / "performance.md").read_text()
    if "| row |" not in page:
        pytest.skip("docs/performance.md has no figures to compare with: make bench")
    table = rows(page, "| row |")
    found = {name: cells.get(what, "") or cells.get(f"CPU {what}", "") for name, cells in table.items()}
    return {name: float(text) for name, text in found.items() if re.fullmatch(r"[\d.]+", text)}


def rows(page: str, head: str) -> dict[str, dict[str, str]]:
    """A table of a page: by the first cell of a row, its cells by their heads."""
    table = (head + page.partition(head)[2].partition("\n\n")[0]).splitlines()
    names, _, *lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table]
    return {line[0]: dict(zip(names, line, strict=False)) for line in lines}
