"""What is told of an outcome and what is left out, on histories written by hand and on one of the order flow."""

import re
from collections import Counter
from io import StringIO

import pytest
from rich.console import Console

from choreo.record import Record
from choreo.testing.simulation.faults import KINDS
from choreo.testing.simulation.happenings import Happening
from choreo.testing.simulation.simulation import Outcome
from choreo.testing.simulation.story import appended, tell
from handlers.order_fulfilment.simulation import simulation

START_S = 1_000.0

TWO_FLOWS = """
cook-1 starts cook
cook-2 starts cook
cook-1 assigned asks/0
publisher publishes tea.asked published-0
publisher appends asks/0@0 tea.asked published-0 Ada published-0 11111111
publisher publishes tea.asked published-1
publisher appends asks/0@1 tea.asked published-1 Bob published-1 22222222
cook-1 invokes cook.pour asks/0@0 attempt 1
cook-1 appends pours/1@0 tea.poured published-0 Ada 0a0a 33333333
cook-1 committed cook asks/0@0
cook-1 committed cook asks/0@1
cook-1 invokes cook.pour asks/0@1 attempt 1
cook-1 ack_lost send
cook-1 appends pours/1@1 tea.poured published-1 Bob 0b0b 44444444
cook-1 committed cook asks/0@2
bell-1 invokes bell.ring pours/1@0 attempt 1
bell-1 invokes bell.ring pours/1@1 attempt 1
bell-1 committed bell pours/1@1
"""


def outcome(text: str, *violations: str) -> Outcome:
    """Of a history of `who kind what` lines, a tenth of a second apart."""
    history = []
    for number, line in enumerate(text.strip().splitlines()):
        who, kind, what = [*line.split(" ", 2), ""][:3]
        history.append(Happening(START_S + number / 10, who, kind, what))
    return Outcome(7, violations, (), tuple(history), 0.0, 0, {}, {})


def told(text: str, *violations: str, lines_max: int = 150) -> list[str]:
    """The lines of the story, without their times."""
    return [
        f"{who} {kind} {what}".strip()
        for _, who, kind, what in tell(outcome(text, *violations), lines_max=lines_max).lines
    ]


@pytest.mark.parametrize(
    "violation",
    [
        "lost: asks/0@1 was not handled by cook.pour",
        "lost: asks/0@900 and @1 were not handled by cook.pour",
        "poured_once: Bob got 2 cups",
        "twice: 2 copies of 0b0b from /cook on pours",
        "unfinished_flows: tea published-1 ended at none of its ends",
        "liveness: not at rest 600 s after the last fault: 1 records unread by bell",
    ],
)
def test_a_story_is_of_the_flow_that_went_wrong(violation: str) -> None:
    """Named by a record's place, a key, an id, the flow itself, or as what a group never read."""
    story = tell(outcome(TWO_FLOWS, violation))
    assert story.about == ["published-1"]
    lines = told(TWO_FLOWS, violation)
    assert lines == [
        "cook-1 starts cook",
        "cook-2 starts cook",
        "cook-1 assigned asks/0",
        "publisher publishes tea.asked published-1",
        "publisher appends asks/0@1 tea.asked published-1",
        "cook-1 invokes cook.pour asks/0@1 attempt 1",
        "cook-1 ack_lost send",
        "cook-1 appends pours/1@1 tea.poured published-1",
        "cook-1 committed cook asks/0@2",
        "bell-1 invokes bell.ring pours/1@1 attempt 1",
    ]
    assert story.left_out == 18 - len(lines)


def test_a_violation_that_names_no_flow_is_a_story_of_all() -> None:
    """But for commits that moved nothing."""
    story = tell(outcome(TWO_FLOWS, "undeclared: /cook emitted coffee"))
    assert (story.about, story.left_out) == ([], 1)
    assert "cook-1 committed cook asks/0@0" not in told(TWO_FLOWS)


def test_the_flow_is_that_of_the_checker_the_outcome_is_about() -> None:
    """A violation that only follows from a bug says nothing of it."""
    violations = "lost: asks/0@0 was not handled", "bug: KeyError: 'Bob'"
    assert tell(outcome(TWO_FLOWS, *violations)).about == ["published-1"]


def test_a_commit_that_goes_back_is_told() -> None:
    """It passes the record a second time."""
    text = f"{TWO_FLOWS}cook-2 committed cook asks/0@0\ncook-2 committed cook asks/0@1"
    lines = told(text, "lost: asks/0@0 was not handled by cook.pour")
    assert [line for line in lines if "committed cook" in line] == [
        "cook-1 committed cook asks/0@1",
        "cook-2 committed cook asks/0@0",
        "cook-2 committed cook asks/0@1",
    ]


def test_repeated_lines_become_one_and_a_remark() -> None:
    """Attempts are not told apart; blocks of up to six lines count as well."""
    attempts = "".join(f"cook-1 invokes cook.pour asks/0@1 attempt {n}\n" for n in range(1, 6))
    assert told(attempts) == ["cook-1 invokes cook.pour asks/0@1 attempt 1", "the same 4 times more, until 0.400"]
    storm = "cook-1 revoked asks/0\ncook-2 assigned asks/0\ncook-2 revoked asks/0\ncook-1 assigned asks/0\n"
    assert told("cook-1 starts cook\n" + storm * 5)[1:] == [*storm.splitlines(), "these 4 4 times more, until 2.000"]
    assert len(told(storm * 2)) == 8


