"""The shop before the order flow: takes orders over HTTP and publishes them through an outbox."""
