"""`choreo new`: a project of one service, with its tests, that passes them as it is."""

import keyword
import re
import sys
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated

import typer
from rich.markup import escape

from choreo.cli.console import out, reported
from choreo.errors import ConfigurationError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
NAME_CHARACTERS_MAX = 60
_SUFFIX = ".tmpl"
_DOTTED = {"gitignore": ".gitignore", "dockerignore": ".dockerignore"}


@reported
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the project and its service, such as shop-orders.")],
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where to; a folder of that name unless given.")
    ] = None,
) -> None:
    """Write a project: one service, a test, a simulation, a Dockerfile. Nothing that is there is overwritten."""
    package = package_of(name)
    here = folder or Path(name)
    try:
        if here.exists() and any(here.iterdir()):
            raise ConfigurationError(f"{here} is there and not empty; give another NAME or --dir")
        written = write(here, {"name": name, "package": package, "version": version("choreo")})
    except OSError as error:
        raise ConfigurationError(f"cannot write {error.filename or here}: {error.strerror}") from error
    console = out()
    for path in written:
        console.print(str(path), highlight=False, markup=False)
    console.print(f"Next: [bold]cd {escape(str(here))}[/], and what its README.md says", highlight=False)


def package_of(name: str) -> str:
    """The name of the Python package of a project.

    Raises:
        ConfigurationError: None can be made of it, or it is taken.
    """
    if not NAME.match(name) or len(name) > NAME_CHARACTERS_MAX:
        raise ConfigurationError(
            f"{name!r} is no name for a project: lower-case letters and digits, in words joined by -, at most "
            f"{NAME_CHARACTERS_MAX} characters, such as shop-orders"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names | {"choreo", "tests"}:
        raise ConfigurationError(f"{package} is a name that Python or the project uses itself; take another one")
    return package


def write(here: Path, values: dict[str, str]) -> list[Path]:
    """Write every file of the skeleton, `$name`, `$package` and `$version` filled in; returns them.

    Raises:
        OSError: One cannot be written.
    """
    written = []
    for parts, source in _templates(files("choreo.cli").joinpath("skeleton")):
        *folders, last = parts
        names = [values["package"] if folder == "package" else folder for folder in folders]
        path = here.joinpath(*names, _DOTTED.get(last, last))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(source.read_text("utf-8")).substitute(values), "utf-8")
        written.append(path)
    return written


def _templates(folder: Traversable, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Traversable]]:
    """Where each file goes, and where it comes from."""
    found = []
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        if entry.is_dir():
            found += _templates(entry, (*above, entry.name))
        elif entry.name.endswith(_SUFFIX):
            found.append(((*above, entry.name.removesuffix(_SUFFIX)), entry))
    return found
