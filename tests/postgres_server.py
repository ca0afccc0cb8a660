"""Where tests find a PostgreSQL: a given one, else local binaries, else Docker; else a skip that says why.

Knows nothing of the tests. Durability is as it comes: nothing is turned off to be quicker.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
import psycopg.conninfo
import pytest

from deploy.kafka.node import free_ports
from tests.kafka_server import Unavailable, docker_silence, unavailable

IMAGE = "postgres:17-alpine"
READY_S = 60.0
_USERS = ("postgres", "nobody")  # the server refuses to run as root


def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a running server and stop it afterwards, unless it was given."""
    given = os.environ.get("POSTGRES_URL")
    if given:
        yield given
        return
    reasons = []
    for way in (local_postgres, docker_postgres):
        with ExitStack() as stack:
            try:
                url = stack.enter_context(way(tmp_path_factory))
            except Unavailable as error:
                reasons.append(str(error))
                continue
            yield url
            return
    unavailable(
        "no PostgreSQL to test with: set POSTGRES_URL, or install PostgreSQL 13 or newer, or start Docker; "
        + "; ".join(reasons)
    )


def binary(name: str) -> str:
    """The path of one of PostgreSQL's programs, the newest version's.

    Raises:
        Unavailable: There is none.
    """
    found = [str(path) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")]
    path = shutil.which(name) or max(found, key=lambda path: int(Path(path).parts[4]), default=None)
    if path is None:
        raise Unavailable(f"{name} is not on PATH and not below /usr/lib/postgresql; install the package postgresql")
    return path


def unprivileged() -> str | None:
    """The user that servers run as; None: our own."""
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise Unavailable(f"we are root, and there is no user {' or '.join(_USERS)} for the server to run as")


class LocalPostgres:
    """A server of this machine's own binaries, on 127.0.0.1, that a test may kill and start again.

    Args:
        folder: For its data, where the server's user can reach it.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.user = unprivileged()
        (self.port,) = free_ports(1)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"postgresql://choreo:secret@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Make the data folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "password").write_text("secret\n")
        if self.user is not None:
            shutil.chown(self.folder, self.user)
            shutil.chown(self.folder / "password", self.user)
        command = [binary("initdb"), "-D", str(self.folder / "data"), "-U", "choreo", "-E", "UTF8", "--locale=C"]
        command += ["-A", "scram-sha-256", f"--pwfile={self.folder / 'password'}"]
        subprocess.run(command, user=self.user, check=True, capture_output=True, cwd=self.folder)

    def start(self) -> None:
        """Start it, and return when it answers."""
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", *self._settings)
        command = [binary("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        command += [part for setting in settings for part in ("-c", setting)]
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(command, user=self.user, stdout=output, stderr=output, cwd=self.folder)
        wait_until_ready(self.url)

    def pids(self) -> list[int]:
        """The server's own process first, then those it has started for sessions and chores."""
        assert self._process is not None
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True
        )
        return [self._process.pid, *map(int, listed.stdout.split())]

    def kill(self) -> None:
        """As a power cut: no process of it ends in an orderly way."""
        assert self._process is not None
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown: sessions are ended
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def wait_until_ready(url: str) -> None:
    """Return when a connection can be made."""
    until_s = time.monotonic() + READY_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.1)


@contextmanager
def server_folder() -> Iterator[Path]:
    """A new folder that belongs to the servers' user; pytest's own are closed to it."""
    with tempfile.TemporaryDirectory(prefix="choreo-postgres-", ignore_cleanup_errors=True) as name:
        user = unprivileged()
        if user is not None:
            shutil.chown(name, user)
        yield Path(name)


@contextmanager
def fresh_postgres(*settings: str) -> Iterator[LocalPostgres]:
    """A server of this machine's binaries that the test may kill.

    Raises:
        Unavailable: There are none.
    """
    binary("initdb")
    with server_folder() as folder:
        server = LocalPostgres(folder / "server", *settings)
        server.create()
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def local_postgres(_: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this machine's binaries, if it has some."""
    with fresh_postgres() as server:
        yield server.url


@contextmanager
def docker_postgres(_: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a container, if a Docker daemon answers and has or gets the image."""
    try:
        from docker.errors import APIError  # type: ignore[import-untyped]
        from testcontainers.core.container import DockerContainer
    except ImportError as error:
        raise Unavailable(f"Docker: {error}; pip install testcontainers") from error
    reason = docker_silence()
    if reason:
        raise Unavailable(f"Docker: no daemon answers ({reason})")
    (port,) = free_ports(1)
    container = DockerContainer(IMAGE).with_envs(POSTGRES_USER="choreo", POSTGRES_PASSWORD="secret")
    # with_bind_ports would listen on every interface; docker-py takes an address too
    container.ports["5432"] = ("127.0.0.1", port)  # type: ignore[assignment]
    url = f"postgresql://choreo:secret@127.0.0.1:{port}/choreo"
    try:
        try:
            container.start()
        except APIError as error:  # no registry in reach, for one
            raise Unavailable(f"Docker: {IMAGE}: {error.explanation}") from error
        wait_until_ready(url)
        yield url
    finally:
        container.stop()


@contextmanager
def pgbouncer(url: str) -> Iterator[str]:
    """A PgBouncer in transaction mode before the server at `url`, with four connections to it.

    Raises:
        Unavailable: The program is missing.
    """
    path = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/sbin")
    if path is None:
        raise Unavailable("pgbouncer is not on PATH; install the package pgbouncer")
    target = psycopg.conninfo.conninfo_to_dict(url)
    (port,) = free_ports(1)
    password = target.get("password") or "none"
    with server_folder() as folder:
        settings, users = folder / "pgbouncer.ini", folder / "users"
        settings.write_text(
            f"[databases]\n{target['dbname']} = host={target['host']} port={target['port']}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = plain\n"
            f"auth_file = {users}\npool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 200\n"
        )
        users.write_text(f'"{target["user"]}" "{password}"\n')
        settings.chmod(0o644)
        users.chmod(0o644)
        with (folder / "log").open("ab") as output:
            process = subprocess.Popen(
                [path, str(settings)], user=unprivileged(), stdout=output, stderr=output, cwd=folder
            )
        bounced = f"postgresql://{target['user']}:{password}@127.0.0.1:{port}/{target['dbname']}"
        try:
            wait_until_ready(bounced)
            yield bounced
        finally:
            process.kill()
            process.wait()
