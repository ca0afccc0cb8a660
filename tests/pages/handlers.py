"""docs/handlers.md."""

from tests.pages.flow_of_the_readme import names

globals().update(names())
