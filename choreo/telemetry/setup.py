"""Which instrument a service gets, by OpenTelemetry's own environment variables and nothing else.

Off unless asked for: without a word about traces nothing is traced and no tracer is imported.
"""

import logging
from collections.abc import Mapping
from os import environ
from typing import TYPE_CHECKING

from choreo.ports import Instrument
from choreo.telemetry.silent import NoInstrument

if TYPE_CHECKING:
    from choreo.telemetry.pipeline import Watched

_EXPORTERS = ("otlp", "console")
_PROTOCOLS = ("http/protobuf", "grpc")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_log = logging.getLogger("choreo.telemetry")


def instrument_from_environment(service: str, *, system: str, alone: bool = False) -> Instrument:
    """The instrument of `service`: one that exports where OTEL_* asks for it, else one that records nothing.

    Tracing is on when OTEL_TRACES_EXPORTER names `otlp` or `console` (or both, with a comma), or when it says
    nothing and OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set. OTEL_SDK_DISABLED=true
    turns it off. Whatever cannot be set up costs the spans and a warning, never the service.

    Args:
        service: Becomes `service.name`, a resource of its own for each service of a process.
        system: `messaging.system`, the transport's.
        alone: The process runs this service only, so OTEL_SERVICE_NAME may rename it.

    Returns:
        An instrument to be closed; the last one of a process to be closed flushes, in 2.5 s at most. That blocks:
        close it from a thread where a loop has other work to do.
    """
    names = exporters_wanted(environ)
    if not names:
        return NoInstrument()
    try:
        from choreo.telemetry import pipeline
        from choreo.telemetry.spans import OtelInstrument

        shared = pipeline.acquire(lambda: _exporters(names))
        try:
            provider = pipeline.provider(service, shared, alone=alone)
            return OtelInstrument(service, tracer_provider=provider, system=system, on_close=pipeline.release)
        except Exception:
            pipeline.release()
            raise
    except Exception as error:
        _log.warning("tracing of %s cannot be set up and is off: %s: %s", service, type(error).__name__, error)
        return NoInstrument()


def exporters_wanted(variables: Mapping[str, str]) -> tuple[str, ...]:
    """`otlp` and `console` as far as the variables ask for them; empty when tracing is off."""
    if _said(variables, "OTEL_SDK_DISABLED").lower() == "true":
        return ()
    said = _said(variables, "OTEL_TRACES_EXPORTER")
    if not said:
        return ("otlp",) if any(_said(variables, name) for name in _ENDPOINTS) else ()
    names = dict.fromkeys(word.strip().lower() for word in said.split(",") if word.strip())
    if "none" in names:
        return ()
    unknown = [name for name in names if name not in _EXPORTERS]
    if unknown:
        _log.warning("OTEL_TRACES_EXPORTER=%s: choreo knows otlp, console and none, and ignores the rest", said)
    return tuple(name for name in names if name in _EXPORTERS)


def protocol_wanted(variables: Mapping[str, str]) -> str:
    """`http/protobuf` or `grpc`."""
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        said = _said(variables, name).lower()
        if said in _PROTOCOLS:
            return said
        if said:
            _log.warning("%s=%s: choreo speaks http/protobuf and grpc, and takes the next best", name, said)
    return "http/protobuf"


def _exporters(names: tuple[str, ...]) -> list["Watched"]:
    from choreo.telemetry import pipeline

    protocol = protocol_wanted(environ)
    default = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    endpoint = next((said for name in _ENDPOINTS if (said := _said(environ, name))), default)
    return [pipeline.exporter(name, protocol, pipeline.redacted(endpoint)) for name in names]


def _said(variables: Mapping[str, str], name: str) -> str:
    return variables.get(name, "").strip()
