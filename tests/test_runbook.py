"""docs/runbook.md is done, command by command: on a dead letter, a stuck saga, an instance of an old version."""

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from choreo import App
from choreo.errors import Reject
from choreo.opening import open_transport
from handlers.approval.app import mailbox
from handlers.approval.events import ExpenseSubmitted
from handlers.approval.process_v1 import ApprovalV1
from handlers.order_fulfilment.app import app as orders
from handlers.order_fulfilment.events import Customer, Money, OrderLine, OrderPlaced
from handlers.order_fulfilment.payments.provider import PaymentProvider
from handlers.order_saga.app import app as shop
from tests.tea_app import choreo

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "runbook.md").read_text()
APPS = {
    "orders": "handlers.order_fulfilment.app",
    "shop": "handlers.order_saga.app",
    "expenses": "handlers.approval.app",
}
ORDER = UUID(int=7, version=4)
KEYS = {"orders:app": str(ORDER), "shop:app": str(ORDER), "expenses:app": "E-1"}
ASK = ("replay", "drop", "release", "skip", "fire-timer", "set-state", "migrate")
STUCK = "stuck-refund-payment"
PLACED = OrderPlaced(
    order_id=ORDER,
    customer=Customer(id="c-1", name="Ann", email="ann@example.org"),
    lines=(OrderLine(sku="BK-1001", quantity=1),),
    total=Money(amount="9.90", currency="EUR"),
    payment_token="tok_1",
    region="domestic",
    placed_at=datetime(2026, 1, 1, tzinfo=UTC),
)


class Refuses:
    """A payment provider for a bad day."""

    async def charge(self, **_: object) -> None:
        """As the port has it."""
        raise Reject("nothing is charged today")

    async def refund(self, **_: object) -> None:
        """As the port has it."""


def commands(text: str) -> Iterator[list[str]]:
    """Every command of the page, in its order: in blocks and within sentences."""
    text = re.sub(r"\\\n\s*", "", text)
    for line in re.findall(r"^ *(choreo [^\n]*)$|`(choreo [^`]*)`", text, re.MULTILINE):
        words = shlex.split(" ".join("".join(line).split()), comments=True)[1:]
        if any(word.endswith(":app") for word in words):  # else it is only named
            yield words


async def settled(app: App, *services: str, within_s: float = 20.0) -> None:
    """Run these services until nothing is left for them to do."""
    overrides = {PaymentProvider: Refuses()} if app is orders else None
    async with app.running(services, broker="embedded:log.db", overrides=overrides) as running:
        async with asyncio.timeout(within_s):
            quiet = 0
            while quiet < 5:
                await asyncio.sleep(0.1)
                handled = sum(worker.counts["handled"] for worker in running.workers.values())
                busy = any(worker.engine.unfinished() for worker in running.workers.values())
                quiet = 0 if busy or not handled else quiet + 1


@pytest.fixture
def ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A folder with three apps, each in trouble; ids of dead letters by app."""
    for name, module in APPS.items():
        (tmp_path / f"{name}.py").write_text(f"from {module} import app\n")
    (tmp_path / "schemas").symlink_to(ROOT / "schemas")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("CHOREO_BROKER", "embedded:log.db")
    for name in APPS:
        choreo("topics", "apply", f"{name}:app")
    expense = ExpenseSubmitted(request_id="E-1", employee="e", manager="m", cents=5)
    for target, event in (("expenses:app", expense), ("orders:app", PLACED)):
        choreo("publish", target, "--file", "-", event.event_type, stdin=event.payload())
    asyncio.run(settled(App(ApprovalV1, mailbox), "approval"))
    asyncio.run(settled(orders, "inventory", "payments"))
    asyncio.run(settled(shop, "checkout"))
    stuck = ("instances", "set-state", "shop:app", str(ORDER), STUCK, "--process", "checkout", "--yes")
    choreo(*stuck, "--reason", "a test")
    found = asyncio.run(letters())
    yield {"ID": found[0], "KEY": ""}
    for name in APPS:
        sys.modules.pop(name, None)


async def letters() -> list[str]:
    """Ids of payments' dead letters."""
    transport = open_transport("embedded:log.db")
    await transport.open()
    records = await transport.scan(["payments.dlq"], since_ms=0)
    await transport.close()
    return [f"{record.topic}/{record.partition}@{record.offset}" for record in records]


def test_every_command_does_what_the_page_says(ids: dict[str, str]) -> None:
    """With ids and keys of what is wrong here; where it says that a command may exit with 1, it may."""
    done: list[list[str]] = []
    for line in commands(PAGE):
        target = next((word for word in line if word in KEYS), "orders:app")
        line = [{**ids, "KEY": KEYS[target]}.get(word, word) for word in line]
        line = [word.replace("order_id=KEY", f"order_id={KEYS[target]}") for word in line]
        line = [word.replace("CORRELATION_ID", "nobody") for word in line]
        asks = line[0] == "replay" or line[1] in ASK
        code = 1 if "nobody" in line or line[:2] == ["topics", "plan"] else 0
        if line[1] in ("release", "skip") and len(line) > 3 and line[3] in KEYS.values():
            code = 2  # no key is parked here
        store = ["--store", "sqlite:log.db"] if line[0] == "store" else []  # elsewhere the broker says where it is
        choreo(*line, *store, *(["--yes"] if asks and "--dry-run" not in line else []), code=code)
        done.append(line)
    assert len(done) > 20
    saga = json.loads(choreo("instances", "show", "shop:app", str(ORDER), "--process", "checkout", "--json").stdout)
    assert saga["state"] == "compensated"
    assert [each["why"] for each in saga["by hand"]][1:] == [
        "the bank is back",
        "written off, see 4711",
        "settled by hand, see 4711",
    ]
    moved = json.loads(choreo("instances", "show", "expenses:app", "E-1", "--process", "approval", "--json").stdout)
    assert (moved["version"], moved["state"]) == (2, "waiting")
    (letter,) = json.loads(choreo("dlq", "list", "orders:app", "--json").stdout)["dead_letters"]
    assert letter["state"] == "dropped"
