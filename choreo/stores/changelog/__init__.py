"""Keys on the log itself."""

from choreo.stores.changelog.holdings import TransactionalTransport
from choreo.stores.changelog.store import ChangelogStore
from choreo.stores.changelog.topics import changelog_specs, changelog_topic, check_topics

__all__ = ["ChangelogStore", "TransactionalTransport", "changelog_specs", "changelog_topic", "check_topics"]
