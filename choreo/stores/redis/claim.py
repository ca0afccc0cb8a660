"""Claims of `RedisStore`: what one script is told of a batch, and what its answer means."""

from collections.abc import Sequence
from typing import Final

from choreo.errors import LeaseLost
from choreo.ports import Claimed, ClaimRequest, Lease
from choreo.stores.redis import scripts
from choreo.stores.redis.client import RedisClient
from choreo.stores.redis.keys import Bucket, GroupKeys, field, packed_units

_VERDICTS: Final = {0: Claimed("done"), -1: Claimed("busy"), -2: Claimed("conflict")}


async def claim(
    redis: RedisClient, prefix: str, bucket_ms: int, leases: Sequence[Lease], requests: Sequence[ClaimRequest]
) -> list[Claimed]:
    """As the port says, of at most UNITS_MAX requests, in one script.

    Raises:
        LeaseLost: Somebody has taken one of the partitions over.
    """
    numbers = {lease.partition: number for number, lease in enumerate(leases)}
    (group,) = {lease.group for lease in leases}
    keys = GroupKeys(prefix, group)
    buckets: dict[Bucket, int] = {}
    units = [
        (
            each,
            numbers[each.partition],
            buckets.setdefault(Bucket.of(each.timestamp_ms, bucket_ms), len(buckets)),
        )
        for each in requests
    ]
    arguments: list[str | bytes | int] = [len(leases)]
    for lease in leases:
        arguments += (field(lease.partition), lease.epoch)
    arguments.append(packed_units(units))
    for bucket in buckets:
        arguments += (bucket.name, bucket.end_ms)
    lists = [keys.bucket(bucket.name) for bucket in buckets]
    script = scripts.CLAIM_SOLO if any(each.solo for each in requests) else scripts.CLAIM
    answer = await redis.run(script, [*keys.all, *lists], arguments)
    if isinstance(answer, int):
        raise LeaseLost(f"a newer owner has {leases[answer - 1].partition} of the group {group}")
    codes = map(int, answer.split())
    return [Claimed("fresh", code) if code > 0 else _VERDICTS[code] for code in codes]
