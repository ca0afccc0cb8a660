"""The pipeline in a simulated world, a day of which takes 17 s.

`choreo simulate handlers.ci_pipeline.simulation:simulation`
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import sha256

from choreo import Event
from choreo.testing.simulation import Simulation, World

from .app import app
from .events import CommitPushed, DeployApproved, DeployRefused, PipelineEnded, StepName
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


def deployed_only_when_it_may(world: World) -> Iterator[str]:
    """Each commit ends once; what runs has passed all steps and was approved, and what failed a step does not run."""
    approved = {event.sha for event in world.published.values() if isinstance(event, DeployApproved)}
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
        if len(ends[sha]) != 1:
            yield f"{sha} ended as {sorted(ends[sha]) or 'nothing'}"
        if sha in deployed and not (fine and sha in approved):
            yield f"{sha} was deployed, and was {'not approved' if fine else 'not fine'}"
        if "deployed" in ends[sha] and sha not in deployed:
            yield f"{sha} is said to run, and does not"
        if "failed" in ends[sha] and fine:
            yield f"{sha} is said to have failed, and passes all steps"


simulation = Simulation(
    app,
    commits,
    resources={Workshop: SimulatedWorkshop()},
    checkers=[deployed_only_when_it_may],
    hasten=HASTEN,
)
