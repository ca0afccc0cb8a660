"""The pipeline and its workers, for `choreo dev handlers.ci_pipeline.app:app`."""

from datetime import timedelta
from pathlib import Path

from choreo import App, Flow, Service

from .events import CommitDeployed, CommitPushed, DeployCommit, PipelineEnded, RunStep, StepFailed, StepPassed
from .process import Pipeline
from .workshop import LocalWorkshop, Workshop

workers, deployer = Service("workers"), Service("deployer")


@workers.handler(RunStep)
async def run(asked: RunStep, workshop: Workshop) -> StepPassed | StepFailed:
    """Any worker runs any step; one that dies is replaced, and the step is run again."""
    fine, output = await workshop.run(asked.repository, asked.sha, asked.step)
    if fine:
        return StepPassed(sha=asked.sha, step=asked.step)
    return StepFailed(sha=asked.sha, step=asked.step, output=output)


@deployer.handler(DeployCommit)
async def deploy(asked: DeployCommit, workshop: Workshop) -> CommitDeployed:
    """One after the other for each repository: they are one lane."""
    await workshop.deploy(asked.repository, asked.sha)
    return CommitDeployed(sha=asked.sha)


pipeline = Flow("pipeline", starts=CommitPushed, ends=PipelineEnded, deadline=timedelta(days=4))
app = App(
    Pipeline,
    workers,
    deployer,
    flows=[pipeline],
    resources={Workshop: LocalWorkshop(Path(".choreo/ci"))},
)
