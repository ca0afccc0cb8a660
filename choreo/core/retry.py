"""When a failed unit is tried again, where it waits meanwhile, and when it is tried no more."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from choreo.errors import ChoreoError, DeclarationError, Reject, RetryLater

DELAY_S_MAX = 86_400
"""The longest delay of a delay topic. What waits for days is a timer's: a log keeps its records for a week or so."""
DELAYS_MAX = 20


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """In-place retry: the failed event waits at the head of its lane, other lanes go on.

    Attributes:
        attempts_max: Invocations of one event by one handler before it is given up; >= 1.
        base_s: Upper bound of the first wait, in seconds; > 0.
        cap_s: Upper bound of every wait, in seconds; >= base_s.
        on: Exceptions that are treated otherwise: by a policy of their own, or as `Reject`: given up at once. Of the
            classes an exception is of, the nearest decides. All attempts count, whatever the former ones raised.

    Raises:
        DeclarationError: The message says what to write instead.
    """

    attempts_max: int = 5
    base_s: float = 0.1
    cap_s: float = 10.0
    on: Mapping[type[Exception], "RetryPolicy | type[Reject]"] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or not 0 < self.base_s <= self.cap_s:
            raise DeclarationError(f"{self}: attempts_max must be 1 or more, and 0 < base_s <= cap_s")
        for error, rule in self.on.items():
            _check_rule(error, rule)
        object.__setattr__(self, "on", dict(self.on))

    @property
    def attempts_total(self) -> int:
        """Invocations of one event at the most, whatever is raised."""
        return max(
            [self.attempts_max, *(rule.attempts_max for rule in self.on.values() if not isinstance(rule, type))]
        )


@dataclass(frozen=True, slots=True, init=False)
class Delayed:
    """Retry through delay topics: the event leaves its lane, waits on the log, and is handled again by that handler.

        Delayed(10, 60, 600)                            # once, and again after 10 s, 60 s more and 10 min more
        Delayed(60, in_place=RetryPolicy(3))            # three attempts here, three more a minute later

    The order of the event among others of its key is given up.

    Args:
        delays_s: Whole seconds, each from 1 to a day; at least one, at most 20.
        in_place: Attempts before the first delay and after each.

    Raises:
        DeclarationError: The message says what to write instead.
    """

    delays_s: tuple[int, ...]
    in_place: RetryPolicy

    def __init__(self, *delays_s: int, in_place: RetryPolicy | None = None) -> None:
        said = f"Delayed{delays_s}"
        if not 1 <= len(delays_s) <= DELAYS_MAX:
            raise DeclarationError(f"{said}: give 1 to {DELAYS_MAX} delays in seconds, such as Delayed(10, 60, 600)")
        for delay in delays_s:
            if not isinstance(delay, int) or isinstance(delay, bool) or not 1 <= delay <= DELAY_S_MAX:
                raise DeclarationError(
                    f"{said}: a delay is a whole number of seconds from 1 to {DELAY_S_MAX}, as it names a topic; for "
                    "shorter ones take RetryPolicy, for longer ones a timer"
                )
        object.__setattr__(self, "delays_s", delays_s)
        object.__setattr__(self, "in_place", in_place or RetryPolicy(attempts_max=1))

    @property
    def attempts_total(self) -> int:
        """Invocations of one event at the most, whatever is raised."""
        return self.in_place.attempts_total * (1 + len(self.delays_s))

    def next_s(self, number: int) -> int | None:
        """The delay after `number` delays, or None after the last."""
        return self.delays_s[number] if number < len(self.delays_s) else None


def rule_for(policy: RetryPolicy, error: type[BaseException]) -> RetryPolicy | type[Reject]:
    """What `policy` says of an exception: that of the nearest class it names, else itself.

    `RetryLater` is asked for by the handler: only a rule that names it, or a class of its own, is about it.
    """
    if policy.on:
        for class_ in error.__mro__:
            if class_ in policy.on:
                return policy.on[class_]
            if class_ is RetryLater:
                break
    return policy


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


def due_in_s(delay: float, *, timestamp_ms: int, now_ms: int) -> float:
    """Seconds until a record of a delay topic, on the log since `timestamp_ms`, is due; in [0, delay].

    The log's own clock counts; one that is ahead of ours makes nothing wait longer than the delay.
    """
    return min(delay, max(0.0, delay - (now_ms - timestamp_ms) / 1000))


def _check_rule(error: Any, rule: Any) -> None:
    name = getattr(error, "__name__", repr(error))
    if not (isinstance(error, type) and issubclass(error, Exception)):
        raise DeclarationError(f"RetryPolicy(on=): {name} is no Exception class; write on={{TimeoutError: ...}}")
    if issubclass(error, ChoreoError) and error.disposition not in ("retry", "stop"):
        raise DeclarationError(f"RetryPolicy(on=): {name} is never tried again, so no rule can be about it")
    if rule is Reject:
        return
    if not isinstance(rule, RetryPolicy):
        raise DeclarationError(
            f"RetryPolicy(on={{{name}: {rule!r}}}): write a RetryPolicy, such as RetryPolicy(attempts_max=20), or "
            "Reject to give it up at once"
        )
    if rule.on:
        raise DeclarationError(
            f"RetryPolicy(on={{{name}: ...}}): its policy has rules of its own; put them side by side"
        )
