"""A simulation that would not notice proves nothing: protections taken out are noticed, most of them at once."""

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutants.mutant import Mutant

SEEDS = 12
LATE = {
    "leases do not fence",
    "refusals ignored",
    "sent for a lost partition",
    "stale offsets told",
    "taking given up",
    "wall-clock timers",
    "timers noted before they are sent",
    "deploys overtake each other",
    "fault 2: unread offset",
    "fault 5: position before the fence",
    "fault 6: late EndTxn",
}
"""Found after dozens or hundreds of seeds: `make mutants` looks for them."""


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.name not in LATE], ids=lambda each: each.name)
def test_what_is_taken_out_is_missed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a dozen seeds."""
    simulation = mutant.simulation()
    mutant.take_out(monkeypatch)
    assert any(simulation.run(seed).violations for seed in range(SEEDS))


def test_mutants_have_names_of_their_own() -> None:
    """And those that are found late are among them."""
    names = [each.name for each in MUTANTS]
    assert len(set(names)) == len(names) >= 12
    assert set(names) >= LATE
