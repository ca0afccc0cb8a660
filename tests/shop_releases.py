"""A small shop as it was released, deployments of it that do something else, and what a Jaeger would say of them.

Each deployment differs from the release in one service, whose code is another: nothing is written by hand into a log
or a trace.
"""

import asyncio
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from choreo import App, Event, Flow, Reject, Service
from choreo.testing.otlp import OtlpReceiver
from choreo.testing.otlp_reading import ReceivedSpan
from choreo.transports.embedded import EmbeddedTransport


class Placed(Event, type="order.placed", version=1, topic="orders", key="order"):
    order: str


class Reserved(Event, type="stock.reserved", version=1, topic="stock", key="order"):
    order: str
    again: bool = False


class Refused(Event, type="stock.refused", version=1, topic="stock", key="order"):
    order: str


class Paid(Event, type="order.paid", version=2, topic="payments", key="order"):
    order: str
    again: bool = False


class OldPaid(Event, type="order.paid", version=1, topic="payments", key="order"):
    order: str


class Points(Event, type="points.earned", version=1, topic="points", key="order"):
    order: str


class Shipped(Event, type="order.shipped", version=1, topic="shipments", key="order"):
    order: str


def reserve(placed: Placed) -> Reserved | Refused:
    """As it was released."""
    if placed.order == "rejected":
        raise Reject("no such article")
    return Refused(order=placed.order) if placed.order == "refused" else Reserved(order=placed.order)


def reserve_in_silence(placed: Placed) -> Reserved | Refused | None:
    """Neither of two of which one must come."""
    return None


def charge(reserved: Reserved) -> Paid:
    """As it was released."""
    return Paid(order=reserved.order, again=reserved.again)


def charge_and_give_points(reserved: Reserved) -> tuple[Paid, Points]:
    """An extra emission."""
    return Paid(order=reserved.order), Points(order=reserved.order)


def charge_twice(reserved: Reserved) -> tuple[Paid, Paid]:
    """More than the one that is declared."""
    return Paid(order=reserved.order), Paid(order=reserved.order, again=True)


def charge_in_silence(reserved: Reserved) -> None:
    """A missing emission."""


def charge_of_old(reserved: Reserved) -> OldPaid:
    """The version before."""
    return OldPaid(order=reserved.order)


def ship(paid: Paid) -> Shipped:
    """As it was released."""
    return Shipped(order=paid.order)


def ship_round(paid: Paid) -> Shipped | Reserved:
    """A cycle: once it sends the order round."""
    return Shipped(order=paid.order) if paid.again else Reserved(order=paid.order, again=True)


def ship_of_old(paid: OldPaid) -> Shipped:
    """It reads the version before."""
    return Shipped(order=paid.order)


def confirm(paid: Paid) -> None:
    """As it was released: what it does leaves no event."""


DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "released": {},
    "extra": {"charge": charge_and_give_points},
    "twice": {"charge": charge_twice},
    "missing": {"charge": charge_in_silence},
    "missing either": {"reserve": reserve_in_silence},
    "cycle": {"ship": ship_round},
    "old": {"charge": charge_of_old},
    "old reader": {"ship": ship_of_old},
    "renamed": {"confirm": None},
}


def shop(deployment: str = "released") -> App:
    """The app, as it was released or as something else was deployed."""
    code = {"reserve": reserve, "charge": charge, "ship": ship, "confirm": confirm, **DEPLOYMENTS[deployment]}
    stock, billing, shipping, mail = (Service(name) for name in ("stock", "billing", "shipping", "mail"))
    stock.handler(Placed, name="reserve")(code["reserve"])
    billing.handler(Reserved, name="charge")(code["charge"])
    shipping.handler(OldPaid if code["ship"] is ship_of_old else Paid, name="ship")(code["ship"])
    mail.handler(Paid, name="confirm" if code["confirm"] else "thank")(confirm)
    order = Flow("order", starts=Placed, ends=(Shipped, Refused), deadline=timedelta(days=2))
    return App(stock, billing, shipping, mail, flows=[order], name="web")


async def run(app: App, path: Path, events: Iterable[Event], timeout_s: float = 30.0, **overrides: Any) -> None:
    """Have an app's services handle events on an embedded broker in a file, until nothing is unread."""
    async with app.running(broker=f"embedded:{path}", create_topics=True, **overrides) as running:
        for event in events:
            await running.publish(event)
        assert isinstance(running.transport, EmbeddedTransport)
        until_s = time.monotonic() + timeout_s
        workers = running.workers.values()
        while not all(each.leases for each in workers) or await running.transport.unread():
            assert time.monotonic() < until_s, "the events are not handled"
            await asyncio.sleep(0.01)


def v3_answer(spans: Sequence[ReceivedSpan], service: str) -> dict[str, Any]:
    """Whole traces with a span of `service`, as Jaeger's `/api/v3/traces` says them: OTLP's JSON."""
    wanted = {span.trace_id for span in spans if span.service == service}
    return {
        "result": {
            "resourceSpans": [
                {
                    "resource": {"attributes": [_pair("service.name", span.service)]},
                    "scopeSpans": [{"spans": [_span(span)]}],
                }
                for span in spans
                if span.trace_id in wanted
            ]
        }
    }


def _span(span: ReceivedSpan) -> dict[str, Any]:
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id or "",
        "name": span.name,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": [_pair(name, value) for name, value in span.attributes.items()],
    }


def _pair(name: str, value: Any) -> dict[str, Any]:
    kind = "intValue" if isinstance(value, int) else "stringValue"
    return {"key": name, "value": {kind: str(value)}}


@contextmanager
def jaeger(spans: Callable[[], Sequence[ReceivedSpan]]) -> Iterator[str]:
    """A Jaeger that has v3 only, as those after 2.20, with these spans; what is not there is a page for people."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            found: Any = None
            if url.path == "/api/v3/services":
                found = {"services": sorted({span.service for span in spans()})}
            elif url.path == "/api/v3/traces":
                found = v3_answer(spans(), query["query.service_name"])
            body = b"<html>" if found is None else json.dumps(found).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A test's output is not the place."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def receiver(monkeypatch: Any) -> Iterator[OtlpReceiver]:
    """Where the spans of what runs meanwhile go; closing an app flushes them."""
    with OtlpReceiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
        yield received
