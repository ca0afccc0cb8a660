"""Every process of the order flow restarted under load, on Kafka and PostgreSQL: nothing lost, doubled, overtaken.

`RESTART_WAYS`: of `restart_stage.WAYS`, or `all`; `RESTART_STORES`: `postgresql`, `changelog` or both;
`RESTART_PROCESSES` of a service, 1 unless given; `RESTART_AT_ONCE`: services that restart a process at the same time;
`RESTART_CALM_S`; `RESTART_WRITE=1` writes docs/deploying.md.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from choreo.record import Record
from tests.integration.restart_outcome import Outcome, Wait, waits
from tests.integration.restart_page import Run, markdown, written
from tests.integration.restart_stage import WAYS, Stage

NAMES = os.environ.get("RESTART_WAYS", "aiokafka").split()
STORES = os.environ.get("RESTART_STORES", "postgresql").split()
PROCESSES = int(os.environ.get("RESTART_PROCESSES", "1"))
AT_ONCE = int(os.environ.get("RESTART_AT_ONCE", "4"))
CALM_S = float(os.environ.get("RESTART_CALM_S", "1"))
PER_S, PARTITIONS = 5.0, 4
RUN_S_MAX = 600.0


@pytest.mark.slow
async def test_every_process_is_restarted(kafka: str, postgres: str, tmp_path: Path) -> None:
    """Whatever may not be found is not; and each of it would have been."""
    runs = list[Run]()
    for store in STORES:
        for way in WAYS if NAMES == ["all"] else NAMES:
            folder = tmp_path / str(len(runs))
            folder.mkdir()
            stage = Stage(folder, kafka, postgres, WAYS[way], per_s=PER_S, changelog=store == "changelog")
            async with asyncio.timeout(RUN_S_MAX):
                runs.append(Run(WAYS[way].title, store, await rolled(stage), stage.restarts, stage.customers.calm_ms))
            print(runs[-1].pauses(), runs[-1].counts(), sep="\n")
    for run in runs:
        assert run.outcome.problems() == [], f"{run.way}, {run.store}"
        assert len(run.restarts) == 4 * PROCESSES
    section = markdown(runs, processes=PROCESSES, partitions=PARTITIONS, per_s=PER_S, calm_s=CALM_S)
    notices_what_is_wrong(runs[0].outcome)
    if os.environ.get("RESTART_WRITE") == "1":
        written(section)


async def rolled(stage: Stage) -> Outcome:
    """One rolling restart, and what is there when all has come to its end."""
    async with stage.prepared(processes=PROCESSES, partitions=PARTITIONS):
        async with stage.customers.coming(calm_s=CALM_S):
            await stage.roll(at_once=AT_ONCE)
        await stage.settled()
        await stage.stop()
        return await stage.outcome()


def notices_what_is_wrong(outcome: Outcome) -> None:
    """With one thing planted in what a run has left."""
    shipped = next(  # in the topic of what caused it
        each
        for each in outcome.facts.values()
        if each.envelope.type == "order.shipped"
        and outcome.facts[each.envelope.causationid or ""].envelope.type == "shipment.delayed"
    )
    rest = without(outcome.records, shipped.envelope.id)
    again = shipped.record._replace(headers=with_id(shipped.record.headers, "another"), offset=2**40)
    told = {each.id: each for each in outcome.told}
    one, two = next((told[f"{order}/0"], told[f"{order}/1"]) for order in outcome.presses)
    swapped = [each._replace(id={one.id: two.id, two.id: one.id}.get(each.id, each.id)) for each in outcome.told]
    stock = [row._replace(issued=row.issued + 1, available=row.available - 1) for row in outcome.stock[:1]]
    charge = next(each for each in outcome.statement if each.effect == "charge")
    wrong = {
        "has no end": replace(outcome, records=rest).lost(),
        "is not on the log": replace(outcome, records=without(outcome.records, one.id)).lost(),
        f"told of {one.id}": replace(outcome, told=[each for each in outcome.told if each.id != one.id]).lost(),
        "2 times": replace(outcome, records=[*outcome.records, again]).doubled(),
        "were shipped": replace(outcome, stock=stock).doubled(),
        "lines are held": replace(outcome, held=1).doubled(),
        "'charge')": replace(outcome, statement=[*outcome.statement, charge]).doubled(),
        "presses": replace(outcome, told=swapped).reordered(),
        "its cause": replace(outcome, records=[*rest, shipped.record._replace(offset=-1)]).reordered(),
    }
    for said, found in wrong.items():
        assert any(said in each for each in found), f"{said}: {found}"


def without(records: Sequence[Record], id_: str) -> list[Record]:
    """As if the event had never been published, however often it was."""
    return [each for each in records if dict(each.headers)["ce_id"] != id_.encode()]


def with_id(headers: Sequence[tuple[str, bytes | None]], id_: str) -> tuple[tuple[str, bytes | None], ...]:
    """As of an event of another id."""
    return tuple((name, id_.encode() if name == "ce_id" else value) for name, value in headers)


def test_waits_are_of_partitions_that_have_something_to_do() -> None:
    """From its coming if nothing else was there, else from when the last one before was done."""
    assert waits([]) == []
    assert waits([(0, 5), (100, 110)]) == [Wait(0, 5), Wait(100, 110)]
    assert waits([(0, 5), (1, 50), (2, 51), (60, 60)]) == [Wait(0, 5), Wait(5, 50), Wait(50, 51), Wait(60, 60)]
    assert waits([(10, 9)]) == [Wait(10, 10)]
