"""The step that the engine is in."""

from choreo.core.messages import Effect


class Moment:
    """What the parts of one engine share while it takes a step.

    Attributes:
        now_s: The time that came with its inputs.
        out: What is to be done after it, in order.
    """

    __slots__ = ("now_s", "out")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.out: list[Effect] = []
