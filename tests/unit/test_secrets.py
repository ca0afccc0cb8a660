"""Secrets in payloads, settings and the texts of exceptions, and everything that is written searched for them."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer

from choreo import App, Event, Reject, RetryPolicy, Service
from choreo.envelope import Envelope, write
from choreo.errors import ChoreoError, ConfigurationError, DeclarationError
from choreo.opening import open_store, open_transport
from choreo.process import ProcessManager
from choreo.record import Record
from choreo.runtime.clock import SystemClock
from choreo.runtime.exporting import without_sensitive
from choreo.runtime.unsaid import unsaid
from choreo.sensitive import Sensitive, redacted
from choreo.testing import TestApp
from choreo.testing.otlp import OtlpReceiver
from tests.tea_app import choreo

CARD, WORDS, OTLP = "4111-secret-card", "secret-in-words", "secret-of-otlp"
SECRETS = (CARD, WORDS, OTLP)
MODULE = """
import logging
import os
from typing import Annotated
from choreo import App, Event, ProcessManager, RetryPolicy, Service
from choreo.sensitive import Sensitive

class Asked(Event, type="payment.asked", version=1, topic="payments", key="order"):
    order: str
    card: Annotated[str, Sensitive]

till = Service("till")

@till.handler(Asked, retry=RetryPolicy(attempts_max=2, base_s=0.01))
def charge(asked: Asked) -> None:
    logging.getLogger("till").warning("charging %s %r", asked, asked)
    try:
        int(asked.card)
    except ValueError as error:
        raise RuntimeError("postgresql://me:" + os.environ["PLANTED"] + "@h/db refused " + asked.card) from error

class Checkout(ProcessManager, version=1, by="order"):
    card: Annotated[str, Sensitive]

waiting = Checkout.state("waiting")

@Checkout.starts(Asked, to=waiting)
def begun(asked: Asked) -> Checkout:
    return Checkout(card=asked.card)

@waiting.on(Asked, to=Checkout.final("done"))
def again(self: Checkout, asked: Asked) -> None: ...

app = App(till, Checkout)
"""
TARGET = "secrets_for_tests:app"


class Card(BaseModel):
    """Within an event."""

    number: Annotated[str, Sensitive]
    holder: str


class Paid(Event, type="secrets.paid", version=2, topic="paid", key="order"):
    """With a mark at the top and below it."""

    order: str
    pin: Annotated[str | None, Sensitive] = Field(default=None, alias="thePin", description="of the card")
    cards: tuple[Card, ...] = ()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module, in which the commands run."""
    (tmp_path / "secrets_for_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHOREO_BROKER", "embedded:secrets.db")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("secrets_for_tests", None)


def run(here: Path, *, otlp: str) -> str:
    """What `choreo run` logs until its one event is a dead letter and an instance."""
    environment = {
        **os.environ,
        "PLANTED": WORDS,
        "PYTHONPATH": os.pathsep.join([str(here), str(Path(__file__).parents[2])]),
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{OTLP}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "choreo", "run", TARGET],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until_s = time.monotonic() + 20
        while time.monotonic() < until_s:
            letters = json.loads(choreo("dlq", "list", TARGET, "--json").stdout)["dead_letters"]
            if letters and "waiting" in choreo("instances", "list", TARGET, "--keys").stdout:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        logs, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, logs
    return logs


