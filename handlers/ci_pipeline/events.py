"""What happens to a commit, and what is asked of the workers."""

from typing import Annotated, Literal

from pydantic import Field

from choreo import Command, Event

Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")]
StepName = Literal["lint", "tests", "build"]
Outcome = Literal["deployed", "failed", "refused", "expired"]


class _OfCommit(Event):
    sha: Sha


class CommitPushed(_OfCommit, type="commit.pushed", version=1, topic="commits", key="sha"):
    """It is in the repository."""

    repository: str
    message: str


class RunStep(_OfCommit, Command, type="step.run", version=1, topic="steps", key="job"):
    """Run one step. Keyed by job, not by commit: the steps of a commit are in no order."""

    job: str
    repository: str
    step: StepName


class StepPassed(_OfCommit, type="step.passed", version=1, topic="step-results", key="sha"):
    """It ran, and is fine."""

    step: StepName


class StepFailed(_OfCommit, type="step.failed", version=1, topic="step-results", key="sha"):
    """It ran, and is not; `output`: the end of what it said."""

    step: StepName
    output: str


class ApprovalWanted(_OfCommit, type="deploy.wanted", version=1, topic="deploys-wanted", key="sha"):
    """All steps have passed: somebody is to say yes or no."""

    message: str


class DeployApproved(_OfCommit, type="deploy.approved", version=1, topic="deploy-decisions", key="sha"):
    """Somebody says yes."""

    by: str


class DeployRefused(_OfCommit, type="deploy.refused", version=1, topic="deploy-decisions", key="sha"):
    """Somebody says no."""

    by: str


class DeployCommit(_OfCommit, Command, type="commit.deploy", version=1, topic="deploys", key="repository"):
    """Deploy it. Keyed by repository: one after the other, in the order in which they were approved."""

    repository: str


class CommitDeployed(_OfCommit, type="commit.deployed", version=1, topic="deployed", key="sha"):
    """It runs."""


class PipelineEnded(_OfCommit, type="pipeline.ended", version=1, topic="pipelines", key="sha"):
    """How it ended, and why."""

    outcome: Outcome
    reason: str
