"""docs/start.md is done from nothing: a new virtual environment, a new project, a Kafka, a flow, and its trace."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.kafka.jars import KafkaError, jars
from deploy.kafka.kafka import LocalKafka
from tests.kafka_server import unavailable
from tests.test_incident import BLOCK, ROOT, plain

PAGE = (ROOT / "docs" / "start.md").read_text()
WAIT_S = 240.0
MARK = "::: "


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Path]:
    """A folder with the checkout in it as `choreo`; no Kafka of the page's is left running."""
    try:
        jars()
    except KafkaError as error:
        unavailable(f"no Kafka to start with: {error}")
    (tmp_path / "choreo").symlink_to(ROOT)
    yield tmp_path
    data = tmp_path / "shop-orders" / ".choreo" / "kafka"
    if data.exists():
        LocalKafka(data).stop()


def a_newcomers_environment() -> dict[str, str]:
    """Nothing of choreo's is set; what pip would fetch from an index is there already, but for choreo itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHOREO_", "OTEL_", "PYTEST_"))}
    return kept | {
        "CHOREO_SEEDS": "5",  # of the project's simulation: what it finds is tested elsewhere
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_BUILD_ISOLATION": "false",  # which means: do not isolate
        "PIP_NO_INDEX": "1",
        "PYTHONPATH": sysconfig.get_path("purelib"),  # without its .pth files, so without this checkout
    }


@pytest.mark.slow
def test_from_nothing_to_a_traced_flow_on_kafka(beside: Path) -> None:
    """Every command of the page in its order, in one shell; what it says a command prints, the command prints."""
    script, shown = ["set -euo pipefail"], {}
    for _, language, text in BLOCK.findall(PAGE):
        if language == "sh":
            for line in text.splitlines():
                line = line.replace("CORRELATION_ID", "$(cut -d' ' -f6 said)")  # as publish printed it
                line += " | tee said" if line.startswith("choreo publish") else ""
                script += [f"echo '{MARK}{len(script)}'", line]
        else:
            shown[len(script) - 2] = text
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=beside,
        env=a_newcomers_environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = dict(re.findall(rf"^{MARK}(\d+)\n(.*?)(?=^{MARK}|\Z)", done.stdout, re.DOTALL | re.MULTILINE))
    assert len(shown) == 2
    for number, text in shown.items():
        assert plain(said[str(number)]) == plain(text)
    assert "4 passed" in done.stdout
    assert (beside / ".venv" / "bin" / "choreo").exists()
