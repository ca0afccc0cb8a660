"""The pipeline in a simulated world, a day of which takes 17 s.

`choreo simulate handlers.ci_pipeline.simulation:simulation`
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from choreo import Event
from choreo.testing.simulation import Simulation, World
from choreo.testing.simulation.instances import unended

from .app import app
from .events import (
    ApprovalWanted,
    CommitDeployed,
    CommitPushed,
    DeployApproved,
    DeployCommit,
    DeployRefused,
    Outcome,
    PipelineEnded,
    RunStep,
    StepName,
    StepPassed,
)
from .process import STEPS
from .workshop import Workshop

HASTEN = 5_000.0
COMMITS = 20


class SimulatedWorkshop:
    """A `Workshop` that remembers what it deployed; whether a step passes is decided by the commit."""

    def __init__(self) -> None:
        self.deployed: list[str] = []

    async def run(self, repository: str, sha: str, step: StepName) -> tuple[bool, str]:
        """See `Workshop.run`."""
        await asyncio.sleep(0.2 + 0.01 * sha256(f"{sha} {step}".encode()).digest()[1])
        return passes(sha, step), "what it said"

    async def deploy(self, repository: str, sha: str) -> None:
        """See `Workshop.deploy`."""
        self.deployed.append(sha)


def passes(sha: str, step: StepName) -> bool:
    """Whether it does."""
    return sha256(f"{sha} {step}".encode()).digest()[0] >= 25


def commits(chance: random.Random) -> Sequence[Event]:
    """Commits and what somebody says to them, now and then before the steps have run, or never."""
    events: list[Event] = []
    for number in range(COMMITS):
        sha = f"{chance.getrandbits(160):040x}"
        events.append(CommitPushed(sha=sha, repository=f"repository-{number % 2}", message=f"change {number}"))
        said = chance.random()
        if said < 0.6:
            events.append(DeployApproved(sha=sha, by="ann"))
        elif said < 0.8:
            events.append(DeployRefused(sha=sha, by="ann"))
    return events


def ends_as_it_must(world: World) -> Iterator[str]:
    """Each commit ends once, as its steps and whoever decided say, or expires; what runs was to run."""
    said: dict[str, Outcome] = {}
    for event in world.published.values():
        if isinstance(event, (DeployApproved, DeployRefused)):
            said[event.sha] = "deployed" if isinstance(event, DeployApproved) else "refused"
    ends: dict[str, set[str]] = defaultdict(set)
    for record, envelope in world.events():
        if envelope is not None and (envelope.source, envelope.type) == ("/pipeline", PipelineEnded.event_type):
            ended = PipelineEnded.from_payload(record.value or b"")
            ends[ended.sha].add(ended.outcome)
    deployed = set(world.resources[Workshop].deployed)
    for commit in world.published.values():
        if not isinstance(commit, CommitPushed):
            continue
        sha, fine = commit.sha, all(passes(commit.sha, step) for step in STEPS)
        wanted = said.get(sha, "expired") if fine else "failed"
        if len(ends[sha]) != 1 or not ends[sha] <= {wanted, "expired"}:
            yield f"{sha} ended as {sorted(ends[sha]) or 'nothing'}, and was to be {wanted}"
        if sha in deployed and wanted != "deployed":
            yield f"{sha} was deployed, and was to be {wanted}"
        if "deployed" in ends[sha] and sha not in deployed:
            yield f"{sha} is said to run, and does not"


def in_order_where_it_must_be(world: World) -> Iterator[str]:
    """All steps are asked for at once, a decision behind the last of them, the deploy behind the decision.

    Question and deploy are on topics of their own, and between those there is no order. Commits of one repository are
    deployed one after the other, as they were approved; of one that is deployed again after a crash the first time
    counts.
    """
    first_ms: dict[tuple[str, str], int] = {}
    commands: dict[str, list[str]] = defaultdict(list)
    for record, envelope in world.events():
        if envelope is None or envelope.type not in _OF_COMMIT or envelope.source == "/stranger":
            continue
        event = _OF_COMMIT[envelope.type].from_payload(record.value or b"")
        what = f"{envelope.type} {event.step}" if isinstance(event, (RunStep, StepPassed)) else envelope.type
        first_ms.setdefault((event.sha, what), record.timestamp_ms)
        if isinstance(event, DeployCommit) and event.sha not in commands[event.repository]:
            commands[event.repository].append(event.sha)
    for (sha, what), at_ms in first_ms.items():
        befores = [f"{StepPassed.event_type} {step}" for step in STEPS] if what == ApprovalWanted.event_type else []
        befores += [DeployApproved.event_type] if what == DeployCommit.event_type else []
        befores += [DeployCommit.event_type] if what == CommitDeployed.event_type else []
        for before in befores:
            if first_ms.get((sha, before), 1 << 62) > at_ms:
                yield f"{sha}: {what} came before {before}"
    for sha in {sha for sha, _ in first_ms}:
        asked = [step for step in STEPS if (sha, f"{RunStep.event_type} {step}") in first_ms]
        if len(asked) != len(STEPS):
            yield f"{sha}: only {asked} were asked for"
        if (sha, DeployCommit.event_type) in first_ms and (sha, ApprovalWanted.event_type) not in first_ms:
            yield f"{sha}: nobody was asked"
    done = list(dict.fromkeys(world.resources[Workshop].deployed))
    for repository, shas in commands.items():
        if (found := [sha for sha in done if sha in shas]) != shas:
            yield f"{repository}: {shas} were to be deployed in this order, and were in that: {found}"


_OF_COMMIT: Mapping[str, type[Any]] = {
    event.event_type: event
    for event in (RunStep, StepPassed, ApprovalWanted, DeployApproved, DeployCommit, CommitDeployed)
}


simulation = Simulation(
    app,
    commits,
    resources={Workshop: SimulatedWorkshop()},
    checkers=[ends_as_it_must, in_order_where_it_must_be, unended],
    hasten=HASTEN,
)