def test_nothing_that_is_written_holds_a_secret(here: Path) -> None:
    """Logs, spans, dead letters' headers, every command's output; and the topic holds it, as it must."""
    choreo("topics", "apply", TARGET)
    choreo("publish", TARGET, "payment.asked", "order=o1", f"card={CARD}", "--id", "order")
    with OtlpReceiver() as receiver:
        logs = run(here, otlp=receiver.endpoint)
        spans = repr(receiver.spans())
    id_ = json.loads(choreo("dlq", "list", TARGET, "--json").stdout)["dead_letters"][0]["id"]
    choreo("trace", "o1", "--html", "page.html")
    written = {
        "logs": logs,
        "spans": spans,
        "page": (here / "page.html").read_text(),
        **{
            " ".join(words): choreo(*words).output
            for words in (
                ("dlq", "list", TARGET),
                ("dlq", "list", TARGET, "--json"),
                ("dlq", "show", TARGET, id_),
                ("dlq", "show", TARGET, id_, "--payload"),
                ("dlq", "show", TARGET, id_, "--payload", "--json"),
                ("trace", "o1"),
                ("trace", "o1", "--json"),
                ("instances", "list", TARGET, "--keys", "--json"),
                ("instances", "show", TARGET, "o1"),
                ("instances", "show", TARGET, "o1", "--json"),
                ("graph", TARGET, "--format", "html"),
                ("topics", "acl", TARGET, "--broker", "kafka://h:1"),
            )
        },
    }
    found = {(name, secret) for name, text in written.items() for secret in SECRETS if secret in text}
    assert not found
    for name, said in {
        "logs": "RuntimeError",
        "spans": "process payments",
        "page": "payment.asked",
        f"dlq show {TARGET} {id_} --payload": '"card":"***"',
        f"instances show {TARGET} o1": "***",
    }.items():
        assert said in written[name]
    assert "charging order='o1'" in logs
    assert "ValueError" in logs, "the causes of an exception are told"
    assert "in charge" in logs, "and where it came from"
    assert CARD in choreo("dlq", "show", TARGET, id_, "--reveal").output
    assert CARD in choreo("dlq", "export", TARGET).output


