"""Asks a Jaeger query API for the spans of flows, in both of its dialects.

Which filters a Jaeger honours depends on its version: 2.13 ignores attributes in v3, versions after 2.20 have no v1.
So an answer is known by its body, never by status or content type, and every span is filtered again here.
"""

import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from choreo.envelope import rfc3339
from choreo.errors import TransportError
from choreo.flow.spans import CONVERSATION, KEY, MESSAGE, Span, flows_of, of_flow, read_v1, read_v3

TIMEOUT_S = 15.0
TRACES_MAX = 100
BODY_BYTES_MAX = 256 * 1024 * 1024
_TRACE_ID = re.compile(r"[0-9a-f]{32}\Z")


def identify(url: str, name: str, services: Sequence[str] = (), *, by_key: bool = False, since_s: float) -> list[str]:
    """Correlation ids of the flows that a name stands for, in order of time; none if Jaeger knows none.

    Args:
        name: A correlation id, event id or trace id; a record key with `by_key`.
        services, since_s: As for `find`.

    Raises:
        TransportError: As `find` does.
    """
    base = url.rstrip("/")
    spans: list[Span] = []
    trace_id = name if not by_key and _TRACE_ID.match(name) else None
    if trace_id is not None:
        spans = _trace(base, trace_id)
        if found := flows_of(spans, name, (), trace_id):
            return found
    for attribute in (KEY,) if by_key else (CONVERSATION, MESSAGE):
        spans = _search(url, attribute, name, services, since_s)
        if found := flows_of(spans, name, (attribute,)):
            return found
    return []


def find(url: str, correlation_id: str, services: Sequence[str] = (), *, since_s: float) -> list[Span]:
    """Every span of the traces that a flow has a span in.

    Args:
        url: Of the query service, such as `http://localhost:16686`.
        services: Asked for one by one; all that Jaeger knows where none is given.
        since_s: How far to look back, in seconds.

    Raises:
        TransportError: Nobody answers there, or not as Jaeger does.
    """
    return of_flow(_search(url, CONVERSATION, correlation_id, services, since_s), correlation_id)


def _search(url: str, attribute: str, value: str, services: Sequence[str], since_s: float) -> list[Span]:
    """Whole traces that have a span with this attribute, one service after the other."""
    base, now_s = url.rstrip("/"), time.time()
    spans: dict[tuple[str, str], Span] = {}
    known = list(services) or services_of(base)
    answered = known == []  # a Jaeger that has no span of anybody yet
    for service in known or ():
        for query, parse in (
            (_v3(service, attribute, value, now_s, since_s), read_v3),
            (_v1(service, attribute, value, now_s, since_s), read_v1),
        ):
            body = ask(base + query)
            if body is None:
                continue
            answered = True
            found = parse(body)
            traces = {span.trace_id for span in found}
            ours = {span.trace_id for span in found if str(span.attributes.get(attribute)) == value}
            spans.update({(span.trace_id, span.span_id): span for span in found if span.trace_id in ours})
            if ours and ours == traces:  # else the filter was ignored, and what we want may be beyond the limit
                break
    if not answered:
        raise TransportError(f"{url} does not answer as a Jaeger query API; it is usually at port 16686")
    return list(spans.values())


def _trace(base: str, trace_id: str) -> list[Span]:
    for path, parse in ((f"/api/v3/traces/{trace_id}", read_v3), (f"/api/traces/{trace_id}", read_v1)):
        body = ask(base + path)
        if body is not None and (spans := parse(body)):
            return spans
    return []


def _v1(service: str, attribute: str, value: str, now_s: float, since_s: float) -> str:
    tags = orjson.dumps({attribute: value}).decode()
    span = {"start": int((now_s - since_s) * 1e6), "end": int(now_s * 1e6)}
    return "/api/traces?" + urllib.parse.urlencode({"service": service, "tags": tags, "limit": TRACES_MAX, **span})


def _v3(service: str, attribute: str, value: str, now_s: float, since_s: float) -> str:
    """Both spellings of everything: 2.13 knows snake_case only."""
    first, last = rfc3339(now_s - since_s), rfc3339(now_s)
    query: dict[str, Any] = {
        "query.service_name": service,
        "query.serviceName": service,
        "query.start_time_min": first,
        "query.startTimeMin": first,
        "query.start_time_max": last,
        "query.startTimeMax": last,
        "query.num_traces": TRACES_MAX,
        "query.searchDepth": TRACES_MAX,
        "query.attributes": orjson.dumps({attribute: value}).decode(),
    }
    return "/api/v3/traces?" + urllib.parse.urlencode(query)


def services_of(base: str) -> list[str] | None:
    """Names of all that it has spans of; None if what answers at `base` is no Jaeger."""
    for path, name in (("/api/v3/services", "services"), ("/api/services", "data")):
        body = ask(base + path)
        if body is not None and name in body:
            return [str(each) for each in body[name] or ()]
    return None


def ask(url: str) -> Mapping[str, Any] | None:
    """The JSON object at `url`; None for whatever else is there.

    Raises:
        TransportError: Nobody answers there.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:  # not repeated: it may hold a password
        raise TransportError("a Jaeger query API is at http://HOST:PORT or https://HOST:PORT, without a user in it")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # nosec B310  # noqa: S310 (the scheme is checked above)
            raw = answer.read(BODY_BYTES_MAX)
    except urllib.error.HTTPError as error:
        raw = error.read()
    except OSError as error:
        raise TransportError(f"{url.split('?')[0]} cannot be asked: {error}; is Jaeger running there?") from None
    try:
        body = orjson.loads(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
