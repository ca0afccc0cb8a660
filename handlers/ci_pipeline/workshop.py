"""Where commands are run: a port, and the real one, which checks commits out and runs Python on them."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Protocol

from .events import StepName

STEP_S_MAX = 600.0
OUTPUT_CHARS_MAX = 2_000
COMMANDS: dict[StepName, tuple[str, ...]] = {
    "lint": (sys.executable, "-m", "compileall", "-q", "."),
    "tests": (sys.executable, "-m", "unittest", "-q"),
    "build": (sys.executable, "-m", "zipapp", "shop", "-o", "built.pyz"),
}


class Workshop(Protocol):
    """Runs a step of a commit, as often as it is asked to; deploys what was built."""

    async def run(self, repository: str, sha: str, step: StepName) -> tuple[bool, str]:
        """Whether it passed, and the end of what it said."""

    async def deploy(self, repository: str, sha: str) -> None:
        """From now on this commit runs."""


class LocalWorkshop:
    """A `Workshop` in a folder: `built/SHA.pyz`, and `deployed.pyz`, the one that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def run(self, repository: str, sha: str, step: StepName) -> tuple[bool, str]:
        """See `Workshop.run`."""
        return await asyncio.to_thread(self._run, repository, sha, step)

    async def deploy(self, repository: str, sha: str) -> None:
        """See `Workshop.deploy`."""
        await asyncio.to_thread(self._put, self._folder / "built" / f"{sha}.pyz", self._folder / "deployed.pyz")

    def _run(self, repository: str, sha: str, step: StepName) -> tuple[bool, str]:
        with tempfile.TemporaryDirectory() as place:
            packed = subprocess.run(["git", "-C", repository, "archive", sha], capture_output=True, check=True)
            subprocess.run(["tar", "-x", "-C", place], input=packed.stdout, check=True)
            try:
                done = subprocess.run(
                    COMMANDS[step], cwd=place, capture_output=True, text=True, timeout=STEP_S_MAX, check=False
                )
            except subprocess.TimeoutExpired:
                return False, f"still running after {STEP_S_MAX:g} s"
            if step == "build" and done.returncode == 0:
                self._put(Path(place) / "built.pyz", self._folder / "built" / f"{sha}.pyz")
        return done.returncode == 0, (done.stdout + done.stderr)[-OUTPUT_CHARS_MAX:]

    @staticmethod
    def _put(source: Path, target: Path) -> None:
        """All of it or nothing, however often and by how many at once."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as place:
            shutil.copyfile(source, Path(place) / target.name).replace(target)
