"""Logs behind the `Transport` port: one module a broker, each imported only by whoever asks for it."""
