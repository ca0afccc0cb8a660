"""What happens to processes by and by, whatever they are doing: once a virtual second each may be struck."""

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from choreo.app import App
from choreo.record import ProducerRecord
from choreo.testing.simulation.member import Member
from choreo.testing.simulation.process import Process

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

PAUSE_S, CUT_S = (7.0, 40.0), (0.5, 15.0)
SKEW_S = 600.0
KINDS = (
    "crash",
    "pause",
    "hang",
    "cut",
    "store_down",
    "rebalance",
    "clock_skew",
    "poison",
    "transaction_timeout",
    "deploy",
)
POISON = (
    ("not JSON", b"\xff{"),
    ("no such order", b'{"order_id": 7}'),
    ("nothing", b""),
    ("deep", b"[" * 5_000),
)


class Nemesis:
    """Strikes the members of one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._deployed: dict[str, App] = dict.fromkeys(world.app.services, world.app)
        self._paused: list[Process] = []
        self._deploying: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        world = self._world
        while True:
            await asyncio.sleep(1.0)
            for member in list(world.members.values()):
                kind = world.dice.fault(f"{member.name}/second", KINDS)
                if kind is not None and member.process is not None:
                    self._strike(kind, member, member.process)

    def heal(self) -> None:
        """Let everybody go on and reach everything; a version that is being rolled out comes to be everywhere."""
        for process in self._paused:
            self._go_on(process)
        for member in self._world.members.values():
            if member.process is not None:
                process, now_s = member.process, self._world.loop.now_s
                process.cut_until_s = min(process.cut_until_s, now_s)
                process.store_down_until_s = min(process.store_down_until_s, now_s)
                process.skew_s = 0.0
        if self._world.upgrade is not self._world.app:
            for service in self._deployed:
                self._deployed[service] = self._world.upgrade
                self._begin(self._roll_out(service))

    def _strike(self, kind: str, member: Member, process: Process) -> None:
        world, place = self._world, f"{member.name}/{kind}"
        now_s = world.loop.now_s
        match kind:
            case "crash":
                world.note(process, kind, "")
                world.crash(process)
            case "pause":
                for_s = world.dice.between(place, *PAUSE_S)
                world.note(process, kind, f"{for_s:.1f} s")
                process.life.stop()
                self._paused.append(process)
                world.loop.call_later(for_s, self._go_on, process, context=world.context)
            case "hang":
                others = [each for each in world.of(member.service) if each is not member]
                if others and all(each.process and not each.process.hangs for each in others):
                    world.note(process, kind, "")
                    process.hangs = True
                    process.life.stop()
            case "cut" | "store_down":
                until_s = now_s + world.dice.between(place, *CUT_S)
                world.note(process, kind, f"{until_s - now_s:.1f} s")
                if kind == "cut":
                    process.cut_until_s = until_s
                else:
                    process.store_down_until_s = until_s
            case "rebalance":
                group = world.app.services[member.service].group
                world.note("broker", kind, group)
                if group in world.cluster.groups:
                    world.cluster.groups[group].shuffle(now_s)
            case "clock_skew":
                process.skew_s = world.dice.between(place, -SKEW_S, SKEW_S)
                world.note(process, kind, f"{process.skew_s:+.0f} s")
            case "poison":
                topics = world.app.input_topics(member.service)
                topic = topics[int(world.dice.number(place) * len(topics))]
                what, value = POISON[int(world.dice.number(place) * len(POISON))]
                world.note("stranger", kind, f"{what} on {topic}")
                world.cluster.append("stranger", [ProducerRecord(topic, b"poison", value, self._headers(topic))])
            case "transaction_timeout":
                for name in world.cluster.log.time_out(now_s, -1.0):
                    world.note("broker", kind, name)
                    world.cluster.wake()
            case "deploy":
                world.note("operator", kind, member.service)
                self._begin(self._deploy(member.service))

    def _headers(self, topic: str) -> tuple[tuple[str, bytes], ...]:
        """Of an event somebody handles, so that it is not simply skipped."""
        app = self._world.app
        for service in app.services:
            for bound in app.bound(service):
                for event in bound.handler.events:
                    if app.topic(event.event_topic) == topic:
                        return (
                            ("ce_specversion", b"1.0"),
                            ("ce_id", b"poison"),
                            ("ce_source", b"/stranger"),
                            ("ce_type", event.event_type.encode()),
                        )
        return ()

    def _begin(self, deploying: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(deploying)
        self._deploying.add(task)
        task.add_done_callback(self._deploying.discard)

    async def _deploy(self, service: str) -> None:
        """Forward, and the next time back."""
        world = self._world
        self._deployed[service] = world.upgrade if self._deployed[service] is world.app else world.app
        for member in list(world.members.values()):
            if member.service == service:
                await member.replace(self._deployed[service])

    async def _roll_out(self, service: str) -> None:
        """Until each member that can runs the upgrade; who is just starting is replaced when it is up."""
        for member in self._world.of(service):
            while member.runs is not self._world.upgrade and not (member.process and member.process.hangs):
                await member.replace(self._world.upgrade)
                await asyncio.sleep(1.0)

    def stop(self) -> None:
        """A deploy that waits for a process that was killed meanwhile waits for ever."""
        for deploying in self._deploying:
            deploying.cancel()

    def _go_on(self, process: Process) -> None:
        if process.life.stopped and not process.life.dead and not process.hangs:
            self._world.note(process, "goes on", "")
            process.went_on_s = self._world.loop.now_s
            process.life.go_on(self._world.loop)
