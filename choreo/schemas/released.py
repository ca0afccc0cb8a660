"""Schemas as they were released: read from a folder, or from a commit by `git`, and written to a folder."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from choreo.errors import ConfigurationError
from choreo.schemas.exporting import Contract, Version, file_name, rendered, version_of

Released = Mapping[Version, Mapping[str, Any]]
"""JSON Schema by event type and version."""
_GIT_S = 60.0


def differing_files(folder: Path, contracts: Iterable[Contract]) -> dict[str, str]:
    """File name -> `missing`, `changed` or `stale`, of those that are not what the declarations say."""
    wanted = {file_name(each.version): rendered(each.document) for each in contracts}
    there = {name: (folder / name).read_bytes() for name in _names(folder)}
    states = {
        name: "missing" if name not in there else "changed" for name in wanted if wanted[name] != there.get(name)
    }
    return dict(sorted({**states, **{name: "stale" for name in there if name not in wanted}}.items()))


def write_files(folder: Path, contracts: Iterable[Contract]) -> dict[str, str]:
    """Make a folder what the declarations say; schemas that nothing declares any more are deleted.

    Returns:
        What `differing_files` said before.
    """
    contracts = list(contracts)
    changed = differing_files(folder, contracts)
    wanted = {file_name(each.version): rendered(each.document) for each in contracts}
    for name, state in changed.items():
        path = folder / name
        if state == "stale":
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wanted[name])
    return changed


def in_folder(folder: Path) -> Released:
    """The schemas below a folder.

    Raises:
        ConfigurationError: There are none, or a file is no JSON Schema.
    """
    found = {name: (folder / name).read_bytes() for name in _names(folder)}
    if not found:
        raise ConfigurationError(
            f"{folder} holds no schemas (TYPE/VERSION.json); write them with `choreo schemas export --out {folder}`"
        )
    return _parsed(found, str(folder))


def in_commit(ref: str, folder: str) -> Released:
    """The schemas of a commit of the repository about the current folder.

    Args:
        ref: Whatever git takes for a commit.
        folder: Where they are, from the current folder.

    Raises:
        ConfigurationError: No git, no repository, no such commit, no schemas in it, or a file is no JSON Schema.
    """
    commit = _commit(ref)
    blobs = _blobs(commit, folder)
    if not blobs:
        raise ConfigurationError(
            f"{ref} holds no schemas in {folder}/; commit there what `choreo schemas export` writes, or name another "
            "folder with --folder"
        )
    return _parsed({name: _blob(blob) for name, blob in blobs.items()}, f"{ref}:{folder}")


def in_history(ref: str, folder: str) -> list[Released]:
    """Every state the schemas had in the history of a commit, newest first, the commit's own being the first.

    Raises:
        ConfigurationError: As `in_commit`.
    """
    states = [in_commit(ref, folder)]
    seen = {(version, orjson.dumps(document)) for version, document in states[0].items()}
    for commit in _git("rev-list", _commit(ref), "--", folder).decode().split():
        state = _parsed({name: _blob(blob) for name, blob in _blobs(commit, folder).items()}, f"{commit}:{folder}")
        new = {
            version: document for version, document in state.items() if (version, orjson.dumps(document)) not in seen
        }
        seen |= {(version, orjson.dumps(document)) for version, document in new.items()}
        if new:
            states.append(new)
    return states


def _names(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.glob("*/*.json") if path.is_file())
    return sorted(name for name in files if version_of(name) is not None)


def _parsed(files: Mapping[str, bytes], where: str) -> Released:
    found = {}
    for name, content in files.items():
        version = version_of(name)
        try:
            document = orjson.loads(content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise ConfigurationError(f"{where}/{name} is no JSON Schema: it cannot be read as a JSON object")
        if version is not None:
            found[version] = document
    return found


def _commit(ref: str) -> str:
    if not ref or ref.startswith("-"):
        raise ConfigurationError(f"{ref!r} is no folder and no commit")
    try:
        _git("rev-parse", "--is-inside-work-tree")
    except _GitFailed as error:
        raise ConfigurationError(
            f"{ref} is no folder, and {os.getcwd()} is in no git repository; run it inside of one, or name a folder "
            f"({error})"
        ) from None
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").decode().strip()
    except _GitFailed:
        raise ConfigurationError(
            f"{ref} is no folder and no commit that this repository has; fetch it first (a shallow clone has few), "
            "or mend the name"
        ) from None


def _blobs(commit: str, folder: str) -> dict[str, str]:
    """File name below the folder -> id of its content."""
    listed = _git("ls-tree", "-r", "-z", commit, "--", f"{folder.rstrip('/')}/").decode()
    found = {}
    for line in filter(None, listed.split("\0")):
        about, _, path = line.partition("\t")
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        if version_of(name) is not None:
            found[name] = about.split()[2]
    return found


def _blob(blob: str) -> bytes:
    return _git("cat-file", "blob", blob)


class _GitFailed(ConfigurationError):
    """It ended with another code than 0."""


def _git(*arguments: str) -> bytes:
    """Standard output."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=_GIT_S, check=False)
    except FileNotFoundError:
        raise ConfigurationError("git is not there: install it, or compare with a folder") from None
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"git {arguments[0]} did not end within {_GIT_S:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _GitFailed(f"git {arguments[0]} failed: {said[0] if said else f'exit code {done.returncode}'}")
    return done.stdout
