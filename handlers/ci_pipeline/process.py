"""One commit: parallel where it may be, in order where it must."""

from datetime import timedelta
from typing import get_args

from choreo import ProcessManager

from .events import (
    ApprovalWanted,
    CommitDeployed,
    CommitPushed,
    DeployApproved,
    DeployCommit,
    DeployRefused,
    PipelineEnded,
    RunStep,
    StepFailed,
    StepName,
    StepPassed,
)

DAY = timedelta(days=1)
STEPS: tuple[StepName, ...] = get_args(StepName)


class Pipeline(ProcessManager, version=1, by="sha"):
    """What is to be deployed, and which steps are still to pass."""

    sha: str
    repository: str
    message: str
    left: tuple[StepName, ...] = STEPS


checking, asking, deploying = Pipeline.state("checking"), Pipeline.state("asking"), Pipeline.state("deploying")
ended = Pipeline.final("ended")


@Pipeline.starts(CommitPushed, to=checking)
def pushed(commit: CommitPushed) -> Pipeline:
    """It begins."""
    return Pipeline(sha=commit.sha, repository=commit.repository, message=commit.message)


@checking.entry
def run(self: Pipeline) -> list[RunStep]:
    """All steps at once."""
    jobs = [(f"{self.sha}-{step}", step) for step in self.left]
    return [RunStep(job=job, sha=self.sha, repository=self.repository, step=step) for job, step in jobs]


def is_last(self: Pipeline, passed: StepPassed) -> bool:
    """Whether all others have passed."""
    return set(self.left) <= {passed.step}


@checking.on(StepPassed)
@checking.on(StepPassed, to=asking, guard=is_last)  # the lower one is the first rule
def passed(self: Pipeline, passed: StepPassed) -> None:
    """One less."""
    self.left = tuple(step for step in self.left if step != passed.step)


@checking.on(StepFailed, to=ended)
def failed(self: Pipeline, failed: StepFailed) -> PipelineEnded:
    """Nobody waits for the others."""
    return PipelineEnded(sha=self.sha, outcome="failed", reason=failed.step)


@asking.entry
def ask(self: Pipeline) -> ApprovalWanted:
    """Somebody is to decide; whoever was quicker than the steps has done so already."""
    return ApprovalWanted(sha=self.sha, message=self.message)


@asking.on(DeployApproved, to=deploying)
def approve(self: Pipeline, approved: DeployApproved) -> None:
    """Yes."""


@asking.on(DeployRefused, to=ended)
def refuse(self: Pipeline, refused: DeployRefused) -> PipelineEnded:
    """No."""
    return PipelineEnded(sha=self.sha, outcome="refused", reason=refused.by)


@deploying.entry
def deploy(self: Pipeline) -> DeployCommit:
    """Its turn comes behind those of its repository that were approved before."""
    return DeployCommit(sha=self.sha, repository=self.repository)


@deploying.on(CommitDeployed, to=ended)
def deployed(self: Pipeline, deployed: CommitDeployed) -> PipelineEnded:
    """It runs."""
    return PipelineEnded(sha=self.sha, outcome="deployed", reason="")


@checking.after(DAY, to=ended)
@asking.after(DAY, to=ended)
@deploying.after(DAY, to=ended)
def expire(self: Pipeline) -> PipelineEnded:
    """No worker or nobody answered for a day."""
    return PipelineEnded(sha=self.sha, outcome="expired", reason=f"left: {', '.join(self.left)}")
