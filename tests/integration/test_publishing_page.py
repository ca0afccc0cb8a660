"""docs/publishing.md is done: its files are saved, its script is run, its applications are asked."""

import asyncio
import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from choreo.envelope import read as read_envelope
from choreo.record import Record
from tests.integration.outbox_stage import fresh_database, log_at, logged
from tests.tea_app import choreo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "publishing.md").read_text()
FILES = dict(re.findall(r"^<!-- (\w+)\.py -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
WITHIN_S = 60.0


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder with the page's files, and a log for them."""
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code)
    url = f"embedded:{tmp_path}/log.db"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("CHOREO_TOPIC_PREFIX", raising=False)
    monkeypatch.delenv("CHOREO_STORE", raising=False)
    monkeypatch.setenv("CHOREO_BROKER", url)
    yield url
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.fixture
def database(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database of its own."""
    with fresh_database(postgres) as url:
        monkeypatch.setenv("DATABASE_URL", url.replace("postgresql:", "postgresql+asyncpg:"))
        yield url


def ids(records: list[Record]) -> list[tuple[str, str]]:
    """Source and id of each."""
    envelopes = [read_envelope(each.headers, each.value or b"")[0] for each in records]
    return sorted((each.source, each.id) for each in envelopes)


async def ask(app: FastAPI, path: str, **arguments: Any) -> Any:
    """POST, and what is answered."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://shop") as client:
        answer = await client.post(path, **arguments)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_block_is_tried() -> None:
    """All but env.py's lines, which test_outbox_alembic.py does."""
    assert PAGE.count("```python\n") == len(FILES) + 1


async def test_script_is_safe_to_run_again(broker: str, tmp_path: Path) -> None:
    """Twice the same ids."""
    async with log_at(broker, "orders") as log:
        for _ in range(2):
            environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
            command = [sys.executable, str(tmp_path / "import_orders.py")]
            await asyncio.to_thread(
                subprocess.run, command, input=b"A-1,100\nA-2,200\n", env=environment, check=True, timeout=60
            )
        assert ids(await logged(log, "orders")) == [("/import", "A-1"), ("/import", "A-1"), *[("/import", "A-2")] * 2]


async def test_publisher_in_a_web_application(broker: str) -> None:
    """The request's own key is the event's id."""
    app = importlib.import_module("asking").app
    async with log_at(broker, "orders") as log:
        async with app.router.lifespan_context(app):
            asked = {"params": {"cents": 5}, "headers": {"Idempotency-Key": "key-1"}}
            assert await ask(app, "/orders/A-1", **asked) == "key-1"
        assert ids(await logged(log, "orders")) == [("/shop", "key-1")]


async def test_outbox_relay_and_services_in_one_process(broker: str, database: str) -> None:
    """An order comes in over HTTP, and the application's own service thanks for it."""
    shop, all_in_one = importlib.import_module("shop"), importlib.import_module("all_in_one")
    async with shop.engine.begin() as connection:
        await connection.run_sync(shop.Base.metadata.create_all)
    async with log_at(broker, "orders", "mail.dlq") as log:
        async with all_in_one.app.router.lifespan_context(all_in_one.app):
            correlation_id = await ask(all_in_one.app, "/shop/orders", params={"cents": 5})
            until_s = time.monotonic() + WITHIN_S
            while not all_in_one.thanked:
                assert time.monotonic() < until_s
                await asyncio.sleep(0.02)
        assert ids(await logged(log, "orders")) == [("/shop", correlation_id)]
    await shop.engine.dispose()


def test_command_has_the_options_of_the_page() -> None:
    """Each that is named in the section on the relay."""
    section = PAGE.partition("## The relay")[2].partition("\n## ")[0]
    said = re.sub(r"\s+", " ", choreo("relay", "--help").stdout)
    for option in set(re.findall(r"--[a-z][a-z-]+", section)):
        assert option in said
