"""What store and log hold of a rolling deploy: every instance held to the version it stores, and to its history."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from choreo import envelope as cloudevents
from choreo.core.emission import key_digest
from choreo.record import Record
from handlers.approval.events import ApprovalEnded, SendLetter
from handlers.approval.process import FINANCE, LARGE_CENTS

SERVICE, SOURCE = "approval", "/rolling"
SOURCES = (SOURCE, f"/{SERVICE}")
"""Of what is published, and of timers."""
ATTEMPTS_MAX = 5
EXPIRY_DAYS = {1: 8, 2: 5}
"""By version: so long after its start at the earliest; version 2 expires five days after it was first approved."""


class Span(NamedTuple):
    """For how long which builds ran."""

    from_ms: int
    until_ms: int
    builds: frozenset[str]


class Row(NamedTuple):
    """An instance as it is stored."""

    version: int
    state: str
    ended: bool
    updated_ms: int


class Handled(NamedTuple):
    """An event as it was handled: of the flow, from the topic, and how many attempts it took."""

    digest: bytes
    flow: str
    topic: str
    timestamp_ms: int
    done_ms: int
    attempts: int

    @property
    def delay_s(self) -> float:
        """From its time on the log until it was handled."""
        return (self.done_ms - self.timestamp_ms) / 1000


class End(NamedTuple):
    """How an instance ended, by what was emitted."""

    outcome: str
    by: str
    at_ms: int


@dataclass
class Told:
    """What an instance has emitted, each event id once: `letters` in the log's order, `committed` in the store's.

    Of two members that handled two events of an instance, from two topics, the one that committed first may be the
    last to send; and in one commit the store's clock goes by the keys of the events. So one of the two is right.
    """

    letters: list[str] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """Store and log at one moment.

    `submitted`: expenses, numbered from 0; `decided`: how often each was; `day_s`: a day of the process;
    `steady_ms`: from when until when all was published at a steady rate.
    """

    submitted: int
    decided: Mapping[int, int]
    day_s: float
    steady_ms: tuple[int, int]
    spans: Sequence[Span]
    rows: Mapping[str, Row]
    handled: Sequence[Handled]
    records: Sequence[Record]

    @cached_property
    def told(self) -> Mapping[str, Told]:
        """By instance."""
        found: dict[str, Told] = defaultdict(Told)
        on_log = sorted(self._emits.values(), key=lambda each: (each[1].partition, each[1].offset))
        for _, record in on_log:
            if record.topic == "letters":
                letter = SendLetter.from_payload(record.value or b"")
                found[letter.request_id].letters.append(letter.text)
            else:
                ended = ApprovalEnded.from_payload(record.value or b"")
                found[ended.request_id].ends.append(End(ended.outcome, ended.by, record.timestamp_ms))
        for _, record in sorted(on_log, key=lambda each: each[0]):
            if record.topic == "letters":
                letter = SendLetter.from_payload(record.value or b"")
                found[letter.request_id].committed.append(letter.text)
        return found

    @cached_property
    def _emits(self) -> Mapping[str, tuple[float, Record]]:
        """By event id: the record, and when what caused it was handled; infinite if it was not."""
        done_ms = {each.digest: each.done_ms for each in self.handled}
        found: dict[str, tuple[float, Record]] = {}
        for record in self.records:
            envelope, _ = cloudevents.read(record.headers, record.value or b"")
            causes = [key_digest(SERVICE, "process", source, envelope.causationid or "") for source in SOURCES]
            if record.topic != "approval.dlq":
                found[envelope.id] = min(done_ms.get(cause, math.inf) for cause in causes), record
        return found

    @property
    def dead_letters(self) -> int:
        """None may be."""
        return sum(record.topic == "approval.dlq" for record in self.records)

    @property
    def sent_again(self) -> int:
        """Records beyond one an event id: a resend keeps its id, and the next service drops it."""
        ids = [dict(record.headers)["ce_id"] for record in self.records]
        return len(ids) - len(set(ids))

    @cached_property
    def waited(self) -> Sequence[Handled]:
        """Decisions on version 2 that came while only version 1 ran, and were handled after that."""
        alone = [span for span in self.spans if span.builds == {"v1"}]
        return [
            each
            for each in self.handled
            if each.topic.endswith("decisions")
            and self._version(each) == 2
            and any(span.from_ms < each.timestamp_ms < span.until_ms < each.done_ms for span in alone)
        ]

    @property
    def delays_s(self) -> Sequence[float]:
        """From an event on its topic until it was handled, sorted: of version 1, which every build knows."""
        begun_ms, over_ms = self.steady_ms
        steady = (each for each in self.handled if begun_ms < each.timestamp_ms < over_ms)
        return sorted(each.delay_s for each in steady if self._version(each) == 1)

    def _version(self, handled: Handled) -> int:
        """That of its instance."""
        return self.rows[f"r{handled.flow[1:].partition('-')[0]}"].version

    def problems(self) -> list[str]:
        """Whatever may not be."""
        found = [f"{name} is in the store and was never submitted" for name in self.rows.keys() - self._names()]
        found += [f"{name} is lost" for name in self._names() - self.rows.keys()]
        found += [
            f"{id_} was emitted by nothing that was handled" for id_, (at, _) in self._emits.items() if at == math.inf
        ]
        if self.dead_letters:
            found.append(f"{self.dead_letters} dead letters")
        found += [
            f"{each.flow} of {each.topic} took {each.attempts} attempts"
            for each in self.handled
            if each.attempts >= ATTEMPTS_MAX
        ]
        found += [
            f"{each.flow} waited and took {each.attempts} attempts" for each in self.waited if each.attempts != 1
        ]
        for number in range(self.submitted):
            if (row := self.rows.get(f"r{number}")) is not None:
                found += [
                    f"r{number} of version {row.version}, {row.state}: {said}" for said in self._of(number, row)
                ]
        return found

    def _names(self) -> set[str]:
        return {f"r{number}" for number in range(self.submitted)}

    def _of(self, number: int, row: Row) -> Iterator[str]:
        told = self.told.get(f"r{number}", Told())
        if not row.state:  # decisions that came before its start wait in it; the start waits, too, for their version
            if told.letters or told.ends or row.version == 1 or "v2" in self.spans[-1].builds:
                yield "its start was not handled"
            return
        looked_again = f"m{number} has approved {LARGE_CENTS + 1} cents"
        story = ["please decide"]
        if row.version == 2:
            story += ["reminder 1", "reminder 2", "nobody decided", looked_again]
        if not (is_told(told.letters, story) or is_told(told.committed, story)):
            yield f"that version does not write {told.letters}"
        if len(told.ends) > 1:
            yield f"it ended as {told.ends}"
        state = "waiting"
        if told.ends:
            state = "ended"
            yield from self._ending(number, row, told.ends[0], looked_again in told.letters)
        elif looked_again in told.letters:
            state = "second-look"
        elif "nobody decided" in told.letters:
            state = "escalated"
        if (row.state, row.ended) != (state, state == "ended"):
            yield f"its history says {state}"
        yield from self._begun(number, row)
        yield from self._progress(number, row)

    def _ending(self, number: int, row: Row, end: End, looked_again: bool) -> Iterator[str]:
        if end.outcome == "expired":
            if end.at_ms - self._started[number].timestamp_ms < EXPIRY_DAYS[row.version] * self.day_s * 1000:
                yield "it expired too early"
        elif (end.outcome, end.by) != ("approved", f"m{number}" if row.version == 1 else FINANCE):
            yield f"that version does not end as {end}"
        elif row.version == 2 and not looked_again:
            yield "finance was not asked"

    @cached_property
    def _started(self) -> Mapping[int, Handled]:
        return {int(each.flow[1:]): each for each in self.handled if each.topic.endswith("expenses")}

    def _begun(self, number: int, row: Row) -> Iterator[str]:
        """It stores the version of the build that began it, wherever only one can have."""
        started = self._started.get(number)
        if started is None:
            yield "nobody handled its start"
            return
        for span in self.spans:
            if span.from_ms < started.done_ms < span.until_ms and len(span.builds) == 1:
                (build,) = span.builds
                if build != f"v{row.version}":
                    yield f"it began under {build}"

    def _progress(self, number: int, row: Row) -> Iterator[str]:
        """What has come for it was handled, if a build runs that can; else it stands still."""
        running, decided = self.spans[-1], self.decided.get(number, 0)
        if row.version == 2 and running.builds == {"v1"}:
            if row.updated_ms > running.from_ms:
                yield "a build changed it that does not know its version"
        elif not row.ended and (decided == 2 or (decided and (row.version == 1 or row.state != "second-look"))):
            yield f"it was decided {decided} times"

    def versions(self) -> Counter[int]:
        """How many of each."""
        return Counter(row.version for row in self.rows.values())


def is_told(letters: Sequence[str], story: Sequence[str]) -> bool:
    """Whether these are the story's first and perhaps some of the others, each once, in its order."""
    places = [story.index(text) if text in story else -1 for text in letters]
    return places[:1] == [0] and -1 not in places and places == sorted(set(places))
