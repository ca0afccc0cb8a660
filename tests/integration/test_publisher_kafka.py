"""The publishers on a real Kafka, by either client."""

import asyncio
import os
import subprocess
import sys
from uuid import uuid4

import pytest

from choreo import Event, Publisher
from tests.integration.outbox_stage import ROOT, log_at, logged


class Poured(Event, type="tea.poured", version=1, topic="pours", key="who"):
    """Somebody has tea."""

    who: str
    cup: int


# As a web server's module has it: never closed by hand.
SCRIPT = """
import sys, threading
from choreo.publisher import BlockingPublisher
from tests.integration.test_publisher_kafka import Poured

publisher = BlockingPublisher(topics={"pours": sys.argv[1]})

def pour(who):
    for cup in range(20):
        publisher.publish(Poured(who=who, cup=cup), id=f"{who}-{cup}")

threads = [threading.Thread(target=pour, args=(who,)) for who in ("ann", "ben")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("client", ["kafka", "kafka+confluent"])
async def test_blocking_publisher_ends_with_its_process(kafka: str, client: str) -> None:
    """Threads publish, each in its order, and nothing is left or said at the end."""
    topic = f"pours-{uuid4().hex[:8]}"
    async with log_at(f"kafka://{kafka}", topic) as log:
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", SCRIPT, topic],
            cwd=ROOT,
            env={**os.environ, "CHOREO_BROKER": f"{client}://{kafka}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        events = [Poured.from_payload(each.value or b"") for each in await logged(log, topic)]
    assert {who: [each.cup for each in events if each.who == who] for who in ("ann", "ben")} == {
        "ann": list(range(20)),
        "ben": list(range(20)),
    }


@pytest.mark.parametrize("client", ["kafka", "kafka+confluent"])
async def test_tasks_publish_in_order(kafka: str, client: str) -> None:
    """A thousand at once are in order a key, and those nobody waits for any more are there too."""
    topic = f"pours-{uuid4().hex[:8]}"
    async with log_at(f"kafka://{kafka}", topic) as log:
        async with Publisher(f"{client}://{kafka}", topics={"pours": topic}) as publisher:
            cups = [Poured(who=f"guest-{cup % 7}", cup=cup) for cup in range(1000)]
            tasks = [asyncio.create_task(publisher.publish(each)) for each in cups]
            await tasks[0]
            for task in tasks:
                task.cancel()
        events = [Poured.from_payload(each.value or b"") for each in await logged(log, topic)]
    for number in range(7):
        assert [each.cup for each in events if each.who == f"guest-{number}"] == list(range(number, 1000, 7))
