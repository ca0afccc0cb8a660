"""What the site has beside docs/: the README as its first page, whatever of the repository a page links to, commands.

A hook of MkDocs. Links are written as they are on disk, and so work in a checkout too; a file that is no Markdown
becomes a page that shows it.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import typer
from mkdocs.structure.files import File, Files, InclusionLevel
from typer.cli import get_docs_for_click

from choreo.cli import main

ROOT = Path(__file__).resolve().parent.parent
FIRST = "README.md"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json"}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the commands' own help, the README, and whatever is linked to from there on."""
    todo = [FIRST, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(todo)
    while todo:
        path = todo.pop()
        if not path.startswith("docs/"):
            files.append(_file(path, config))
        for _, target in _links(path, (ROOT / path).read_text() if path.endswith(".md") else ""):
            if target not in seen and not target.startswith("docs/") and (ROOT / target).is_file():
                seen.add(target)
                todo.append(target)
    files.append(File.generated(config, "commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links as they are on the site. Those to nothing stay as they are: the strict build refuses them."""
    path = page.file.repository_path if hasattr(page.file, "repository_path") else f"docs/{page.file.src_uri}"
    if not path.endswith(".md"):
        return markdown
    here = PurePosixPath(_uri(path)).parent
    for link, target in set(_links(path, markdown)):
        if (ROOT / target).is_file():
            new = os.path.relpath(_uri(target), here)
            markdown = re.sub(rf"(?<=\]\(){re.escape(link)}(?=[)#])", new, markdown)
    return markdown


def _commands() -> str:
    command = typer.main.get_command(main)
    context = typer.Context(command, info_name="choreo")
    return get_docs_for_click(obj=command, ctx=context, name="choreo", title="Commands")


def _links(path: str, markdown: str) -> Iterator[tuple[str, str]]:
    """Each link to a file, and the path in the repository it stands for."""
    for link in LINK.findall(markdown):
        yield link, os.path.normpath(PurePosixPath(path).parent / link)


def _uri(path: str) -> str:
    """Where on the site a file of the repository is."""
    if path == FIRST:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(".md") else f"{path}.md"


def _file(path: str, config: Any) -> File:
    text = (ROOT / path).read_text()
    if not path.endswith(".md"):
        text = f"# {path}\n\n````{LANGUAGES.get(PurePosixPath(path).suffix, 'text')}\n{text}````\n"
    file = File.generated(config, _uri(path), content=text, inclusion=InclusionLevel.INCLUDED)
    if not path.endswith(".md"):
        file.inclusion = InclusionLevel.NOT_IN_NAV
    file.repository_path = path  # type: ignore[attr-defined]
    return file
