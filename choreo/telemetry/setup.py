"""Which instrument a service gets: by the application's own OpenTelemetry provider, or by the OTEL_* variables.

Off unless asked for: without a word about traces or metrics nothing is recorded and no OpenTelemetry is imported.
"""

import logging
import sys
from collections.abc import Mapping
from os import environ
from typing import TYPE_CHECKING, Any, Literal

from choreo.ports import Instrument, Peer
from choreo.telemetry.silent import NoInstrument

if TYPE_CHECKING:
    from choreo.telemetry.metering import Meters
    from choreo.telemetry.pipeline import Watched

TraceMode = Literal["parent", "link", "both"]
"""How a `process` span hangs on the `send` span that caused it: below it, linked to it, or both."""
TRACE_MODES: tuple[TraceMode, ...] = ("parent", "link", "both")
SPLIT_AFTER_S = 3600.0
"""A hop older than this begins a trace of its own with a link."""

Signal = Literal["traces", "metrics"]
_EXPORTERS = ("otlp", "console")
_PROTOCOLS = ("http/protobuf", "grpc")
_log = logging.getLogger("choreo.telemetry")


def instrument_from_environment(
    service: str,
    *,
    system: str,
    peer: Peer | None = None,
    alone: bool = False,
    shared: bool = False,
    mode: TraceMode = "parent",
    split_after_s: float = SPLIT_AFTER_S,
    meters: "Meters | None" = None,
) -> Instrument:
    """The instrument of `service`: one that records where it is asked for, else one that records nothing.

    Spans go to the TracerProvider the application has set, where it has. Else tracing is on when OTEL_TRACES_EXPORTER
    names `otlp` or `console` (or both, with a comma), or when it says nothing and OTEL_EXPORTER_OTLP_ENDPOINT or
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set. OTEL_SDK_DISABLED=true turns it off. Whatever cannot be set up costs
    the spans and a warning, never the service.

    Args:
        service: Becomes `service.name`, a resource of its own for each service of a process.
        system: `messaging.system`, the transport's.
        peer: The transport's.
        alone: The process runs this service only, so OTEL_SERVICE_NAME may rename it.
        shared: Spans of handlers' own go there too, by OpenTelemetry's global provider: for who owns the process.
        mode: How `process` spans hang on what caused them.
        split_after_s: Age of a record beyond which its unit begins a trace of its own.
        meters: What counts; from `meters_from_environment`.

    Returns:
        An instrument to be closed; the last one of a process to be closed flushes, in 2.5 s at most. That blocks:
        close it from a thread where a loop has other work to do.
    """
    settings = {"system": system, "peer": peer, "mode": mode, "split_after_s": split_after_s}
    instrument = _tracing(service, settings, alone=alone, shared=shared)
    return instrument if meters is None else meters.instrument(service, instrument)


def _tracing(service: str, settings: Mapping[str, Any], *, alone: bool, shared: bool) -> Instrument:
    provider, names = configured("traces"), exporters_wanted(environ)
    if provider is None and not names:
        return NoInstrument()
    try:
        from choreo.telemetry.spans import OtelInstrument

        if provider is not None:
            return OtelInstrument(service, tracer_provider=provider, **settings)
        from choreo.telemetry import pipeline

        acquired = pipeline.acquire(lambda: _exporters(names))
        try:
            provider = made = pipeline.provider(service, acquired, alone=alone)
            if shared:
                from choreo.telemetry.sharing import share

                share(service, provider)
            return OtelInstrument(
                service,
                tracer_provider=provider,
                quick=lambda always: pipeline.quick(made, acquired, always),
                on_close=pipeline.release,
                **settings,
            )
        except Exception:
            pipeline.release()
            raise
    except Exception as error:
        _log.warning("tracing of %s cannot be set up and is off: %s: %s", service, type(error).__name__, error)
        return NoInstrument()


