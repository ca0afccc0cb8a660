"""The rights that `choreo topics acl` prints: for people and for programs the same, and each of them for a reason."""

import json
import shlex
from collections import defaultdict

import pytest

from tests.tea_app import choreo

ORDERS, APPROVAL = "handlers.order_fulfilment.app:app", "handlers.approval.app:app"
PREFIX = ["kafka-acls.sh", "--bootstrap-server", "h:1", "--command-config", "admin.properties", "--add"]


def rights(target: str, *arguments: str) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Operations by resource and name, a service."""
    told = json.loads(choreo("topics", "acl", target, "--broker", "kafka://h:1", "--json", *arguments).stdout)
    return {
        service["service"]: {(acl["resource_type"], acl["name"]): acl["operations"] for acl in service["acls"]}
        for service in told["services"]
    }


@pytest.mark.parametrize("target", [ORDERS, APPROVAL])
def test_commands_say_what_the_json_says(target: str) -> None:
    """Line by line; what comes behind # is a shell's comment."""
    text = choreo(
        "topics", "acl", target, "--broker", "kafka://h:1", "--principal", "User:CN={service},O=Tea Ltd"
    ).stdout
    found: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(dict)
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        words = shlex.split(line, comments=True)
        assert words[:6] == PREFIX
        options = list(zip(words[6::2], words[7::2], strict=True))
        ((_, principal),) = [pair for pair in options if pair[0] == "--allow-principal"]
        (resource,) = [pair for pair in options if pair[0] in ("--topic", "--group", "--transactional-id")]
        service = principal.removeprefix("User:CN=").removesuffix(",O=Tea Ltd")
        operations = [value for name, value in options if name == "--operation"]
        found[service][resource[0].removeprefix("--"), resource[1]] = operations
    assert found == rights(target)


def test_a_service_is_granted_what_it_does_and_no_more() -> None:
    """Another's topics are not written, its own replays not either; nothing is said of the cluster."""
    payments = rights(ORDERS, "--service", "payments")["payments"]
    assert payments == {
        ("topic", "payments"): ["Read", "Write"],
        ("topic", "shipments"): ["Read"],
        ("topic", "stock"): ["Read"],
        ("topic", "payments.dlq"): ["Write"],
        ("topic", "payments.replay"): ["Read"],
        ("group", "payments"): ["Read"],
    }
    kept = rights(ORDERS, "--service", "payments", "--store", "changelog")["payments"]
    more = {name: operations for name, operations in kept.items() if name not in payments}
    assert more.pop(("transactional-id", "choreo.payments.")) == ["Write"]
    assert set(map(tuple, more.values())) == {("Read", "Write", "DescribeConfigs")}
    assert len(more) == 4, "keys of three inputs and of the replays"


def test_a_process_may_send_itself_its_timers() -> None:
    """They come back by a topic of its own."""
    assert rights(APPROVAL)["approval"]["topic", "approval.timers"] == ["Read", "Write"]


def test_there_are_no_rights_on_a_file() -> None:
    """Nothing is printed for the embedded broker."""
    assert "kafka://" in choreo("topics", "acl", ORDERS, "--broker", "embedded:x.db", code=2).stderr
