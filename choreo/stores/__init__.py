"""Idempotency stores behind one Protocol, `choreo.ports.IdempotencyStore`."""
