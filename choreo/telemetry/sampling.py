"""Head sampling that agrees across the traces of one flow, without anything being propagated for it."""

from collections.abc import Sequence
from hashlib import blake2b

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

FLOW = "messaging.message.conversation_id"
_BITS = 64


class FlowRatio(Sampler):
    """Samples a share of flows: all roots of one flow, in every service and after every split, or none.

    It decides on the blake2b digest of the correlation id, which a span has among its attributes at creation. A root
    without one, such as a span of the application's own, is decided on by its trace id. To be wrapped into the SDK's
    `ParentBased`, so that only roots decide.

    Args:
        ratio: Share of flows, 0 <= ratio <= 1; the same in every service.

    Raises:
        ValueError: It is no such share.
    """

    def __init__(self, ratio: float) -> None:
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"a ratio of {ratio} is not between 0 and 1")
        self._ratio = ratio
        self._bound = round(ratio * 2**_BITS)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide on a span that is about to begin."""
        flow = attributes.get(FLOW) if attributes else None
        if isinstance(flow, str):
            digest = blake2b(flow.encode("utf-8", "replace"), digest_size=_BITS // 8).digest()
            number = int.from_bytes(digest, "big")
        else:
            number = trace_id & (2**_BITS - 1)
        state = trace.get_current_span(parent_context).get_span_context().trace_state
        if number < self._bound:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)
        return SamplingResult(Decision.DROP, None, state)

    def get_description(self) -> str:
        """As the SDK's samplers say it of themselves."""
        return f"FlowRatio{{{self._ratio}}}"
