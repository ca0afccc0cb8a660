"""handlers/ci_pipeline on a real repository: its commits are compiled, tested and built, and what may run runs."""

import subprocess
import sys
from pathlib import Path

from choreo.testing import TestApp
from handlers.ci_pipeline.app import app
from handlers.ci_pipeline.events import DeployApproved, DeployRefused, PipelineEnded, StepFailed
from handlers.ci_pipeline.repository import make
from handlers.ci_pipeline.workshop import LocalWorkshop, Workshop


def runs(file: Path) -> str:
    """What it prints."""
    return subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True).stdout


async def test_each_commit_goes_as_far_as_it_may(tmp_path: Path) -> None:
    """Two fail a step, one is refused, one nobody looks at; the one that is approved early runs in the end."""
    first, wrong, good, broken, last = make(tmp_path / "repository")
    async with TestApp(app, resources={Workshop: LocalWorkshop(tmp_path / "ci")}) as t:
        await t.publish(DeployApproved(sha=good.sha, by="ann"))
        flows = {commit.sha: await t.publish(commit) for commit in (first, wrong, good, broken, last)}
        await t.settle()
        await t.publish(DeployRefused(sha=first.sha, by="bob"))
        await t.publish(DeployApproved(sha=wrong.sha, by="bob"))  # too late for it
        await t.settle()
        assert "pipeline.ended" not in flows[last.sha].types
        await t.advance(days=1)
        said = {
            sha: [record.value or b"" for envelope, record in t.flow_records(flow.reference.correlation_id)
                  if envelope.type == PipelineEnded.event_type]
            for sha, flow in flows.items()
        }  # fmt: skip
        ends = {sha: [PipelineEnded.from_payload(each).outcome for each in values] for sha, values in said.items()}
        assert ends == {
            first.sha: ["refused"],
            wrong.sha: ["failed"],
            good.sha: ["deployed"],
            broken.sha: ["failed"],
            last.sha: ["expired"],
        }
        failed = [
            StepFailed.from_payload(record.value or b"")
            for commit in (wrong, broken)
            for envelope, record in t.flow_records(flows[commit.sha].reference.correlation_id)
            if envelope.type == StepFailed.event_type
        ]
        assert {(each.sha, each.step) for each in failed} == {(wrong.sha, "tests"), (broken.sha, "lint")}
        assert any("AssertionError" in each.output for each in failed)
        assert any("SyntaxError" in each.output for each in failed)
        assert not t.dead_letters
    assert runs(tmp_path / "ci" / "deployed.pyz") == "1000\n"
    built = (tmp_path / "ci" / "built" / f"{good.sha}.pyz").read_bytes()
    assert (tmp_path / "ci" / "deployed.pyz").read_bytes() == built
