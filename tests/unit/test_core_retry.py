"""Full jitter: bounded, spread, and the same for the same seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.core.retry import RetryPolicy, delay_s


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
    with pytest.raises(ValueError, match="attempts_max must be 1 or more, and 0 < base_s <= cap_s"):
        RetryPolicy(attempts_max, base_s, cap_s)
