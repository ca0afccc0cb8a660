"""Where the CPU time of an event goes: samples of running loops, shared out by package."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from scripts.bench.cost import EVENTS, name_of
from scripts.bench.markdown import prose, table
from scripts.bench.running import Meter, Run
from scripts.bench.stage import ROOT, NotMeasured, Stage, child, receiver, say

TITLE = "Profiles"
ROWS = (
    ("changelog", "kafka", "", "order"),
    ("changelog", "kafka", "100", "order"),
    ("sqlite", "kafka", "", "order"),
    ("postgres", "kafka", "", "order"),
    ("redis", "kafka", "", "order"),
    ("changelog", "kafka+confluent", "", "order"),
    ("changelog", "kafka", "", "wait"),
    ("changelog", "kafka+confluent", "", "wait"),
)
INTERVAL_S = 0.001
LISTED = 40
GROUPS = {
    "choreo/core/": "choreo/core",
    "choreo/runtime/": "choreo/runtime",
    "choreo/transports/": "choreo/transports",
    "choreo/stores/": "choreo/stores",
    "choreo/sqlite/": "choreo/stores",
    "choreo/telemetry/": "choreo/telemetry",
    "choreo/": "choreo, the rest (events, envelope, ids)",
    "scripts/bench/": "the handler",
    "aiokafka/": "aiokafka",
    "confluent_kafka/": "confluent_kafka",
    "pydantic/": "pydantic",
    "psycopg": "psycopg",
    "redis/": "redis",
    "opentelemetry/": "opentelemetry",
    "asyncio/": "asyncio",
}
IN_C = {"Schema": "pydantic", "socket.": "sockets"}
IDLE = ("epoll.poll", "kqueue.control", "select.select")


def measure(stage: Stage) -> dict[str, Any]:
    """One run each; `text` is the list of functions."""
    events = stage.scaled(EVENTS, 2_000)
    topics = stage.filled({"orders": (4, events, 100, 0)})
    out = stage.topic("payments")
    found: dict[str, Any] = {}
    for store, client, telemetry, work in stage.some(ROWS):
        name = name_of(store, client, telemetry) + (", waiting" if work == "wait" else "")
        try:
            url, file = stage.store(store), str(stage.folder / "profile.json")
            run = Run("choreo", stage.kafka, topics["orders"], out, events, client, url, work, telemetry=telemetry)
            run = run._replace(profile=file, group=stage.name("group"))
            if telemetry:
                with receiver() as (environment, _):
                    child("run", run, environment)
            else:
                child("run", run)
        except NotMeasured as error:
            say(f"profiles: {name}: not measured: {error}")
            continue
        stage.drop_own(run)
        with open(file) as read:
            found[name] = json.load(read)
        say(f"profiles: {name}: {told(found[name]['shares'])}")
    stage.drop(lambda name: name in (*topics.values(), out))
    return found


def profiled(run: Callable[[], object], path: str) -> None:
    """Sample the main thread of this process while it runs; shares by package and a list of functions, as JSON."""
    from pyinstrument import Profiler

    profiler = Profiler(interval=INTERVAL_S, async_mode="disabled")
    Meter.began, Meter.ended = profiler.start, profiler.stop
    run()
    assert profiler.last_session is not None
    own: Counter[tuple[str, str, str]] = Counter()
    took_s = profiler.last_session.duration
    _add(profiler.last_session.root_frame(trim_stem=False), "", own)
    busy_s = sum(own.values())
    shares: Counter[str] = Counter()
    functions: Counter[tuple[str, str]] = Counter()
    for (group, function, file), seconds in own.items():
        shares[group] += seconds
        functions[function, file] += seconds
    lines = [
        f"busy for {busy_s:.1f} of {took_s:.1f} s",
        f"{'share':>6}  function, by the time in itself; one in C with the file that calls it",
    ]
    for (function, file), seconds in functions.most_common(LISTED):
        lines.append(f"{seconds / busy_s:6.1%}  {function}  {file}")
    found = {
        "busy": busy_s / took_s,
        "shares": {name: seconds / busy_s for name, seconds in shares.most_common()},
        "text": "\n".join(lines),
    }
    with open(path, "w") as written:
        json.dump(found, written)


def _add(frame: Any, caller: str, own: Counter[tuple[str, str, str]]) -> None:
    """The time of each function by itself, without waiting for sockets; by group, name and file.

    `caller`: the file from which a function in C, or one that was made of a text, is called.
    """
    if frame is None or frame.function in IDLE:
        return
    below = [each for each in frame.children if not each.is_synthetic]
    file = frame.file_path or ""
    file = caller if not file or file.startswith("<") else _short(file)
    group = next((name for part, name in IN_C.items() if frame.function.startswith(part)), None)
    group = group or next((name for part, name in GROUPS.items() if file.startswith(part)), "Python, the rest")
    own[group, frame.function, file] += max(0.0, frame.time - sum(each.time for each in below))
    for each in below:
        _add(each, file, own)


def _short(file: str) -> str:
    """From the package on: a path says how somebody named the folder it is in."""
    for mark in ("/site-packages/", f"/python{sys.version_info.major}.{sys.version_info.minor}/"):
        if mark in file:
            return file.rpartition(mark)[2]
    return file.removeprefix(f"{ROOT}/")


def told(shares: dict[str, float], count: int = 4) -> str:
    """The largest, in words."""
    largest = sorted(shares.items(), key=lambda each: -each[1])[:count]
    return ", ".join(f"{name} {share:.0%}" for name, share in largest)


def lines(found: dict[str, Any]) -> list[str]:
    """Shares of each row."""
    text = """Samples of the process's main thread, every millisecond, without its waiting for sockets. Time in C
    is counted for the package that calls it, but for pydantic's and the sockets'. The threads of SQLite and of
    librdkafka are not in it. The functions are in `profiles/` beside this page's figures."""
    files = {name: f"[{name}](performance/profiles/{file_of(name)})" for name in found}
    rows = [(files[name], f"{each['busy']:.0%}", told(each["shares"], 8)) for name, each in found.items()]
    return [*prose(text), *table(("row", "busy", "shares of the time it was busy"), rows)]


def file_of(name: str) -> str:
    """Of the list of functions of a row."""
    return name.replace("/", "-").replace("@", "-").replace(", ", "-") + ".txt"
