"""docs/chaos.md, as a run writes it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.integration.chaos.crew import Ended
from tests.integration.chaos.outcome import PAIRS, Outcome
from tests.integration.chaos.watching import Felt, recovery

TEXT = """\
# Chaos on the real thing

This page is written by a run of `tests/integration/chaos` (`CHAOS_WRITE=1`). Three brokers on loopback, a PostgreSQL
and a Redis of the run's own; seven services, each a process of `choreo run`. Every 5 to 10 s one fault, from a deck
of all kinds shuffled by a seed; the next one comes whether or not the last is overcome, or over, save that brokers
are left alone until all copies are in sync.

- **The order flow** (`handlers/order_fulfilment`), four services with SQLite stores: {orders:,} orders, at most
  {orders_per_s:g} a second, as the brokers take them.
- **Entries** of 8 accounts, numbered within each: `bookkeeper` writes a row in PostgreSQL and emits, `clerk` on
  Redis and `mirror` on the changelog emit, and what they emit is a row at `bookkeeper` again: {entries:,} entries,
  at most {entries_per_s:g} a second, one of twenty published twice. `mirror` uses librdkafka, all others aiokafka.

All services reach the brokers through TCP proxies of the test's own. The ledgers have no unique keys: what happens
twice is there twice. In the end all is read back under `read_committed`, by choreo's own `scan` and by librdkafka
without anything of choreo's in between, and both must have the same records.

{when}, `{command}`, {versions}, on {cores} cores that {busy}.

| | counted | of | at most, with 95 % confidence |
|---|---|---|---|
| events in (repeated: {repeated:,}) | {events_in:,} | | |
| events out, by id | {events_out:,} | | |
| records on the log, the same for both clients | {records:,} | | |
| lost (inputs, emits, rows, orders without an end) | {lost:,} | {lost_of:,} | {lost_bound} |
| duplicated effects (rows, or one fact under two ids) | {twice:,} | {twice_of:,} | {twice_bound} |
| out of order (of a key, or before its cause) | {reordered:,} | {reordered_of:,} | {reordered_bound} |
| dead letters | {dead_letters:,} | | |
| faults after which something of this was wrong | {wrong_faults} | {faults:,} | {faults_bound} |

Zero in n bounds the rate at 3/n (the rule of three); it does not prove it zero. Events of one fault are not
independent of each other, so the last line is the one to trust.

**Sent again under its own id** (legal; the next service drops it): {resent}.

**Processes that ended by themselves** (each started again, as a supervisor would): {ended}.

## Faults, and how long they are felt

Recovery: from the end of the fault until everything published before that end had come to its own end, in the flows
that depend on what failed. A killed broker's fault ends when it is ready again, a killed process's when it is started
again, scaling up when the others have heard of the new one, scaling down when it has drained. Faults often come
faster than they are overcome, so what others add is in many of these figures; the last two columns are of those
during which no other fault touched the flow.

| fault | done | recovery, median | maximum | of these undisturbed | their maximum |
|---|---|---|---|---|---|
{rows}

Recovery of a killed or frozen service has the 6 s in it after which brokers give up a member
(`CHOREO_KAFKA_SESSION_TIMEOUT_MS`, 45 s unless set).
"""


@dataclass
class Run:
    """One run, with all there is to say about it."""

    outcome: Outcome
    faults: Sequence[Felt]
    ended: Sequence[Ended]
    repeated: int
    orders_per_s: float
    entries_per_s: float
    when: str
    command: str
    versions: str
    cores: int
    busy: str

    def markdown(self) -> str:
        """The page."""
        found = self.outcome
        values = {name: value for name, value in vars(found).items() if name not in ("resent", "problems")}
        bounds = {
            f"{name}_bound": bound(values[name], values[f"{name}_of"]) for name in ("lost", "twice", "reordered")
        }
        wrong = bool(found.lost or found.twice or found.reordered)
        return TEXT.format(
            **values,
            **bounds,
            **{name: value for name, value in vars(self).items() if name not in ("outcome", "faults", "ended")},
            faults=len(self.faults),
            wrong_faults="?" if wrong else 0,
            faults_bound=bound(int(wrong), len(self.faults)),
            resent=self._resent(),
            ended=self._ended(),
            rows="\n".join(self._rows()),
        )

    def _ended(self) -> str:
        counts = Counter((each.service, each.code) for each in self.ended)
        return ", ".join(f"{name} with exit code {code}: {n}" for (name, code), n in counts.items()) or "none"

    def _resent(self) -> str:
        pairs = [f"{pair} {self.outcome.resent[pair]:,}" for pair in dict.fromkeys(PAIRS.values())]
        return ", ".join([*pairs, f"inputs by the publisher {self.outcome.resent['input']:,}"])

    def _rows(self) -> list[str]:
        calm = recovery([each for each in self.faults if not each.disturbed])
        lines = []
        for kind, (count, middle_s, max_s) in recovery(self.faults).items():
            times, _, calm_s = calm.get(kind, (0, 0.0, 0.0))
            undisturbed = f"{times} | {calm_s:.1f} s" if times else "0 | -"
            lines.append(f"| {kind} | {count} | {middle_s:.1f} s | {max_s:.1f} s | {undisturbed} |")
        return lines


def bound(count: int, of: int) -> str:
    """The rule of three, for a count of zero."""
    return "-" if count or not of else f"{300 / of:.2g} %"
