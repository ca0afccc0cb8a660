"""Fixtures of every test, and how hypothesis runs."""

import gc
import logging
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine is slow, which is no failure of the code.
settings.register_profile("choreo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("choreo")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No garbage is collected while a failure is put into words.

    pytest parses the source for that, and what a collected task logs is formatted by parsing some, too: the one
    in the midst of the other is a SystemError of CPython 3.11 ("AST constructor recursion depth mismatch"), which
    ends the whole run instead of the one test.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(autouse=True)
def _no_log_of_another_test() -> None:
    """A command that was run in this process logs to a stream that was the test's, and is closed by now."""
    for logger in (logging.getLogger(), logging.getLogger("choreo")):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real Kafka, started for this run unless one was given; else the test is skipped."""
    from tests.kafka_server import kafka_bootstrap_servers  # not needed, and not imported, by unit tests

    yield from kafka_bootstrap_servers(tmp_path_factory)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis, started for this run unless one was given; else the test is skipped."""
    from tests.redis_server import redis_url

    yield from redis_url(tmp_path_factory)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL, started for this run unless one was given; else the test is skipped."""
    from tests.postgres_server import postgres_url

    yield from postgres_url(tmp_path_factory)
