"""Runs one service against real ports: fetch, step the core, perform its effects."""
