"""Spans behind the one Instrument port; `choreo.telemetry.setup` chooses by the OTEL_* variables."""
