"""A second interpreter of a definition's JSON, written against docs/definitions.md and nothing of choreo's.

It knows a definition as parsed JSON, is told what came and what guards say, and keeps one instance: its state, its
timers and what it has put off.
"""

import heapq
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]


class Machine:
    """One instance. `guards(name, event)` says whether a guard holds; `log` is what was called, in order."""

    def __init__(self, definition: Json, guards: Callable[[str, str], bool]) -> None:
        self._all = {each["name"]: each for each in definition["states"]}
        self._definition = definition
        self._guards = guards
        self._put_off: list[str] = []
        self._clock = 0.0
        self._alarms: list[tuple[float, str, int]] = []
        self.where: str | None = None
        self.log: list[str] = []
        self.refused: list[str] = []

    @property
    def timers(self) -> list[str]:
        """Names of what will fire, sorted."""
        return sorted(name for _, name, _ in self._alarms)

    @property
    def put_off(self) -> int:
        """How many events wait for another state."""
        return len(self._put_off)

    def event(self, type_: str) -> None:
        """Something came."""
        verdict = self._offer(type_)
        if verdict == "defer":
            self._put_off.append(type_)
        elif verdict == "reject":
            self.refused.append(type_)
        self._catch_up()

    def sleep(self, seconds: float) -> None:
        """Time goes by."""
        until = self._clock + seconds
        while self._alarms and self._alarms[0][0] <= until:
            at, name, number = heapq.heappop(self._alarms)
            self._clock = at
            rule = next(each for each in self._all[self.where or ""]["timers"] if each["name"] == name)
            if rule["repeats"] and (rule["at_most"] is None or number < rule["at_most"]):
                heapq.heappush(self._alarms, (at + rule["delay_s"], name, number + 1))
            self._follow(rule)
            self._catch_up()
        self._clock = until

    def _offer(self, type_: str) -> str:
        """Take it, or say why not: defer, ignore or reject."""
        policy = str(self._definition["unexpected"])
        if self.where is None:
            for rule in self._definition["starts"]:
                if rule["event"] == type_:
                    self._follow(rule)
                    return "taken"
            return policy
        state = self._all[self.where]
        if state["final"]:
            return str(self._definition["late"])
        if type_ in state["ignores"]:
            return "ignore"
        mine = [rule for rule in state["rules"] if rule["event"] == type_]
        for rule in mine:
            if rule["guard"] is None or self._guards(rule["guard"], type_):
                self._follow(rule)
                return "taken"
        if mine:
            return "ignore"
        anywhere = any(rule["event"] == type_ for each in self._all.values() for rule in each["rules"])
        return policy if anywhere or policy != "defer" else "ignore"

    def _follow(self, way: Json) -> None:
        self.log.append(way["action"])
        if way["to"] is None:
            return
        self.where = way["to"]
        state = self._all[self.where]
        self._alarms = [(self._clock + timer["delay_s"], timer["name"], 1) for timer in state["timers"]]
        heapq.heapify(self._alarms)
        if state["entry"] is not None:
            self.log.append(state["entry"])

    def _catch_up(self) -> None:
        """Offer what was put off again, oldest first, from the beginning whenever the state has changed."""
        position = 0
        while self.where is not None and position < len(self._put_off):
            before = self.where
            if self._offer(self._put_off[position]) == "defer":
                position += 1
                continue
            del self._put_off[position]
            if self.where != before:
                position = 0
        if self.where is not None and self._all[self.where]["final"]:
            self._put_off.clear()
