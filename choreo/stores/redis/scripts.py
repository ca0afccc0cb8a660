"""The store's Lua, each of its scripts one atomic step; they lie beside this module as `<name>.lua`.

Every key a script touches is named in its KEYS and carries the group's hash tag, so that it runs on a cluster too.
"""

import hashlib
from importlib.resources import files
from typing import NamedTuple


class Script(NamedTuple):
    """A script and the digest the server caches it by. `repeatable`: running it twice does what once would."""

    name: str
    text: str
    sha: str
    repeatable: bool = True


def _read(name: str) -> str:
    return files("choreo.stores.redis").joinpath(f"{name}.lua").read_text("utf-8")


def _script(name: str) -> Script:
    text = _read("lease") + _read(name)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ACQUIRE = _script("acquire")
RENEW = _script("renew")
CLAIM = _script("claim")
CLAIM_SOLO = CLAIM._replace(repeatable=False)
"""The same text, but each run counts a delivery."""
COMMIT = _script("commit")
RELEASE = _script("release")
PURGE = _script("purge")
STATS = _script("stats")