def test_exceptions_speak_where_they_are_developed(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG the error itself is logged; else one of its name with its stack, and choreo's own words."""
    try:
        try:
            raise KeyError(WORDS)
        except KeyError as error:
            raise ExceptionGroup(WORDS, [Reject("no such tea"), OSError(WORDS)]) from error
    except ExceptionGroup as error:
        caught = error
    logging.getLogger("choreo.exceptions").setLevel(logging.INFO)
    log = logging.getLogger("told")
    log.error("failed", exc_info=unsaid(caught))
    assert WORDS not in caplog.text
    for said in ("KeyError", "OSError", "Reject: no such tea", "test_secrets.py", "direct cause"):
        assert said in caplog.text
    logging.getLogger("choreo.exceptions").setLevel(logging.DEBUG)
    assert unsaid(caught) is caught


async def test_a_developer_is_told_what_an_exception_says(caplog: pytest.LogCaptureFixture) -> None:
    """In tests of an application, which are nobody else's to read."""
    logging.getLogger("choreo.exceptions").setLevel(logging.NOTSET)
    service = Service("told")

    @service.handler(Paid, retry=RetryPolicy(attempts_max=1))
    def fail(paid: Paid) -> None:
        raise RuntimeError(WORDS)

    async with TestApp(App(service)) as t:
        await (await t.publish(Paid(order="1", thePin="1"))).settled()
    assert WORDS in caplog.text


def test_passwords_of_urls_are_not_repeated() -> None:
    """Wrong or right: brokers and stores are told by their address."""
    for url in (f"kafka://me:{WORDS}@h:1", f"kafka+confluent://me:{WORDS}@h:1?x=y", f"amqp://me:{WORDS}@h:1"):
        with pytest.raises(ConfigurationError) as caught:
            open_transport(url)
        assert WORDS not in str(caught.value)
    for url in (f"postgresql://me:{WORDS}@127.0.0.1:1/d", f"redis://:{WORDS}@127.0.0.1:1/0", f"mysql://me:{WORDS}@h"):
        assert WORDS not in refusal(url)


def refusal(url: str) -> str:
    """What is said of a store that cannot be opened, its causes included, as a log would."""

    async def opened() -> None:
        store: Any = open_store(url, "desk", "desks", None, clock=SystemClock())
        try:
            await store.open()
        finally:
            await store.close()

    try:
        asyncio.run(opened())
    except ChoreoError as error:
        return "".join(traceback.format_exception(error))
    raise AssertionError(f"{url} was opened")


def test_marks_are_found_wherever_they_are() -> None:
    """Below the top, under either name of a field, in valid data and in what is none; null stays null."""
    data = {"order": "1", "thePin": "x", "cards": [{"number": "x", "holder": "Ada"}, {"number": ["x"]}], "more": 1}
    assert redacted(Paid, data) == {
        "order": "1",
        "thePin": "***",
        "cards": [{"number": "***", "holder": "Ada"}, {"number": "***"}],
        "more": 1,
    }
    assert redacted(Paid, {"pin": "x", "thePin": None}) == {"pin": "***", "thePin": None}
    paid = Paid(order="1", thePin="x", cards=(Card(number="x", holder="Ada"),))
    assert repr(paid) == "Paid(order='1', cards=(Card(holder='Ada'),))"
    assert b'"thePin":"x"' in paid.payload(), "the topic holds it"
    assert Paid.model_json_schema()["properties"]["thePin"]["x-sensitive"], "whoever reads the schema is told"


class Odd:
    """Of which there is no JSON Schema."""


class Plain(BaseModel):
    """Nothing is marked."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    odd: Odd | None = None


class Marked(Plain):
    """Something is."""

    card: Annotated[str, Sensitive] = ""


def test_only_what_is_marked_needs_a_schema() -> None:
    """A model without a mark is told as it is; one with a mark and no schema not at all."""
    assert redacted(Plain, {"odd": 1}) == {"odd": 1}
    assert redacted(Marked, {"odd": 1}) == "***"


def test_what_cannot_be_told_apart_is_hidden() -> None:
    """No JSON, another version, another type: all of the value."""

    def shown(value: bytes, version: int = 2, type_: str = "secrets.paid") -> bytes | None:
        headers = write(Envelope("1", "/s", type_, version=version))
        return without_sensitive(Record("t", 0, 0, None, value, headers, 0), [Paid]).value

    assert shown(b'{"thePin":"x"}') == b'{"thePin":"***"}'
    assert shown(b'{"thePin":"x"') == b"***"
    assert shown(b'{"oldPin":"x"}', version=1) == b"***"
    assert shown(b'{"thePin":"x"}', type_="other") == b"***"
    structured = b'{"specversion":"1.0","id":"1","source":"/s","type":"secrets.paid","data":{"thePin":"x"}}'
    headers = (("content-type", b"application/cloudevents+json"),)
    assert b'"***"' in (without_sensitive(Record("t", 0, 0, None, structured, headers, 0), [Paid]).value or b"")


def test_declarations_that_would_lose_or_show_a_secret_are_refused() -> None:
    """A SecretStr is sent as asterisks, and a key is in every listing."""
    with pytest.raises(DeclarationError, match=r"Lost\.pin: the JSON of a SecretStr"):

        class Lost(Event, type="secrets.lost", topic="lost"):
            pin: SecretStr | None = None

    with pytest.raises(DeclarationError, match="is Sensitive, and the key"):

        class Keyed(Event, type="secrets.keyed", topic="keyed", key="card"):
            card: Annotated[str, Sensitive]

    with pytest.raises(DeclarationError, match="SecretStr"):

        class Held(ProcessManager, version=1, by="order"):
            pin: SecretStr

    class ByPin(ProcessManager, version=1, by="pin"): ...

    with pytest.raises(DeclarationError, match="by='pin' is Sensitive in Paid"):
        ByPin.field_of(Paid)

    class Kept(Event, type="secrets.kept", topic="kept"):
        """Whoever writes it plainly may have it."""

        pin: SecretStr

        @field_serializer("pin")
        def plain(self, pin: SecretStr) -> str:
            return pin.get_secret_value()

    assert Kept(pin=SecretStr("x")).payload() == b'{"pin":"x"}'


def test_settings_that_fail_at_import_are_not_repeated(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pydantic quotes all that it was given, other fields' passwords among it."""
    (here / "wrong_settings.py").write_text(
        "from pydantic import BaseModel\n\nclass Settings(BaseModel):\n    url: str\n    port: int\n\n"
        "import os\nSettings(**{'password': os.environ['PLANTED'], 'url': os.environ['PLANTED'], 'port': 'x'})\n"
    )
    monkeypatch.setenv("PLANTED", WORDS)
    told = choreo("check", "wrong_settings:app", code=2).output
    assert "Settings: port: Input should be a valid integer" in told
    assert WORDS not in told
