"""What `choreo run` costs when nothing happens, and how soon it handles its first event. Prints JSON.

    python scripts/measure_run.py [--kafka HOST:PORT] [--idle-s 10] [--rounds 3]

Measured from outside: one process with one service, as it is deployed and as the targets have it, and one with four.
"""

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PREFIX = f"measured-{uuid4().hex[:8]}."
os.environ["CHOREO_TOPIC_PREFIX"] = PREFIX
os.environ["PYTHONPATH"] = str(ROOT)

from choreo.opening import open_transport  # noqa: E402
from choreo.publisher import Publisher  # noqa: E402
from choreo.runtime.clock import SystemClock  # noqa: E402
from choreo.telemetry.setup import instrument_from_environment  # noqa: E402
from handlers.order_fulfilment.app import PROVIDER_DB, app  # noqa: E402
from handlers.order_fulfilment.events import OrderPlaced  # noqa: E402
from handlers.order_fulfilment.orders import read, shipped_lines  # noqa: E402

TARGET = "handlers.order_fulfilment.app:app"
FIRST_S_MAX = 60.0


def cpu_s(pid: int) -> float:
    """Processor time a process has used, all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def handled(path: Path) -> int:
    """Units finished, by the store's keys."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        try:
            return int(db.execute("SELECT COUNT(*) FROM choreo_key WHERE done = 1").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


async def publish(broker: str) -> None:
    """One order, into topics that are created if they are missing."""
    transport = open_transport(broker)
    await transport.open()
    try:
        await transport.create_topics(app.topic_specs())
        instrument = instrument_from_environment(app.name, system=transport.system)
        publisher = Publisher(transport, instrument, SystemClock(), topic=app.topic, source=f"/{app.name}")
        order = next(content for _, content in read(shipped_lines()) if isinstance(content, OrderPlaced))
        await publisher.publish(order.model_copy(update={"order_id": uuid4()}))
    finally:
        await transport.close()


def measure(broker: str, folder: Path, idle_s: float, services: Sequence[str]) -> dict[str, float]:
    """One start, one event that waits for it already, then nothing for `idle_s`."""
    asyncio.run(publish(broker))
    command = [sys.executable, "-m", "choreo", "run", TARGET, "--broker", broker]
    command += [part for service in services for part in ("--service", service)]
    store = folder / "flow.db"
    if broker.startswith("kafka:"):
        command += ["--store", f"sqlite:{folder}/{{service}}.db"]
        store = folder / "inventory.db"
    before = handled(store)
    with open(folder / "run.log", "ab") as output:
        begun_s = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        while handled(store) == before:
            if process.poll() is not None or time.monotonic() - begun_s > FIRST_S_MAX:
                raise SystemExit(f"nothing was handled:\n{(folder / 'run.log').read_text()}")
            time.sleep(0.01)
        first_s = time.monotonic() - begun_s
        time.sleep(5.0)  # the flow comes to its end
        from_s, used_s = time.monotonic(), cpu_s(process.pid)
        time.sleep(idle_s)
        share = (cpu_s(process.pid) - used_s) / (time.monotonic() - from_s)
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    finally:
        process.kill()
        process.wait()
    return {"first_event_s": round(first_s, 3), "idle_share_of_core": round(share, 4), "exit_code": code}


def main() -> int:
    """Measure, print, and say by the exit code whether one service in a process meets the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka", help="bootstrap servers; without it only the embedded broker is measured")
    parser.add_argument("--idle-s", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, object] = {"targets": {"idle_share_of_core": 0.02, "first_event_s": 2.0}}
    missed = False
    for kind in ["embedded", *(["kafka"] if arguments.kafka else [])]:
        for services in (["inventory"], list(app.services)):
            rounds = []
            for _ in range(arguments.rounds):
                with tempfile.TemporaryDirectory() as name:
                    os.environ[PROVIDER_DB] = f"{name}/provider.db"
                    broker = f"kafka://{arguments.kafka}" if kind == "kafka" else f"embedded:{name}/flow.db"
                    rounds.append(measure(broker, Path(name), arguments.idle_s, services))
            first_s = statistics.median(each["first_event_s"] for each in rounds)
            idle = statistics.median(each["idle_share_of_core"] for each in rounds)
            label = f"{kind}, {'one service' if len(services) == 1 else 'four services'}"
            found[label] = {"first_event_s": first_s, "idle_share_of_core": idle, "rounds": rounds}
            missed = missed or (len(services) == 1 and (first_s > 2.0 or idle > 0.02))
    print(json.dumps(found, indent=2))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
