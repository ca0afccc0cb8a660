"""One flow as it happened: from the log or from a tracing backend, as a tree."""
