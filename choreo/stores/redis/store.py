"""Idempotency keys and leases in Redis or Valkey: one atomic script a batch, leases on the server's clock.

Neither emits nor offsets are part of a commit here. The worker sends the emits of a flush and awaits their acks, then
commits the keys, then the offsets.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from choreo.errors import ConfigurationError
from choreo.ports import Carries, Claimed, ClaimRequest, CommitRequest, CommitResult, Lease, StoreStats
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.redis import scripts
from choreo.stores.redis.claim import claim
from choreo.stores.redis.client import RedisClient
from choreo.stores.redis.keys import Bucket, GroupKeys, encoded, field, lowest_progress_ms, token
from choreo.stores.redis.scripts import UNITS_MAX, filled, slices

SCHEMA_VERSION = 1
PURGE_KEYS_MAX = 10_000
"""Of one call of `purge`, in scripts of UNITS_MAX each."""


class RedisStore:
    """`IdempotencyStore` on Redis 6.2 or newer, or Valkey.

    Args:
        url: `redis://[[USER]:PASSWORD@]HOST:PORT[/DB]`, or `rediss://` for TLS.
        prefix: Of the names of all keys; applications that share a Redis each have their own.
        lease_s: How long a lease lives without being renewed, in seconds.
        timeout_s: How long one call to Redis may take, in seconds.
        cluster: The server is a node of a Redis Cluster. All keys of one group live in one slot.
        bucket_ms: Keys are forgotten in spans of log time of so many milliseconds, so that late at most.
    """

    dedupe_scope: Literal["anywhere", "partition"] = "anywhere"
    transaction_types: frozenset[str] = frozenset()
    transactions_max = 0

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "choreo",
        lease_s: float = 30.0,
        timeout_s: float = 10.0,
        cluster: bool = False,
        bucket_ms: int = 3_600_000,
    ) -> None:
        self.name = "redis"
        self.carries: frozenset[Carries] = frozenset()
        self._redis = RedisClient(url, timeout_s=timeout_s, cluster=cluster)
        self._prefix = prefix
        self._lease_s = lease_s
        self._bucket_ms = bucket_ms

    def __repr__(self) -> str:
        return f"RedisStore({self._redis.address}, prefix={self._prefix!r})"

    async def open(self) -> None:
        """Connect, and refuse a server that evicts keys."""
        await self._redis.open()

    async def plan(self) -> Sequence[str]:
        """Nothing: keys need no schema. A newer choreo's are refused."""
        found = await self._redis.command("GET", self._version_key)
        if found is None:
            return []
        if not found.isdigit():
            raise ConfigurationError(
                f"{self._version_key} in Redis at {self._redis.address} is not choreo's: choose another prefix"
            )
        if int(found) > SCHEMA_VERSION:
            raise ConfigurationError(
                f"the keys under the prefix {self._prefix!r} in Redis at {self._redis.address} have schema version "
                f"{int(found)}, and this choreo knows {SCHEMA_VERSION}: run the newer choreo that made them, or "
                "choose another prefix"
            )
        return []

    async def apply(self) -> None:
        """Write down the version of the keys."""
        await self.plan()
        await self._redis.command("SET", self._version_key, SCHEMA_VERSION, "NX")

    async def acquire(self, group: str, partitions: Sequence[TopicPartition], owner: str) -> Sequence[Lease]:
        """Take the partitions, each with a newer epoch."""
        await self._redis.command("SADD", self._groups_key, _text(group))
        leases = []
        for part in slices(partitions):
            arguments: list[str | bytes | int] = [_ms(self._lease_s), _text(owner), *map(field, part)]
            epochs = await self._redis.run(scripts.ACQUIRE, [self._keys(group).leases], arguments)
            leases += [Lease(group, id_, int(epoch), owner) for id_, epoch in zip(part, epochs, strict=True)]
        return leases

    async def renew(
        self, leases: Sequence[Lease], lease_s: float, progress_ms: Mapping[TopicPartition, int] | None = None
    ) -> frozenset[TopicPartition]:
        """Keep the leases; returns those that are lost."""
        progress_ms = progress_ms or {}
        lost = set()
        for group, held in _by_group(leases):
            for part in slices(held):
                arguments: list[str | bytes | int] = [_ms(lease_s)]
                for lease in part:
                    arguments += (field(lease.partition), lease.epoch, progress_ms.get(lease.partition, "-"))
                numbers = await self._redis.run(scripts.RENEW, [self._keys(group).leases], arguments)
                lost |= {part[number - 1].partition for number in numbers}
        return frozenset(lost)

    async def claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """Claim, one script a thousand units."""
        answers: list[Claimed] = []
        for part in slices(requests):
            answers += await claim(self._redis, self._prefix, self._bucket_ms, leases, part)
        return answers

    async def commit(self, request: CommitRequest) -> CommitResult:
        """Mark keys as done, of each partition all or none. A partition is never divided between two scripts."""
        if request.transacted:
            raise ConfigurationError(_NO_TRANSACTION)
        digests: dict[TopicPartition, list[bytes]] = {id_: [] for id_ in request.leases}
        for unit in request.finished:
            digests[unit.partition].append(unit.digest)
        refused = set()
        for group, held in _by_group(list(request.leases.values())):
            for part in filled(held, digests):
                arguments: list[str | bytes | int] = []
                for lease in part:
                    packed = b"".join(digests[lease.partition])
                    arguments += (field(lease.partition), lease.epoch, token(lease), packed)
                numbers = await self._redis.run(scripts.COMMIT, self._keys(group).all[:3], arguments)
                refused |= {part[number - 1].partition for number in numbers}
        return CommitResult(frozenset(refused))

    async def pending(self, lease: Lease) -> Sequence[tuple[int, ProducerRecord]]:
        """Nothing: there is no outbox."""
        return []

    async def sent(self, rows: Sequence[int]) -> None:
        """Nothing to confirm: there is no outbox."""

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give up leases, and claims that were not finished."""
        for group, held in _by_group(leases):
            while held:
                part = held[:UNITS_MAX]
                arguments: list[str | bytes | int] = [UNITS_MAX]
                for lease in part:
                    arguments += (field(lease.partition), lease.epoch)
                held = held[await self._redis.run(scripts.RELEASE, self._keys(group).all[:3], arguments) :]

    async def purge(self, group: str, topics: Sequence[str], ttl_ms: int) -> int:
        """Forget the buckets that lie wholly before the progress less `ttl_ms`."""
        keys = self._keys(group)
        *_, records = await self._stats(keys)
        progress_ms = lowest_progress_ms(records, topics)
        if progress_ms is None:
            return 0
        names = await self._redis.command("ZRANGEBYSCORE", keys.buckets, "-inf", progress_ms - ttl_ms)
        forgotten, left = 0, PURGE_KEYS_MAX
        for name in names:
            while left > 0:
                gone, taken, kept = await self._redis.run(
                    scripts.PURGE, [*keys.all, keys.bucket(name.decode())], [name, min(left, UNITS_MAX)]
                )
                forgotten += gone
                left -= taken
                if kept or not taken:
                    break
        return forgotten

    async def stats(self) -> Mapping[str, StoreStats]:
        """What it holds, by group."""
        found = {}
        for name in sorted(await self._redis.command("SMEMBERS", self._groups_key)):
            group = name.decode(errors="surrogatepass")
            held, claims, oldest, records = await self._stats(self._keys(group))
            oldest_ms = Bucket.parsed(oldest[0]).start_ms if oldest else None
            found[group] = StoreStats(held - claims, claims, 0, oldest_ms, lowest_progress_ms(records, None))
        return found

    async def _stats(self, keys: GroupKeys) -> Any:
        return await self._redis.run(scripts.STATS, keys.all, [])

    async def keys(self, group: str, digests: Sequence[bytes]) -> Mapping[bytes, bool]:
        """Of these keys of a group those it has: True is done, False is claimed."""
        found: dict[bytes, bool] = {}
        for part in slices(digests):
            values = await self._redis.command("HMGET", self._keys(group).keys, *part)
            found |= {digest: value[:1] == b"D" for digest, value in zip(part, values, strict=True) if value}
        return found

    async def run(self, function: Callable[[Any], object]) -> None:
        """Refused: there is no transaction to run it in."""
        raise ConfigurationError(_NO_TRANSACTION)

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.close()

    def _keys(self, group: str) -> GroupKeys:
        return GroupKeys(self._prefix, group)

    @property
    def _version_key(self) -> str:
        return f"{encoded(self._prefix)}:version"

    @property
    def _groups_key(self) -> str:
        return f"{encoded(self._prefix)}:groups"


_NO_TRANSACTION = (
    "Redis carries no rows of a handler: take no connection in handlers or on_start, or use a store in a database"
)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _text(name: str) -> bytes:
    return name.encode(errors="surrogatepass")


def _by_group(leases: Sequence[Lease]) -> list[tuple[str, list[Lease]]]:
    groups: dict[str, list[Lease]] = {}
    for lease in leases:
        groups.setdefault(lease.group, []).append(lease)
    return list(groups.items())
