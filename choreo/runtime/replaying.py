"""Replays as records: what the topic `<service>.replay` holds, which an operator writes and that one service reads.

A replay is the event's record, key and value byte for byte, with headers that name the one handler it is for and the
identity it is handled under. It is the audit record as well: who ordered it, when, of which dead letter. So order and
record of it cannot come apart, whatever crashes. A dead letter that was dropped leaves a mark there, a record without
a value that nobody handles.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, cast, get_args

from choreo.core.emission import replay_identity
from choreo.record import Header, Headers, ProducerRecord, Record

REPLAY_PREFIX = "choreo-replay-"
DLQ_PREFIX = "choreo-dlq-"
"""Headers of a dead letter. Those an incoming record bears already are forged or stale, and replaced."""
DECODE = "(decode)"
"""Stands for a handler's name where a record could not be read, and so no handler was given it."""

About = Literal["", "head", "drop", "closing"]
"""What a replay is to the queue of a parked key: nothing; its event is to be handled, or to be dropped; nothing else
was there. See `choreo.runtime.parking`."""
Mode = Literal["if-not-done", "force", "drop"]
Key = Literal["replay", "event"]
"""The idempotency key of a replay: one of its own, since the event's is done with its dead letter; or the event's, so
that what is done is dropped."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One order to handle an event again, or the mark of a dead letter dropped.

    Attributes:
        id: Handled once a handler; the same order given twice has the same.
        handler: The handler's name, or `DECODE`: whichever handlers of the service take the event.
        base: What the ids of its emits and its key for calls to the outside are made of: the id of the replay that
            first was to have its own. Empty: the event's, so that whoever knows the first attempt knows it again.
        of: Identity of the dead letter; empty for an event of the history.
        letter: Where the dead letter was found, `topic/partition@offset`.
        by, time, note: Who ordered it, when (RFC 3339), and what they said.
        original: Where the event lies or lay: topic, partition, offset, timestamp-ms.
        parked: What it is to the queue of a parked key, if anything.
        row, tries: Of which event there, 32 hexadecimal digits, and how often that came back before.
    """

    id: str
    handler: str
    mode: Mode
    key: Key
    base: str = ""
    of: str = ""
    letter: str = ""
    by: str = ""
    time: str = ""
    note: str = ""
    original: Mapping[str, str] = field(default_factory=dict)
    parked: About = ""
    row: str = ""
    tries: int = 0


_PARKED = ("parked", "row", "tries")
_ROW = re.compile(r"[0-9a-f]{32}\Z")
_TEXTS = tuple(each.name for each in fields(Replay) if each.name not in ("original", *_PARKED))
ORIGINAL = ("topic", "partition", "offset", "timestamp-ms")


def origin(record: Record) -> dict[str, str]:
    """Where a record lies, as headers say it."""
    return dict(zip(ORIGINAL, map(str, (*record[:3], record.timestamp_ms)), strict=True))


def event_identity(service: str, handler: str, original: Mapping[str, str], failed_replay: str = "") -> str:
    """Names an event that is to be handled again by one handler: the same wherever its dead letter lies, and when.

    A dead letter may be on its topic twice, as any emit. One that a replay ended in (`failed_replay`) is another.
    """
    return replay_identity(service, handler, *(original.get(name, "") for name in ORIGINAL), failed_replay)


def read_replay(headers: Headers) -> Replay | None:
    """What a record of the replay topic says of itself, or None if it is none of ours."""
    said = {
        name.removeprefix(REPLAY_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(REPLAY_PREFIX)
    }
    if not said.get("id") or not said.get("handler"):
        return None
    if said.get("mode") not in get_args(Mode) or said.get("key") not in get_args(Key):
        return None
    texts = {name: said.get(name, "") for name in _TEXTS}
    mode, key = cast("Mode", texts.pop("mode")), cast("Key", texts.pop("key"))
    original = {name: said.get(f"original-{name}", "") for name in ORIGINAL}
    parked, row, tries = (said.get(name, "") for name in _PARKED)
    if not parked:
        return Replay(**texts, mode=mode, key=key, original=original)  # type: ignore[arg-type]
    if parked not in get_args(About) or not _ROW.match(row) or not (tries.isascii() and tries.isdigit()):
        return None
    about = cast("About", parked)
    return Replay(**texts, mode=mode, key=key, original=original, parked=about, row=row, tries=int(tries[:9]))


def replay_headers(replay: Replay) -> list[Header]:
    """What a record of the replay topic says of itself."""
    said = {name: str(getattr(replay, name)) for name in _TEXTS}
    said |= {f"original-{name}": text for name, text in replay.original.items()}
    if replay.parked:
        said |= {name: str(getattr(replay, name)) for name in _PARKED}
    return [(REPLAY_PREFIX + name, text.encode("utf-8", "replace")) for name, text in said.items() if text]


def replay_record(replay: Replay, topic: str, record: Record, partitions: int) -> ProducerRecord:
    """The record of a replay; without a key the replay's id chooses the partition, the same for each repetition."""
    headers: list[Header] = [
        header for header in record.headers if not header[0].startswith((REPLAY_PREFIX, DLQ_PREFIX))
    ]
    if replay.mode == "drop":
        headers.clear()
    headers += replay_headers(replay)
    value = None if replay.mode == "drop" else record.value
    partition = int(replay_identity(replay.id), 16) % partitions if record.key is None else None
    return ProducerRecord(topic, record.key, value, tuple(headers), partition)
