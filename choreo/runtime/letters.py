"""Dead letters as an operator sees them: what each is, which ones are meant, and what has become of each. Pure."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.record import Record
from choreo.runtime.emitting import TRUNCATED, original
from choreo.runtime.replaying import DLQ_PREFIX, Replay, event_identity, read_replay

State = Literal["open", "replayed", "failed_again", "dropped"]
PLACE = re.compile(r"(?P<topic>[a-zA-Z0-9._-]+)/(?P<partition>\d{1,9})@(?P<offset>\d{1,18})\Z")


@dataclass(frozen=True)
class Letter:
    """One dead letter, with what its headers tell: see docs/bad-input.md."""

    record: Record
    told: Mapping[str, str]

    @property
    def id(self) -> str:
        """Its coordinates."""
        return place(self.record)

    @property
    def service(self) -> str:
        """The service that gave up."""
        return self.told.get("service", "")

    @property
    def handler(self) -> str:
        """The handler's name within it, or `(decode)`."""
        return self.told.get("handler", "")

    @property
    def reason(self) -> str:
        """Why, in a word."""
        return self.told.get("reason", "")

    @property
    def original(self) -> dict[str, str]:
        """Where the event lies or lay."""
        return {
            name.removeprefix("original-"): text for name, text in self.told.items() if name.startswith("original-")
        }

    @property
    def came_from(self) -> str:
        """The same as text."""
        where = self.original
        return f"{where.get('topic', '?')}/{where.get('partition', '?')}@{where.get('offset', '?')}"

    @property
    def truncated(self) -> bool:
        """Whether it was too large for its topic, so that not all of the event is here."""
        return TRUNCATED.removeprefix(DLQ_PREFIX) in self.told

    @cached_property
    def identity(self) -> str:
        """What it is a dead letter of; two copies of one have the same."""
        return event_identity(self.service, self.handler, self.original, self.told.get("replay-id", ""))

    @cached_property
    def envelope(self) -> Envelope | None:
        """The event's attributes, if they can be read."""
        try:
            return cloudevents.read(self.record.headers, self.record.value or b"")[0]
        except DecodeError:
            return None

    @property
    def type(self) -> str:
        """The event's type, empty if it cannot be read."""
        return self.envelope.type if self.envelope is not None else ""

    @property
    def key(self) -> str | None:
        """The record's key as text."""
        return None if self.record.key is None else self.record.key.decode("utf-8", "backslashreplace")


class Fate(NamedTuple):
    """What has become of a dead letter.

    `orders`: what was ordered, oldest first. `failed_as`: the id of the dead letter its last replay ended in.
    """

    state: State = "open"
    orders: tuple[Replay, ...] = ()
    failed_as: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant; what is None or empty leaves all. `type` and `handler` may hold `*`.

    Attributes:
        ids: Coordinates; with any, only those.
        handler: `handler` or `service.handler`.
        since_ms, until_ms: When they were put aside, the end not included.
    """

    ids: frozenset[str] = frozenset()
    handler: str | None = None
    reason: str | None = None
    type: str | None = None
    key: str | None = None
    state: State | None = None
    since_ms: int = 0
    until_ms: int | None = None

    def takes(self, letter: Letter, fate: Fate) -> bool:
        """Whether this one is."""
        names = (letter.handler, f"{letter.service}.{letter.handler}")
        return (
            (not self.ids or letter.id in self.ids)
            and (self.handler is None or any(fnmatch.fnmatchcase(name, self.handler) for name in names))
            and self.reason in (None, letter.reason)
            and (self.type is None or fnmatch.fnmatchcase(letter.type, self.type))
            and (self.key is None or letter.key == self.key)
            and self.state in (None, fate.state)
            and letter.record.timestamp_ms >= self.since_ms
            and (self.until_ms is None or letter.record.timestamp_ms < self.until_ms)
        )


def place(record: Record) -> str:
    """`topic/partition@offset`."""
    return f"{record.topic}/{record.partition}@{record.offset}"


def letters_of(records: Iterable[Record]) -> list[Letter]:
    """The dead letters among records, oldest first, each partition in its order; what is none is left out."""
    newest_ms: dict[tuple[str, int], int] = {}
    found = []
    for record in sorted(records, key=lambda each: each[:3]):
        told = original(record)
        if "reason" not in told:
            continue
        partition = record[:2]
        # Clocks of two producers differ, and the order of a key must not.
        at_ms = newest_ms[partition] = max(record.timestamp_ms, newest_ms.get(partition, 0))
        found.append((at_ms, record[:3], Letter(record, told)))
    return [letter for _, _, letter in sorted(found, key=lambda each: each[:2])]


def fates(letters: Sequence[Letter], orders: Iterable[Record]) -> dict[str, Fate]:
    """By identity, what has become of those of which anything has; `orders`: records of replay topics, in order."""
    given: dict[str, list[Replay]] = {}
    for record in orders:
        replay = read_replay(record.headers)
        if replay is not None and replay.of:
            given.setdefault(replay.of, []).append(replay)
    failures = {letter.told["replay-id"]: letter.id for letter in letters if "replay-id" in letter.told}
    found: dict[str, Fate] = {}
    for identity, replays in given.items():
        last = replays[-1]
        failed_as = failures.get(last.id, "")
        state: State = "dropped" if last.mode == "drop" else "failed_again" if failed_as else "replayed"
        found[identity] = Fate(state, tuple(replays), failed_as)
    return found


def as_dict(letter: Letter, fate: Fate) -> dict[str, Any]:
    """For programs: everything but headers and payload."""
    envelope = letter.envelope
    return {
        "id": letter.id,
        "service": letter.service,
        "handler": letter.handler,
        "reason": letter.reason,
        "detail": letter.told.get("detail", ""),
        "attempts": int(letter.told.get("attempts", "0") or 0),
        "time": letter.told.get("time", ""),
        "timestamp_ms": letter.record.timestamp_ms,
        "type": letter.type,
        "key": letter.key,
        "event_id": envelope.id if envelope else "",
        "source": envelope.source if envelope else "",
        "correlation_id": envelope.correlationid if envelope else "",
        "original": letter.original,
        "truncated": letter.truncated,
        "state": fate.state,
        "failed_as": fate.failed_as,
        "orders": [
            {"mode": each.mode, "by": each.by, "time": each.time, "note": each.note, "replay_id": each.id}
            for each in fate.orders
        ],
    }
