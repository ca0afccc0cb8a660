"""Where a local Kafka's java and jars come from; knows nothing of brokers. Maven reads pom.xml beside this file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree

POM = Path(__file__).resolve().parent / "pom.xml"
FETCH_S = 600.0


class KafkaError(Exception):
    """What failed, why, and what to do next."""


class Missing(KafkaError):
    """Java, Maven or the jars are not there; tests skip on this and on nothing else."""


def say(text: str) -> None:
    """Progress, kept off stdout: that holds only the bootstrap servers."""
    print(f"kafka: {text}", file=sys.stderr, flush=True)


def tail(text: str, lines: int = 15) -> str:
    """The last lines of a log, indented to stand inside an error."""
    return "\n".join("    " + line for line in text.strip().splitlines()[-lines:])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system drops it if this process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def java() -> str:
    """The java to run: JAVA_HOME's, else the one on PATH."""
    home = os.environ.get("JAVA_HOME")
    found = (home and shutil.which(str(Path(home, "bin", "java")))) or shutil.which("java")
    if not found:
        raise Missing(
            "java: not in JAVA_HOME and not on PATH; install Java 17 or newer "
            "(Debian, Ubuntu: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk)"
        )
    return found


def jars() -> Path:
    """The folder of Kafka's jars, fetched by Maven the first time and whenever pom.xml changes.

    They are of pom.xml's version, or of KAFKA_VERSION's.
    """
    version = version_wanted()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "choreo", f"kafka-{version}")
    libs, part = cache / "libs", cache / "libs.part"
    if complete(libs):
        return libs
    with locked(cache / "lock"):
        if not complete(libs):  # another process may have fetched them while this one waited for the lock
            shutil.rmtree(part, ignore_errors=True)
            fetch(part, version)
            (part / "inventory").write_text(inventory(part))
            shutil.rmtree(libs, ignore_errors=True)
            part.rename(libs)
    return libs


def version_wanted() -> str:
    """KAFKA_VERSION, such as 3.7.2, or what pom.xml says."""
    given = os.environ.get("KAFKA_VERSION", "")
    if given and not re.fullmatch(r"\d+(\.\d+){1,3}", given):
        raise KafkaError(f"KAFKA_VERSION={given}: write a version such as 3.7.2, or leave it out")
    found = given or ElementTree.parse(POM).findtext(".//{*}kafka.version")  # nosec B314  # noqa: S314 (our own file)
    assert found is not None, f"{POM} names no version"
    return found


def inventory(libs: Path) -> str:
    """What a complete folder holds: which pom.xml it was fetched for, then each jar and its size."""
    files = sorted(f"{jar.name} {jar.stat().st_size}" for jar in libs.glob("*.jar"))
    return "\n".join([hashlib.sha256(POM.read_bytes()).hexdigest(), *files])


def complete(libs: Path) -> bool:
    """Whether `libs` holds just what was fetched for this pom.xml."""
    with suppress(FileNotFoundError):
        return (libs / "inventory").read_text() == inventory(libs)
    return False


def fetch(target: Path, version: str) -> None:
    """Copy the jars that pom.xml names, of this version of Kafka, into `target`."""
    java()  # first: mvn without a java fails too, but names no package
    mvn = shutil.which("mvn")
    if not mvn:
        raise Missing(
            "mvn: not on PATH, and Kafka's jars are not in the cache yet; install Maven "
            "(Debian, Ubuntu: apt-get install maven; macOS: brew install maven)"
        )
    say(f"fetching Kafka's jars with Maven into {target.parent} (once)")
    command = [mvn, "-q", "-B", "-Dstyle.color=never", f"-Dkafka.version={version}", "-f", str(POM)]
    command.append("dependency:copy-dependencies")
    reason = ""
    try:
        done = subprocess.run(
            [*command, f"-DoutputDirectory={target}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_S,
        )
        if done.returncode != 0:
            reason = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        reason = f"no end after {FETCH_S:.0f} s"
    if reason:
        raise Missing(
            f"Kafka's jars: Maven could not resolve them:\n{tail(reason)}\n"
            f"check the network and Maven's settings.xml, then try: {' '.join(command)} -X"
        )
