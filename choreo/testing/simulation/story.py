"""The story of one outcome: what concerns the flow that went wrong, as a timeline and as a Mermaid diagram.

It is told from the history alone, which is what `World.note` was given. Kinds of lines this module does not know are
kept as they are.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from choreo.record import Record, last_headers
from choreo.testing.simulation.faults import KINDS
from choreo.testing.simulation.shrinking import checker_of

if TYPE_CHECKING:
    from choreo.testing.simulation.happenings import Happening
    from choreo.testing.simulation.simulation import Outcome

LINES_MAX, VIOLATIONS_MAX = 150, 5
_PERIOD_MAX, _REPEATS_MIN = 6, 3
_HANDLING = ("invokes", "returns", "raises")
_COMING = ("starts", "assigned")
_WORD = re.compile(r"[^\s,;:()\[\]{}'\"]+")
_PLACE = re.compile(r"\S+/\d+@\d+\Z")
_ATTEMPT = re.compile(r"attempt \d+")
_UNREAD = re.compile(r"unread by (\S+?)(?:;|$)")


class Line(NamedTuple):
    """One line of a story, or a remark about lines that are not there (`who` is empty); seconds since the start."""

    at_s: float
    who: str
    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Story:
    """Made by `tell`.

    Attributes:
        about: Correlation ids of the flows it is restricted to; empty where it is of everything.
        left_out: Lines of the history that are not in it.
    """

    seed: int
    violations: Sequence[str]
    about: Sequence[str]
    lines: Sequence[Line]
    left_out: int

    def text(self) -> Text:
        """The timeline: seconds, who, what, and a `!` before each fault. `.plain` is without colours."""
        width = max((len(each.who) for each in self.lines), default=0)
        text = Text().append(f"{self._scope()}\n", style="dim")
        for at_s, who, kind, what in self.lines:
            said = _safe(f"{kind} {what}".strip())
            if not who:
                text.append(f"{'':12}{'':{width}}  ... {said}\n", style="dim")
                continue
            style = "bold red" if kind in KINDS else "cyan" if kind in (*_HANDLING, "publishes", "appends") else ""
            text.append(f"{'!' if kind in KINDS else ' '} {at_s:9.3f} {who:{width}}  ")
            text.append(f"{said}\n", style=style)
        for each in self.violations[:VIOLATIONS_MAX]:
            text.append(f"  violated: {_safe(each)}\n", style="bold red")
        return text

    def mermaid(self) -> str:
        """The same as a sequence diagram, of those who did something or were struck."""
        idle = {each.who for each in self.lines} - {each.who for each in self.lines if each.kind not in _COMING}
        lines = [each for each in self.lines if not each.who or each.who not in idle]
        names = list(dict.fromkeys(name for each in lines for name in _ends(each))) or ["nobody"]
        ids = {name: f"p{number}" for number, name in enumerate(names)}
        everyone = f"{ids[names[0]]},{ids[names[-1]]}"
        said = ["sequenceDiagram", *(f"participant {id_} as {_escaped(name)}" for name, id_ in ids.items())]
        for each in lines:
            what = _escaped(f"{each.at_s:.3f} {each.kind} {each.what}")
            match [ids[name] for name in _ends(each)]:
                case []:
                    said.append(f"Note over {everyone}: {_escaped(each.what)}")
                case [one]:
                    said.append(f"Note over {one}: {'FAULT ' if each.kind in KINDS else ''}{what}")
                case [source, target]:
                    said.append(f"{source}->>{target}: {what}")
        violated = self.violations[:VIOLATIONS_MAX]
        said += [f"Note over {everyone}: violated: {_escaped(each)}" for each in violated]
        return "\n    ".join(said) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        head = {"seed": self.seed, "violations": list(self.violations), "about": list(self.about)}
        lines = [each._asdict() for each in self.lines]
        return {**head, "left_out": self.left_out, "lines": lines, "mermaid": self.mermaid()}

    def _scope(self) -> str:
        what = f"flow {', '.join(self.about)}, all faults and all moves of partitions" if self.about else "all of it"
        return f"seed {self.seed}: {what}; {self.left_out:,} lines left out"


def appended(record: Record) -> str:
    """What a world notes of a record that came on the log, `note(process, "appends", appended(record))`.

    The digest of the value lets two runs of a seed differ where only the contents of an event do.
    """
    headers = last_headers(record.headers)
    words = [headers.get("ce_type"), headers.get("ce_correlationid"), record.key, headers.get("ce_id")]
    digest = blake2b(record.value or b"", digest_size=4).hexdigest()
    return " ".join([f"{record.topic}/{record.partition}@{record.offset}", *map(_word, words), digest])


def tell(outcome: "Outcome", *, lines_max: int = LINES_MAX) -> Story:
    """The story of an outcome; of a shrunk one it is shortest."""
    history = outcome.history
    flows, places = _concern(outcome)
    kept = [
        Line(each.at_s - history[0].at_s, each.who, each.kind, _said(each))
        for each in _chosen(history, flows, places)
    ]
    lines = _cut(_collapsed(kept), lines_max)
    shown = sum(1 for each in lines if each.who)
    return Story(outcome.seed, outcome.violations, sorted(flows), lines, len(history) - shown)


# ---- what it is about


def _concern(outcome: "Outcome") -> tuple[set[str], set[str]]:
    """Flows, and places of records, that the first violation names: by name, key or id, or as left unread."""
    on_log = [each.what.split() for each in outcome.history if each.kind == "appends"]
    published = {each.what.split()[-1] for each in outcome.history if each.kind == "publishes"}
    for violation in outcome.violations:
        name, _, said = violation.partition(":")
        words, partition = set(), ""
        for word in _WORD.findall(said):
            partition = word.rpartition("@")[0] or partition
            words.add(f"{partition}{word}" if word.startswith("@") else word)
        words |= {place for group in _UNREAD.findall(said) for place in _unread(outcome.history, group)}
        words = {word for word in words if not word.isdigit()} - {"-"}
        places = {word for word in words if _PLACE.match(word)}
        flows = words & published
        flows |= {flow for place, _, flow, *named in on_log if flow != "-" and words & {place, flow, *named[:2]}}
        if name == checker_of(outcome) and (flows or places):
            return flows, places | {place for place, _, flow, *_ in on_log if flow in flows}
    return set(), set()


def _unread(history: Sequence["Happening"], group: str) -> set[str]:
    """Of each partition the first record that the group never committed."""
    committed: dict[str, int] = {}
    for each in history:
        if each.kind == "committed" and each.what.startswith(f"{group} "):
            partition, _, offset = each.what.split()[-1].rpartition("@")
            committed[partition] = int(offset)
    noted = {each.what.split()[0] for each in history if each.kind == "appends"}
    return {place for partition, offset in committed.items() if (place := f"{partition}@{offset}") in noted}


def _chosen(history: Iterable["Happening"], flows: set[str], places: set[str]) -> Iterable["Happening"]:
    """What is of these flows and places, and all that befell the members; commits where they moved past a place."""
    before: dict[str, int] = {}
    for each in history:
        words = each.what.split()
        concerned = True
        if each.kind == "committed":
            partition, _, offset = words[-1].rpartition("@")
            name = f"{words[0]} {partition}"
            was, before[name] = before.get(name, 0), int(offset)
            moved = {f"{partition}@{number}" for number in range(min(was, before[name]), max(was, before[name]))}
            concerned = bool(moved & places if places else moved)
        elif each.kind == "publishes" and flows:
            concerned = words[-1] in flows
        elif (each.kind == "appends" or each.kind in _HANDLING) and places:
            concerned = not places.isdisjoint(words)
        if concerned:
            yield each


# ---- less of it


def _collapsed(lines: Sequence[Line]) -> list[Line]:
    """Without repetitions: of up to six lines that come again and again the first are kept, and a remark."""
    same = [(each.who, each.kind, _ATTEMPT.sub("", each.what)) for each in lines]
    found: list[Line] = []
    at = 0
    while at < len(lines):
        for period in range(1, _PERIOD_MAX + 1):
            block, end = same[at : at + period], at + period
            while same[end : end + period] == block:
                end += period
            times = (end - at) // period
            if times >= _REPEATS_MIN:
                found += lines[at : at + period]
                what = f"the same {times - 1} times more" if period == 1 else f"these {period} {times - 1} times more"
                found.append(Line(lines[end - 1].at_s, "", "", f"{what}, until {lines[end - 1].at_s:.3f}"))
                at = end
                break
        else:
            found.append(lines[at])
            at += 1
    return found


def _cut(lines: list[Line], lines_max: int) -> list[Line]:
    """Without the middle, if it is too long: how it began and, more of it, how it ended."""
    over = len(lines) - lines_max
    if over <= 0:
        return lines
    head = lines_max // 3
    first, last = lines[head], lines[head + over]
    remark = f"{over + 1:,} lines left out, from {first.at_s:.3f} to {last.at_s:.3f}"
    return [*lines[:head], Line(first.at_s, "", "", remark), *lines[head + over + 1 :]]


# ---- in words


def _said(happening: "Happening") -> str:
    """What a line says; of a record on the log its place, type and flow are enough."""
    return " ".join(happening.what.split()[:3]) if happening.kind == "appends" else happening.what


def _ends(line: Line) -> tuple[str, ...]:
    """Where its arrow begins and ends; one name where it is none; none at all for a remark."""
    place = next((word for word in line.what.split() if _PLACE.match(word)), "")
    topic = f"topic {place.rpartition('/')[0]}"
    if place and line.kind in ("invokes", "appends"):
        return (topic, line.who) if line.kind == "invokes" else (line.who, topic)
    if line.kind in ("publishes", "committed"):
        return line.who, "broker"
    return (line.who,) if line.who else ()


def _escaped(text: str) -> str:
    """Text that ends no statement of Mermaid's: `;` and `#` mean something there, and so does the word `end`."""
    text = re.sub("[#;]", lambda found: f"#{ord(found[0])};", _safe(text).strip())
    return re.sub(r"\bend\b", '"end"', text)


def _safe(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _word(value: bytes | None) -> str:
    return re.sub(r"\s", "_", (value or b"-").decode("utf-8", "backslashreplace"))
