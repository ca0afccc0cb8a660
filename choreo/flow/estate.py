"""Asks a Jaeger for what ran, of all services it knows: the traces of a window and not one flow's."""

import time
import urllib.parse
from typing import NamedTuple

from choreo.envelope import rfc3339
from choreo.errors import TransportError
from choreo.flow import jaeger
from choreo.flow.spans import Span, read_v1, read_v3

TRACES_MAX = 1000
"""A service, since Jaeger answers them all in one body."""


class Estate(NamedTuple):
    """Spans, and the services that have more traces than were asked for."""

    spans: list[Span]
    cut_short: list[str]


def read_estate(url: str, *, since_s: float) -> Estate:
    """The newest traces of every service.

    Args:
        url: Of the query service, such as `http://localhost:16686`.
        since_s: How far to look back, in seconds.

    Raises:
        TransportError: Nobody answers there, or not as Jaeger does.
    """
    base, now_s = url.rstrip("/"), time.time()
    services = jaeger.services_of(base)
    if services is None:
        raise TransportError(f"{url} does not answer as a Jaeger query API; it is usually at port 16686")
    spans: dict[tuple[str, str], Span] = {}
    cut_short = []
    for service in services:
        found = _read(base, service, now_s, since_s)
        if len({span.trace_id for span in found}) >= TRACES_MAX:
            cut_short.append(service)
        spans.update({(span.trace_id, span.span_id): span for span in found})
    return Estate(list(spans.values()), cut_short)


def _read(base: str, service: str, now_s: float, since_s: float) -> list[Span]:
    """By v1 where it is, since it tells the kind of a span; versions of Jaeger after 2.20 have v3 only."""
    window = {"start": int((now_s - since_s) * 1e6), "end": int(now_s * 1e6), "limit": TRACES_MAX}
    body = jaeger.ask(f"{base}/api/traces?" + urllib.parse.urlencode({"service": service, **window}))
    if body is not None and (found := read_v1(body)):
        return found
    query = {
        name: value
        for names, value in (
            (("query.service_name", "query.serviceName"), service),
            (("query.start_time_min", "query.startTimeMin"), rfc3339(now_s - since_s)),
            (("query.start_time_max", "query.startTimeMax"), rfc3339(now_s)),
            (("query.num_traces", "query.searchDepth"), TRACES_MAX),
        )
        for name in names
    }
    body = jaeger.ask(f"{base}/api/v3/traces?" + urllib.parse.urlencode(query))
    return [] if body is None else read_v3(body)
