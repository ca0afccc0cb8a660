"""docs/testing.md."""

from tests.pages.flow_of_the_readme import names

globals().update(names())


class Declines:
    """A bank on a bad day."""

    async def charge(self, cents: int, *, key: str) -> bool:
        """Never."""
        return False