def meters_from_environment(process: str, *, system: str, peer: Peer | None = None, scraped: bool) -> "Meters | None":
    """What counts in this process, or None where nobody wants metrics.

    They go to the MeterProvider the application has set, where it has. Else by OTLP or to the console as
    OTEL_METRICS_EXPORTER says, or when it says nothing and OTEL_EXPORTER_OTLP_ENDPOINT or
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is set; and, if `scraped`, to Prometheus' default registry.

    Args:
        process: Becomes `service.name` unless OTEL_SERVICE_NAME names another: the only service's name, or the app's.
            Each measurement has its service in `choreo.service`.
        scraped: Somebody reads Prometheus' registry. That needs the extra `prometheus`.
    """
    provider, names = configured("metrics"), exporters_wanted(environ, "metrics")
    if provider is None and not names and not scraped:
        return None
    try:
        from choreo.telemetry import metering, readers

        if provider is not None:
            return metering.meters(provider, system=system, peer=peer)
        protocol = protocol_wanted(environ, "metrics")
        made = readers.provider(process, names, protocol, _where("metrics", protocol), scraped=scraped)
        return metering.meters(made.provider, system=system, peer=peer, on_close=made.close, many=made.many)
    except Exception as error:
        _log.warning("metrics of %s cannot be set up and are off: %s: %s", process, type(error).__name__, error)
        return None


def configured(signal: Signal) -> Any:
    """The provider that the application has set for all of its process, or None; nothing is imported to find out."""
    module = sys.modules.get("opentelemetry.trace" if signal == "traces" else "opentelemetry.metrics")
    if module is None:
        return None
    provider = module.get_tracer_provider() if signal == "traces" else module.get_meter_provider()
    # The API's own do nothing: they stand in for one that was not set. `choreo.telemetry.sharing` leads back to us.
    stand_ins = ("opentelemetry.trace", "opentelemetry.metrics", "choreo.telemetry.")
    return None if type(provider).__module__.startswith(stand_ins) else provider


def exporters_wanted(variables: Mapping[str, str], signal: Signal = "traces") -> tuple[str, ...]:
    """`otlp` and `console` as far as the variables ask for them; empty when the signal is off."""
    if _said(variables, "OTEL_SDK_DISABLED").lower() == "true":
        return ()
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    said = _said(variables, variable)
    if not said:
        return ("otlp",) if any(_said(variables, name) for name in _endpoints(signal)) else ()
    names = dict.fromkeys(word.strip().lower() for word in said.split(",") if word.strip())
    if "none" in names:
        return ()
    unknown = [name for name in names if name not in _EXPORTERS]
    if unknown:
        _log.warning("%s=%s: choreo knows otlp, console and none, and ignores the rest", variable, said)
    return tuple(name for name in names if name in _EXPORTERS)


def protocol_wanted(variables: Mapping[str, str], signal: Signal = "traces") -> str:
    """`http/protobuf` or `grpc`."""
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        said = _said(variables, name).lower()
        if said in _PROTOCOLS:
            return said
        if said:
            _log.warning("%s=%s: choreo speaks http/protobuf and grpc, and takes the next best", name, said)
    return "http/protobuf"


def flow_ratio_wanted(variables: Mapping[str, str]) -> tuple[float, bool] | None:
    """The share of flows to sample and whether parents are followed, where OTEL_TRACES_SAMPLER asks for a ratio."""
    sampler = _said(variables, "OTEL_TRACES_SAMPLER").lower()
    if sampler not in ("traceidratio", "parentbased_traceidratio"):
        return None
    said = _said(variables, "OTEL_TRACES_SAMPLER_ARG")
    try:
        ratio = float(said or "1")
        if not 0.0 <= ratio <= 1.0:
            raise ValueError
    except ValueError:
        _log.warning("OTEL_TRACES_SAMPLER_ARG=%s: write a number from 0 to 1; all flows are sampled", said)
        ratio = 1.0
    return ratio, sampler.startswith("parentbased")


def _exporters(names: tuple[str, ...]) -> list["Watched"]:
    from choreo.telemetry import pipeline

    protocol = protocol_wanted(environ)
    return [pipeline.exporter(name, protocol, _where("traces", protocol)) for name in names]


def _where(signal: Signal, protocol: str) -> str:
    """The other end of an exporter, as people may read it."""
    from choreo.telemetry.watching import redacted

    default = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    return redacted(next((said for name in _endpoints(signal) if (said := _said(environ, name))), default))


def _endpoints(signal: Signal) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"


def _said(variables: Mapping[str, str], name: str) -> str:
    return variables.get(name, "").strip()
