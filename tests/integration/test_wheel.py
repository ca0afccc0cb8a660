"""What is installed is what was tested: the demo runs from the built wheel, without the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORDERS = 40


def test_demo_runs_from_the_wheel(tmp_path: Path) -> None:
    """The wheel carries the order flow, and nothing outside of the package."""
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*build, str(ROOT)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("choreo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    tops = {path.name for path in (tmp_path / "site").iterdir()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"choreo"}

    lines = (ROOT / "handlers/order_fulfilment/orders.jsonl").read_bytes().split(b"\n")[:ORDERS]
    (tmp_path / "orders.jsonl").write_bytes(b"\n".join(lines))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import choreo; print(choreo.__file__); from choreo.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, "demo", "--json", "--orders", "orders.jsonl"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=120,
        check=True,
    )
    where, _, report = ran.stdout.partition(b"\n")
    assert where.startswith(str(tmp_path).encode())
    assert json.loads(report)["ok"] is True