def test_a_long_story_is_cut_in_the_middle() -> None:
    """How it began and how it ended stay, and it says how much is not there."""
    text = "".join(f"cook-{n} starts cook\n" for n in range(100))
    lines = told(text, lines_max=30)
    assert len(lines) == 30
    assert lines[9:12] == ["cook-9 starts cook", "71 lines left out, from 1.000 to 8.000", "cook-81 starts cook"]
    assert tell(outcome(text), lines_max=30).left_out == 71
    assert len(told(text, lines_max=100)) == 100


STATEMENT = re.compile(r"    (participant p\d+ as .+|Note over p\d+(,p\d+)?: .+|p\d+->>p\d+: .+)")


def check_mermaid(diagram: str) -> None:
    """Statements of sequence diagrams only, and everybody in them is declared."""
    first, *lines = diagram.splitlines()
    assert first == "sequenceDiagram"
    declared = {line.split()[1] for line in lines if line.startswith("    participant")}
    for line in lines:
        assert STATEMENT.fullmatch(line), line
        assert ";" not in re.sub(r"#\d+;", "", line)
        assert set(re.findall(r"\bp\d+\b", line.partition(":")[0].partition(" as ")[0])) <= declared


def test_a_diagram_has_arrows_between_those_who_take_part() -> None:
    """From the publisher by way of topics to handlers; faults and violations are notes; the idle are not drawn."""
    diagram = tell(outcome(TWO_FLOWS, "poured_once: Bob got 2 cups")).mermaid()
    check_mermaid(diagram)
    ids = {name: id_ for id_, name in re.findall(r"participant (p\d+) as (.+)", diagram)}
    assert set(ids) == {"publisher", "broker", "cook-1", "bell-1", "topic asks", "topic pours"}
    for said in (
        f"{ids['publisher']}->>{ids['topic asks']}: 0.600 appends asks/0@1 tea.asked published-1",
        f"{ids['topic asks']}->>{ids['cook-1']}: 1.100 invokes cook.pour asks/0@1 attempt 1",
        f"Note over {ids['cook-1']}: FAULT 1.200 ack_lost send",
        f"{ids['cook-1']}->>{ids['topic pours']}: 1.300 appends pours/1@1 tea.poured published-1",
        f"{ids['cook-1']}->>{ids['broker']}: 1.400 committed cook asks/0@2",
        "violated: poured_once: Bob got 2 cups",
    ):
        assert f"{said}\n" in diagram


def test_nothing_that_is_said_ends_a_statement() -> None:
    """Semicolons, `#`, line ends and the word `end` mean something to Mermaid, control characters to a terminal."""
    story = tell(outcome("cook-1 ack_lost end; #1 \x1b[31m", "lost: a;\nb"))
    check_mermaid(story.mermaid())
    assert 'FAULT 0.000 ack_lost "end"#59; #35;1 ?[31m' in story.mermaid()
    assert "\x1b" not in story.text().plain
    check_mermaid(tell(outcome("")).mermaid())


def test_colours_are_for_terminals_only() -> None:
    """A file gets plain columns, with a `!` before faults."""
    text = tell(outcome(TWO_FLOWS, "poured_once: Bob got 2 cups")).text()
    file, terminal = StringIO(), StringIO()
    Console(file=file, soft_wrap=True).print(text, end="")
    Console(file=terminal, soft_wrap=True, force_terminal=True, color_system="standard").print(text, end="")
    assert "\x1b[" in terminal.getvalue()
    assert file.getvalue() == text.plain
    assert "\x1b" not in text.plain
    assert "!     1.200 cook-1     ack_lost send\n" in text.plain


def test_a_record_is_noted_in_words() -> None:
    """Whatever its key is; two records that differ in their values only are noted differently."""
    headers = (("ce_type", b"tea.asked"), ("ce_correlationid", b"published-1"), ("ce_id", b"0b0b"))
    record = Record("asks", 0, 1, b"Bob Ross\n\xff", b"{}", headers, 0)
    words = appended(record).split(" ")
    assert words[:-1] == ["asks/0@1", "tea.asked", "published-1", "Bob_Ross_\\xff", "0b0b"]
    assert appended(record._replace(value=b"[]")).split(" ")[:-1] == words[:-1]
    assert appended(record._replace(value=b"[]")) != appended(record)
    assert appended(Record("asks", 0, 1, None, None, (), 0)).split(" ")[:-1] == ["asks/0@1", "-", "-", "-", "-"]


def test_a_seed_of_the_order_flow_is_told() -> None:
    """Every fault of it is there, and it is drawn."""
    found = simulation.run(1)
    story = tell(found, lines_max=10_000)
    noted = Counter(each.kind for each in found.history if each.kind in KINDS)
    assert noted
    assert Counter(each.kind for each in story.lines if each.kind in KINDS) == noted
    assert story.text().plain.count("\n!") == noted.total()
    check_mermaid(story.mermaid())
