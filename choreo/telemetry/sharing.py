"""Spans of handlers' own where the application has set no provider: they go with those of their service.

OpenTelemetry has one provider a process, and a process may run several services, each a resource of its own. Only who
owns the process may set it: `choreo run` and `choreo dev`.
"""

from typing import Any

from opentelemetry import trace

from choreo.context import invocation


class SharedProvider(trace.TracerProvider):
    """Makes tracers that are, at each span, the tracer of the service whose handler is running; else of the first."""

    def __init__(self) -> None:
        self._providers: dict[str, trace.TracerProvider] = {}

    def add(self, service: str, provider: trace.TracerProvider) -> None:
        """A service's provider."""
        self._providers[service] = provider

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        """As OpenTelemetry's."""
        return _SharedTracer(self, args, kwargs)

    def current(self) -> tuple[str, trace.TracerProvider]:
        """The service that is running, and its provider."""
        context = invocation.get()
        service = str(context.about["service"]) if context is not None else ""
        provider = self._providers.get(service)
        return next(iter(self._providers.items())) if provider is None else (service, provider)


class _SharedTracer(trace.Tracer):
    def __init__(self, shared: SharedProvider, args: Any, kwargs: Any) -> None:
        self._shared = shared
        self._of = args, kwargs
        self._tracers: dict[str, trace.Tracer] = {}

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._tracer().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer().start_as_current_span(*args, **kwargs)

    def _tracer(self) -> trace.Tracer:
        service, provider = self._shared.current()
        tracer = self._tracers.get(service)
        if tracer is None:
            args, kwargs = self._of
            tracer = self._tracers[service] = provider.get_tracer(*args, **kwargs)
        return tracer


_shared: SharedProvider | None = None


def share(service: str, provider: trace.TracerProvider) -> None:
    """Let spans of the service's handlers go to `provider`. The first call sets the process's."""
    global _shared
    if _shared is None:
        _shared = SharedProvider()
        _shared.add(service, provider)
        trace.set_tracer_provider(_shared)
    else:
        _shared.add(service, provider)
