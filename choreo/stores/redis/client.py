"""One Redis, or one Redis Cluster: calls bounded in time, errors that say what to check, scripts by their digest."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff

from choreo.errors import ChoreoError, ConfigurationError, StoreError
from choreo.stores.redis.scripts import Script

CALLS_MAX = 16
"""Calls at once, and so connections, of one store; more than that wait for their turn."""
CLUSTER_RETRIES = 3
"""A cluster's client needs some to learn of a slot that has moved."""
_SCHEMES = ("redis", "rediss")


class RedisClient:
    """Commands and scripts on the server at `url`.

    Args:
        url: `redis://[[USER]:PASSWORD@]HOST:PORT[/DB]`, or `rediss://` for TLS.
        timeout_s: How long one call may take, with connecting and repeating.
        cluster: The server is a node of a cluster.
    """

    def __init__(self, url: str, *, timeout_s: float, cluster: bool) -> None:
        self.address = _address(url)
        self._timeout_s = timeout_s
        self._cluster = cluster
        self._turns = asyncio.Semaphore(CALLS_MAX)
        self._redis = _connect(url, self.address, timeout_s, cluster)

    async def open(self) -> None:
        """Connect, and refuse a server that would lose keys in its normal operation.

        Raises:
            StoreError: It does not answer, or refuses us.
            ConfigurationError: It evicts keys when it is full, or is a cluster when none was expected.
        """
        try:
            await self.command("PING")
        except TypeError:  # redis-py meets it as late as this
            raise ConfigurationError(
                f"the Redis URL of {self.address} has an option after ? that is unknown"
            ) from None
        if not self._cluster and (await self._asked("INFO", "cluster")).get("cluster_enabled"):
            raise ConfigurationError(f"{self.address} is a node of a Redis Cluster: open the store with cluster=True")
        for node in self._redis.get_primaries() if isinstance(self._redis, RedisCluster) else [None]:
            await self._check_eviction(node)

    async def command(self, *words: str | bytes | int, node: Any = None) -> Any:
        """One command that does the same when it is repeated."""
        options = {} if node is None else {"target_nodes": node}
        return await self._call(words[0], True, lambda: self._redis.execute_command(*words, **options))

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        """Run a script; all of its keys carry one hash tag."""

        async def evaluate() -> Any:
            try:
                return await self._redis.evalsha(script.sha, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:  # restarted, failed over or flushed
                return await self._redis.eval(script.text, len(keys), *keys, *arguments)

        return await self._call(script.name, script.repeatable, evaluate)

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.aclose()

    async def _call(self, name: Any, repeatable: bool, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s), self._turns:
                try:
                    return await call()
                except exceptions.ConnectionError as error:
                    if not repeatable or isinstance(error, exceptions.AuthenticationError):
                        raise
                    return await call()  # on a new connection: the old one may just have been idle for too long
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
            # OSError: the time-out too, and a name that cannot be resolved.
            raise self._explained(name, error) from error

    def _explained(self, name: Any, error: Exception) -> ChoreoError:
        where = f"Redis at {self.address}"
        if "Cluster mode is not enabled" in str(error):
            return ConfigurationError(f"{where} is no Redis Cluster: open the store with cluster=False")
        for kind, text, meaning in _MEANINGS:
            if isinstance(error, kind) and text in str(error):
                return StoreError(f"{where} {meaning} ({name}: {error})")
        if isinstance(error, TimeoutError | exceptions.TimeoutError):
            return StoreError(
                f"{where} did not answer {name} within {self._timeout_s:g} s: check its load (SLOWLOG GET), "
                "its disk and the network"
            )
        if isinstance(error, exceptions.ConnectionError | exceptions.RedisClusterException | OSError):
            return StoreError(f"{where} cannot be reached: check that it runs and the address ({name}: {error})")
        return StoreError(f"{where} refused {name}: {error}")

    async def _asked(self, *words: str, node: Any = None) -> dict[str, Any]:
        """Settings by name; none when the user may not ask, as on many managed servers."""
        options = {} if node is None else {"target_nodes": node}

        async def ask() -> Any:
            try:
                return await self._redis.execute_command(*words, **options)
            except exceptions.ResponseError as error:
                if isinstance(error, exceptions.MovedError):
                    raise
                return {}

        answer = await self._call(words[0], True, ask)
        return answer if isinstance(answer, dict) else {}

    async def _check_eviction(self, node: Any) -> None:
        settings = await self._asked("CONFIG GET", "maxmemory*", node=node)
        limit, policy = (str(settings.get(name, "")) for name in ("maxmemory", "maxmemory-policy"))
        if limit not in ("", "0") and policy not in ("", "noeviction"):
            raise ConfigurationError(
                f"Redis at {self.address} has maxmemory {limit} and maxmemory-policy {policy}, so it would drop "
                "keys and their events be handled again: set maxmemory-policy noeviction, or give choreo a Redis of "
                "its own"
            )


# By redis-py's class, or by the server's own word where that stands within a script's error, as before Redis 7.
_MEANINGS: tuple[tuple[type[Exception], str, str], ...] = (
    (exceptions.OutOfMemoryError, "", "is full: raise maxmemory, or purge the store"),
    (exceptions.ResponseError, "OOM command", "is full: raise maxmemory, or purge the store"),
    (exceptions.ResponseError, "MISCONF", "cannot write to its disk, and takes no writes: look into its log"),
    (exceptions.ReadOnlyError, "", "is a replica: give the address of the primary"),
    (exceptions.ResponseError, "READONLY", "is a replica: give the address of the primary"),
    (exceptions.MovedError, "", "is a node of a cluster: open the store with cluster=True"),
    (exceptions.BusyLoadingError, "", "is still loading its data: wait"),
    (exceptions.AuthenticationError, "required", "wants a password: put it into the URL"),
    (exceptions.AuthenticationError, "", "does not take the user or password of the URL: check both"),
    (exceptions.NoPermissionError, "", "does not let this user do it: check its ACL"),
    (exceptions.ResponseError, "WRONGTYPE", "has keys of another program under this prefix: choose another"),
)


def _address(url: str) -> str:
    """Host, port and database of a URL, without user and password."""
    try:
        parts = urlsplit(url)
        if parts.scheme in _SCHEMES and parts.hostname:
            return f"{parts.hostname}:{parts.port or 6379}{parts.path.rstrip('/')}"
    except ValueError:
        pass  # it would quote what it took for a port, which may be half of a password
    raise ConfigurationError(
        "the Redis URL must be redis://[:PASSWORD@]HOST:PORT[/DB], or rediss://; in a password write / # ? @ : and % "
        "percent-encoded"
    )


def _connect(url: str, address: str, timeout_s: float, cluster: bool) -> "Redis | RedisCluster":
    options: dict[str, Any] = {
        "protocol": 2,  # one shape of answers, whatever the library's default becomes
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    try:
        if cluster:
            retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), CLUSTER_RETRIES)
            return RedisCluster.from_url(url, retry=retry, **options)
        redis: Redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        return redis
    except (ValueError, TypeError, exceptions.RedisClusterException):
        raise ConfigurationError(
            f"the Redis URL of {address} has a database or a value after ? that cannot be (a cluster has database 0)"
        ) from None
