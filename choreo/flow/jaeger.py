"""One flow from a Jaeger query API: asked in both of its dialects, filtered here, drawn as a tree of spans.

Which filters a Jaeger honours depends on its version: 2.13 ignores attributes in v3, versions after 2.20 have no v1.
So an answer is known by its body, never by status or content type, and every trace is filtered again.
"""

import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from rich.markup import escape
from rich.tree import Tree

from choreo.envelope import rfc3339
from choreo.errors import TransportError

CONVERSATION = "messaging.message.conversation_id"
SHOWN = ("cloudevents.event_type", "choreo.handler", "choreo.outcome")
TIMEOUT_S = 15.0
TRACES_MAX = 100
BODY_BYTES_MAX = 256 * 1024 * 1024


@dataclass(slots=True)
class JaegerSpan:
    """One span, as far as it is shown."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    duration_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {name: getattr(self, name) for name in self.__slots__}


def find(url: str, correlation_id: str, services: Sequence[str] = (), *, since_s: float) -> list[JaegerSpan]:
    """Every span of the traces that a flow has a span in.

    Args:
        url: Of the query service, such as `http://localhost:16686`.
        services: Asked for one by one; all that Jaeger knows where none is given.
        since_s: How far to look back, in seconds.

    Raises:
        TransportError: Nobody answers there, or not as Jaeger does.
    """
    base = url.rstrip("/")
    now_s = time.time()
    spans: dict[tuple[str, str], JaegerSpan] = {}
    answered = False
    for service in services or _services(base):
        for ask, parse in (
            (_v3(service, correlation_id, now_s, since_s), read_v3),
            (
                _v1(service, correlation_id, now_s, since_s),
                read_v1,
            ),
        ):
            body = _get(base + ask)
            if body is None:
                continue
            answered = True
            found = of_flow(parse(body), correlation_id)
            spans.update({(span.trace_id, span.span_id): span for span in found})
            if found:
                break
    if not answered:
        raise TransportError(f"{url} does not answer as a Jaeger query API; it is usually at port 16686")
    return list(spans.values())


def of_flow(spans: Iterable[JaegerSpan], correlation_id: str) -> list[JaegerSpan]:
    """Spans of the traces that have a span of the flow, but for other flows that share the trace."""
    spans = list(spans)
    traces = {span.trace_id for span in spans if span.attributes.get(CONVERSATION) == correlation_id}
    return [
        span
        for span in spans
        if span.trace_id in traces and span.attributes.get(CONVERSATION, correlation_id) == correlation_id
    ]


def read_v1(body: Mapping[str, Any]) -> list[JaegerSpan]:
    """Spans of an answer of `/api/traces`."""
    spans = []
    for trace in body.get("data") or ():
        services = {key: process.get("serviceName", "") for key, process in (trace.get("processes") or {}).items()}
        for span in trace.get("spans") or ():
            parents = [each for each in span.get("references") or () if each.get("refType") == "CHILD_OF"]
            spans.append(
                JaegerSpan(
                    span["traceID"],
                    span["spanID"],
                    parents[0]["spanID"] if parents else "",
                    span.get("operationName", ""),
                    services.get(span.get("processID"), ""),
                    int(span.get("startTime", 0)) * 1000,
                    int(span.get("duration", 0)) * 1000,
                    {tag["key"]: tag.get("value") for tag in span.get("tags") or ()},
                )
            )
    return spans


def read_v3(body: Mapping[str, Any]) -> list[JaegerSpan]:
    """Spans of an answer of `/api/v3/traces`: OTLP's JSON."""
    spans = []
    for of_resource in (body.get("result") or body).get("resourceSpans") or ():
        resource = _attributes((of_resource.get("resource") or {}).get("attributes"))
        for of_scope in of_resource.get("scopeSpans") or ():
            for span in of_scope.get("spans") or ():
                start_ns = int(span.get("startTimeUnixNano", 0))
                spans.append(
                    JaegerSpan(
                        span["traceId"],
                        span["spanId"],
                        span.get("parentSpanId", ""),
                        span.get("name", ""),
                        str(resource.get("service.name", "")),
                        start_ns,
                        int(span.get("endTimeUnixNano", start_ns)) - start_ns,
                        _attributes(span.get("attributes")),
                    )
                )
    return spans


def tree(correlation_id: str, spans: Sequence[JaegerSpan]) -> Tree:
    """The spans below the spans that caused them."""
    top = Tree(f"[bold]{escape(correlation_id)}[/]")
    ordered = sorted(spans, key=lambda span: span.start_ns)
    known = {(span.trace_id, span.span_id) for span in ordered}
    children: dict[tuple[str, str], list[JaegerSpan]] = {}
    roots: list[JaegerSpan] = []
    for span in ordered:
        parent = (span.trace_id, span.parent_id)
        (children.setdefault(parent, []) if parent in known else roots).append(span)
    waiting = [(top, span) for span in reversed(roots)]
    begun_ns = ordered[0].start_ns if ordered else 0
    while waiting:
        above, span = waiting.pop()
        branch = above.add(_label(span, begun_ns))
        waiting += [(branch, child) for child in reversed(children.get((span.trace_id, span.span_id), []))]
    return top


def _label(span: JaegerSpan, begun_ns: int) -> str:
    said = span.attributes
    words = [str(said[name]) for name in SHOWN if name in said]
    times = f"+{(span.start_ns - begun_ns) / 1e9:.3f} s, {span.duration_ns / 1e6:.1f} ms"
    return f"[bold cyan]{escape(span.name)}[/] {escape(span.service)} {escape(' '.join(words))} [dim]{times}[/]"


def _attributes(found: Iterable[Mapping[str, Any]] | None) -> dict[str, Any]:
    values = {}
    for each in found or ():
        value = next(iter((each.get("value") or {}).items()), ("", None))
        values[each["key"]] = int(str(value[1])) if value[0] == "intValue" else value[1]
    return values


def _v1(service: str, correlation_id: str, now_s: float, since_s: float) -> str:
    tags = orjson.dumps({CONVERSATION: correlation_id}).decode()
    span = {"start": int((now_s - since_s) * 1e6), "end": int(now_s * 1e6)}
    return "/api/traces?" + urllib.parse.urlencode({"service": service, "tags": tags, "limit": TRACES_MAX, **span})


def _v3(service: str, correlation_id: str, now_s: float, since_s: float) -> str:
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
        "query.attributes": orjson.dumps({CONVERSATION: correlation_id}).decode(),
    }
    return "/api/v3/traces?" + urllib.parse.urlencode(query)


def _services(base: str) -> list[str]:
    for path, name in (("/api/v3/services", "services"), ("/api/services", "data")):
        body = _get(base + path)
        if body is not None and isinstance(body.get(name), list):
            return [str(each) for each in body[name]]
    return []


def _get(url: str) -> Mapping[str, Any] | None:
    """The JSON object at `url`; None for whatever else is there."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise TransportError(f"{url}: a Jaeger query API is at http:// or https://")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
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
