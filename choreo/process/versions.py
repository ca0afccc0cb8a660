"""The versions of a process that a build knows, each ready to be interpreted."""

from collections.abc import Mapping

from choreo.core.definition import CORRELATION, Definition
from choreo.errors import DeclarationError, UnknownVersion
from choreo.event import Event
from choreo.process.declaring import ProcessManager
from choreo.process.states import Action


class Version:
    """One version of a process, ready to be interpreted."""

    def __init__(self, made: type[ProcessManager]) -> None:
        self.definition: Definition = made.definition()
        self.made = made
        self.actions: Mapping[str, Action] = made.actions()
        self.guards = made.guards()
        self.classes = {event.event_type: event for event in made.events()}

    def has(self, state: str) -> bool:
        """Whether there is a state of the name."""
        return any(each.name == state for each in self.definition.states)


class Versions:
    """Every version of one process that this build knows.

    Attributes:
        versions: By number.
        newest: The one that new instances run under.
        told: Versions and states that it does not know, and has said so.
    """

    def __init__(self, newest: type[ProcessManager]) -> None:
        self.name = newest.process_name
        versions = [Version(made) for made in (*newest.process_previous, newest)]
        self.versions = {each.made.process_version: each for each in versions}
        if len(self.versions) < len(versions):
            raise DeclarationError(f"{newest.__name__}: two classes of {self.name} have one version")
        self.newest = self.versions[newest.process_version]
        self.told: set[tuple[int, str]] = set()

    def hasten(self, times: float) -> None:
        """Divide all delays of what is declared; 1 is as declared. For simulations."""
        for version in self.versions.values():
            version.definition = version.made.definition().hastened(times)

    def version(self, number: int) -> Version:
        """The version of that number.

        Raises:
            UnknownVersion: This build does not have it.
        """
        found = self.versions.get(number)
        if found is None:
            raise UnknownVersion(
                f"{self.name} v{number} is not in this build, which knows {self.known}: deploy one that has both, "
                "with previous="
            )
        return found

    @property
    def retention_s(self) -> float | None:
        """How long instances of any version are kept when they have ended, as the newest says; None: for ever."""
        retention = self.newest.made.process_retention
        return None if retention is None else retention.total_seconds()

    @property
    def known(self) -> str:
        """The versions of this build, for people."""
        return ", ".join(f"v{number}" for number in sorted(self.versions))

    def key_of(self, event: Event, correlation_id: str) -> str:
        """The instance that an event of this flow is about."""
        for version in (self.newest, *self.versions.values()):
            field = version.definition.correlate.get(event.event_type)
            if field is not None:
                return correlation_id if field == CORRELATION else str(getattr(event, field))
        raise AssertionError(event.event_type)
