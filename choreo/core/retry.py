"""When a failed unit is tried again, and when no more."""

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """In-place retry: the failed event waits at the head of its lane, other lanes go on.

    Attributes:
        attempts_max: Invocations of one event by one handler before it is dead-lettered; >= 1.
        base_s: Upper bound of the first wait, in seconds; > 0.
        cap_s: Upper bound of every wait, in seconds; >= base_s.
    """

    attempts_max: int = 5
    base_s: float = 0.1
    cap_s: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or not 0 < self.base_s <= self.cap_s:
            raise ValueError(f"{self}: attempts_max must be 1 or more, and 0 < base_s <= cap_s")


def delay_s(policy: RetryPolicy, *, attempt: int, seed: bytes) -> float:
    """Seconds to wait after attempt number `attempt` (from 1) failed.

    Full jitter: uniform on [0, min(cap_s, base_s * 2**(attempt - 1))]. The same seed and attempt give the same
    delay, so that a simulated run can be replayed.

    Source: Brooker, "Exponential Backoff And Jitter", AWS, 2015 (Full Jitter).
    """
    assert attempt >= 1
    ceiling_s = min(policy.cap_s, policy.base_s * 2.0 ** min(attempt - 1, 60))
    digest = blake2b(seed + attempt.to_bytes(4, "big"), digest_size=8).digest()
    return ceiling_s * int.from_bytes(digest, "big") / 2.0**64
