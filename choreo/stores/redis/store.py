"""Idempotency keys and leases in Redis or Valkey: one atomic script a batch, leases on the server's clock.

Neither emits nor offsets are part of a commit here. The worker sends the emits of a flush and awaits their acks, then
commits the keys, then the offsets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

from choreo.errors import ConfigurationError, LeaseLost
from choreo.ports import Carries, Claimed, ClaimRequest, CommitRequest, CommitResult, Lease, StoreStats
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.redis import scripts
from choreo.stores.redis.client import RedisClient
from choreo.stores.redis.keys import Bucket, GroupKeys, encoded, field, lease_records, packed_units, token

SCHEMA_VERSION = 1
UNITS_MAX = 1_000
"""Units, leases or digests of one script: the server does nothing else while one runs."""
PURGE_KEYS_MAX = 10_000
"""Of one call of `purge`, in scripts of UNITS_MAX each."""
_Item = TypeVar("_Item")
_VERDICTS: Final = {0: Claimed("done"), -1: Claimed("busy"), -2: Claimed("conflict")}


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
        for part in _slices(partitions, UNITS_MAX):
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
            for part in _slices(held, UNITS_MAX):
                arguments: list[str | bytes | int] = [_ms(lease_s)]
                for lease in part:
                    arguments += (field(lease.partition), lease.epoch, progress_ms.get(lease.partition, "-"))
                numbers = await self._redis.run(scripts.RENEW, [self._keys(group).leases], arguments)
                lost |= {part[number - 1].partition for number in numbers}
        return frozenset(lost)

    async def claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """Claim, one script a thousand units."""
        answers: list[Claimed] = []
        for part in _slices(requests, UNITS_MAX):
            answers += await self._claim(leases, part)
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
            for part in _filled(held, digests):
                arguments: list[str | bytes | int] = []
                for lease in part:
                    packed = b"".join(digests[lease.partition])
                    arguments += (field(lease.partition), lease.epoch, token(lease), packed)
                numbers = await self._redis.run(scripts.COMMIT, self._key_names(group)[:3], arguments)
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
                held = held[await self._redis.run(scripts.RELEASE, self._key_names(group)[:3], arguments) :]

    async def purge(self, group: str, topics: Sequence[str], ttl_ms: int) -> int:
        """Forget the buckets that lie wholly before the progress less `ttl_ms`."""
        keys = self._keys(group)
        progress_ms = _progress_ms((await self._stats(group))[3], topics)
        if progress_ms is None:
            return 0
        names = await self._redis.command("ZRANGEBYSCORE", keys.buckets, "-inf", progress_ms - ttl_ms)
        forgotten, left = 0, PURGE_KEYS_MAX
        for name in names:
            while left > 0:
                gone, taken, kept = await self._redis.run(
                    scripts.PURGE, [*self._key_names(group), keys.bucket(name.decode())], [name, min(left, UNITS_MAX)]
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
            held, claims, oldest, records = await self._stats(group)
            oldest_ms = Bucket.parsed(oldest[0]).start_ms if oldest else None
            found[group] = StoreStats(held - claims, claims, 0, oldest_ms, _progress_ms(records, None))
        return found

    async def run(self, function: Callable[[Any], object]) -> None:
        """Refused: there is no transaction to run it in."""
        raise ConfigurationError(_NO_TRANSACTION)

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.close()

    # ---- one script each

    async def _claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> list[Claimed]:
        numbers = {lease.partition: number for number, lease in enumerate(leases)}
        (group,) = {lease.group for lease in leases}
        buckets: dict[Bucket, int] = {}
        units = [
            (
                each,
                numbers[each.partition],
                buckets.setdefault(Bucket.of(each.timestamp_ms, self._bucket_ms), len(buckets)),
            )
            for each in requests
        ]
        arguments: list[str | bytes | int] = [len(leases)]
        for lease in leases:
            arguments += (field(lease.partition), lease.epoch)
        arguments.append(packed_units(units))
        for bucket in buckets:
            arguments += (bucket.name, bucket.end_ms)
        lists = [self._keys(group).bucket(bucket.name) for bucket in buckets]
        script = scripts.CLAIM_SOLO if any(each.solo for each in requests) else scripts.CLAIM
        answer = await self._redis.run(script, [*self._key_names(group), *lists], arguments)
        if isinstance(answer, int):
            raise LeaseLost(f"a newer owner has {leases[answer - 1].partition} of the group {group}")
        codes = map(int, answer.split())
        return [Claimed("fresh", code) if code > 0 else _VERDICTS[code] for code in codes]

    async def keys(self, group: str, digests: Sequence[bytes]) -> Mapping[bytes, bool]:
        """Of these keys of a group those it has: True is done, False is claimed."""
        found: dict[bytes, bool] = {}
        for part in _slices(digests, UNITS_MAX):
            values = await self._redis.command("HMGET", self._keys(group).keys, *part)
            found |= {digest: value[:1] == b"D" for digest, value in zip(part, values, strict=True) if value}
        return found

    async def _stats(self, group: str) -> Any:
        return await self._redis.run(scripts.STATS, self._key_names(group), [])

    # ---- names

    def _keys(self, group: str) -> GroupKeys:
        return GroupKeys(self._prefix, group)

    def _key_names(self, group: str) -> list[str]:
        keys = self._keys(group)
        return [keys.leases, keys.keys, keys.claims, keys.buckets]

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


def _slices(items: Sequence[_Item], count_max: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), count_max):
        yield items[start : start + count_max]


def _by_group(leases: Sequence[Lease]) -> list[tuple[str, list[Lease]]]:
    groups: dict[str, list[Lease]] = {}
    for lease in leases:
        groups.setdefault(lease.group, []).append(lease)
    return list(groups.items())


def _filled(leases: Sequence[Lease], digests: Mapping[TopicPartition, Sequence[bytes]]) -> Iterator[list[Lease]]:
    """Leases in runs of at most UNITS_MAX units together; one that has more is a run of its own."""
    run: list[Lease] = []
    units = 0
    for lease in leases:
        count = len(digests[lease.partition]) + 1
        if run and units + count > UNITS_MAX:
            yield run
            run, units = [], 0
        run.append(lease)
        units += count
    if run:
        yield run


def _progress_ms(flat: Sequence[bytes], topics: Sequence[str] | None) -> int | None:
    """Log time the group has come to in these topics, or all; None while it is not known of one partition."""
    found = [(topic, told) for topic, told in lease_records(flat) if topics is None or topic in topics]
    told_ms = [told for _, told in found if told is not None]
    unknown = len(told_ms) < len(found) or bool(set(topics or ()) - {topic for topic, _ in found})
    return None if unknown or not told_ms else min(told_ms)
