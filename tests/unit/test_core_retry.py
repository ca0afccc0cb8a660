"""When what is tried again: full jitter, rules an exception, delays; all of it bounded."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.core.retry import Delayed, RetryPolicy, delay_s, due_in_s, rule_for
from choreo.errors import DeclarationError, Reject, RetryLater


@given(attempt=st.integers(1, 10_000), seed=st.binary(max_size=32))
def test_a_delay_is_within_its_bound(attempt: int, seed: bytes) -> None:
    """The bound doubles up to the cap, and no attempt number overflows."""
    policy = RetryPolicy(base_s=0.1, cap_s=10.0)
    wait_s = delay_s(policy, attempt=attempt, seed=seed)
    assert 0.0 <= wait_s < min(10.0, 0.1 * 2 ** min(attempt - 1, 60))
    assert wait_s == delay_s(policy, attempt=attempt, seed=seed)


def test_delays_are_spread() -> None:
    """A thousand events that failed together do not come again together."""
    waits = sorted(delay_s(RetryPolicy(base_s=1.0), attempt=1, seed=bytes([n % 256, n // 256])) for n in range(1_000))
    assert len(set(waits)) == 1_000
    assert 0.45 < sum(waits) / 1_000 < 0.55
    assert waits[0] < 0.01
    assert waits[-1] > 0.99


def test_each_attempt_has_a_delay_of_its_own() -> None:
    """With a flat bound the attempts of one event still differ."""
    policy = RetryPolicy(base_s=1.0, cap_s=1.0)
    assert len({delay_s(policy, attempt=attempt, seed=b"x") for attempt in range(1, 20)}) == 19


@pytest.mark.parametrize(
    ("attempts_max", "base_s", "cap_s"), [(0, 0.1, 1.0), (-1, 0.1, 1.0), (1, 0.0, 1.0), (1, -1.0, 1.0), (1, 2.0, 1.0)]
)
def test_a_policy_that_cannot_work_is_refused(attempts_max: int, base_s: float, cap_s: float) -> None:
    """The message says what is allowed."""
    with pytest.raises(DeclarationError, match="attempts_max must be 1 or more, and 0 < base_s <= cap_s"):
        RetryPolicy(attempts_max, base_s, cap_s)


class Refused(ConnectionError):
    pass


def test_rule_of_the_nearest_class_counts() -> None:
    """An exception is also of the classes it derives from; the one most like it decides."""
    patient = RetryPolicy(attempts_max=20)
    policy = RetryPolicy(on={OSError: patient, Refused: Reject})
    assert rule_for(policy, Refused) is Reject
    assert rule_for(policy, ConnectionError) is patient
    assert rule_for(policy, KeyError) is policy
    assert rule_for(RetryPolicy(on={Exception: Reject}), asyncio.CancelledError).__class__ is RetryPolicy


def test_rule_of_everything_leaves_retry_later_alone() -> None:
    """A handler that asks for another attempt means it; only a rule that names it is about it."""
    assert rule_for(RetryPolicy(on={Exception: Reject}), RetryLater).__class__ is RetryPolicy
    assert rule_for(RetryPolicy(on={RetryLater: RetryPolicy(99)}), RetryLater) == RetryPolicy(99)


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ({"TimeoutError": Reject}, "'TimeoutError' is no Exception class"),
        ({asyncio.CancelledError: Reject}, "CancelledError is no Exception class"),
        ({Reject: RetryPolicy()}, "Reject is never tried again"),
        ({ValueError: 3}, "write a RetryPolicy"),
        ({ValueError: ValueError}, "write a RetryPolicy"),
        ({ValueError: RetryPolicy(on={KeyError: Reject})}, "put them side by side"),
    ],
)
def test_rule_that_cannot_work_is_refused(on: Any, said: str) -> None:
    """When it is written, not when something fails."""
    with pytest.raises(DeclarationError, match=said):
        RetryPolicy(on=on)


def test_rules_given_cannot_be_changed_later() -> None:
    """A policy is a value: it keeps what it was given."""
    rules: dict[type[Exception], RetryPolicy | type[Reject]] = {ValueError: Reject}
    policy = RetryPolicy(on=rules)
    rules[KeyError] = Reject
    assert set(policy.on) == {ValueError}


def test_attempts_in_total_are_those_of_the_most_patient_rule() -> None:
    """What bounds an event, whatever is raised; a delayed one is bounded a delay."""
    policy = RetryPolicy(3, on={TimeoutError: RetryPolicy(8), ValueError: Reject})
    assert policy.attempts_total == 8
    assert Delayed(10, 60, in_place=policy).attempts_total == 24
    assert Delayed(10, 60, 600).attempts_total == 4


@pytest.mark.parametrize("delays", [(), (0,), (-1,), (1.5,), (True,), (86_401,), (1,) * 21, ("10",)])
def test_delays_that_cannot_name_a_topic_are_refused(delays: Any) -> None:
    """The message says what is allowed."""
    with pytest.raises(DeclarationError, match=r"such as Delayed|whole number of seconds"):
        Delayed(*delays)


@given(now_ms=st.integers(0, 2**45), timestamp_ms=st.integers(-1, 2**45))
def test_due_time_is_never_further_away_than_the_delay(now_ms: int, timestamp_ms: int) -> None:
    """Whatever the clocks say: one that is wrong by years holds no event up."""
    assert 0.0 <= due_in_s(60, timestamp_ms=timestamp_ms, now_ms=now_ms) <= 60


def test_due_time_counts_from_the_record() -> None:
    """What has lain on the log for as long as the delay is due at once, and not a second before."""
    assert due_in_s(60, timestamp_ms=5_000, now_ms=5_000) == 60
    assert due_in_s(60, timestamp_ms=5_000, now_ms=64_000) == 1
    assert due_in_s(60, timestamp_ms=5_000, now_ms=65_000) == 0
