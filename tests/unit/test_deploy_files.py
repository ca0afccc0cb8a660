"""What deploy/ says is true of this version: commands, services, metrics, deadlines. No engine, no cluster."""

import json
import os
import re
import shutil
import subprocess
import tomllib
import warnings
from collections.abc import Iterator
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from choreo.cli.run import run
from handlers.order_stores.app import app
from handlers.web_orders import tables

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TARGET = "handlers.order_stores.app:app"
DRAIN_S = float(signature(run).parameters["drain_s"].default)
FLUSH_S = 10.0
BUILT_IN = {
    "sum",
    "by",
    "max",
    "rate",
    "increase",
    "histogram_quantile",
    "and",
    "or",
    "unless",
    "offset",
    "le",
    "max_over_time",
}
UNITS = {"s": "_seconds"}
BESIDE = {"web": "handlers.web_orders.main:app", "relay": "relay"}
"""What is deployed beside the services, and a word of its command."""
SECRETS = {"CHOREO_STORE": "choreo-stores", "CHOREO_DATABASE": "web-orders", "WEB_ORDERS_DATABASE": "web-orders"}


def tool(name: str, instead: str) -> str:
    """A program that not every machine has; the test is skipped without, in CI too."""
    found = os.environ.get(name.upper()) or shutil.which(name)
    if not found:
        pytest.skip(f"no {name}: install {instead}, or name it in {name.upper()}")
    return found


# ---- Kubernetes


@cache
def built(folder: str) -> list[dict[str, Any]]:
    """The objects of a kustomization."""
    command = [tool("kubectl", "Kubernetes' client"), "kustomize", str(DEPLOY / "kubernetes" / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(folder: str, kind: str) -> list[dict[str, Any]]:
    """Of these one kind."""
    found = [each for each in built(folder) if each["kind"] == kind]
    assert found
    return found


@pytest.mark.parametrize("folder", ["base", "before", "overlays/three"])
def test_manifests_are_valid(folder: str) -> None:
    """By Kubernetes' own schemas, of its oldest and newest version at hand; nothing that no schema knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for each in built(folder):
            if each["kind"] == "ScaledObject":
                continue  # KEDA's, which the package has not
            for version in ("1.31", kubernetes_validate.latest_version()):
                kubernetes_validate.validate(each, version, strict=True)
    broken = {**built(folder)[-1], "specc": {}}
    if broken["kind"] != "ScaledObject":
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, "1.31", strict=True)


@pytest.mark.parametrize("folder", ["base", "overlays/three"])
def test_every_service_is_deployed_well(folder: str) -> None:
    """Each, the application and its relay too: probes, a budget, apart from its copies, time to drain, no rights."""
    deployments = {each["metadata"]["name"]: each["spec"] for each in of_kind(folder, "Deployment")}
    assert set(deployments) == {*app.services, *BESIDE}
    budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind(folder, "PodDisruptionBudget")}
    for name, spec in deployments.items():
        labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
        (container,) = pod["containers"]
        if name in BESIDE:
            assert BESIDE[name] in [*container.get("command", ()), *container["args"]]
        else:
            assert container["args"][:4] == ["run", TARGET, "--service", name]
        assert ("annotations" in spec["template"]["metadata"]) == (name != "web"), "it has no /metrics"
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert budgets[name] == {"maxUnavailable": 1, "selector": {"matchLabels": spec["selector"]["matchLabels"]}}
        assert pod["terminationGracePeriodSeconds"] > DRAIN_S + FLUSH_S
        probes = {each: container[each]["httpGet"] for each in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert {each["path"] for each in probes.values()} == {"/livez", "/readyz"}
        assert probes["readinessProbe"] == {"path": "/readyz", "port": container["ports"][0]["name"]}
        for spread in pod["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]


def test_no_secret_is_in_a_manifest() -> None:
    """Stores' URLs hold passwords: they are referred to."""
    for folder in ("before", "overlays/three"):
        for each in [*of_kind(folder, "Deployment" if folder != "before" else "Job")]:
            for container in each["spec"]["template"]["spec"]["containers"]:
                for variable in container.get("env", []):
                    if (secret := SECRETS.get(variable["name"])) is not None:
                        assert variable["valueFrom"]["secretKeyRef"]["name"] == secret
        assert not [each for each in built(folder) if each["kind"] == "Secret"]


def test_a_release_has_one_tag() -> None:
    """Topics and schemas are those of the version that is deployed, in one namespace."""
    objects = [*of_kind("before", "Job"), *of_kind("overlays/three", "Deployment")]
    images = {each["spec"]["template"]["spec"]["containers"][0]["image"] for each in objects}
    assert len(images) == 1
    assert not images.pop().endswith(":latest")
    assert len({each["metadata"]["namespace"] for each in objects}) == 1


def test_lag_scales_within_the_partitions() -> None:
    """Three at least; by the service's own group; not beyond the partitions its topics are made with."""
    objects = {each["metadata"]["name"]: each["spec"] for each in of_kind("overlays/three", "ScaledObject")}
    assert set(objects) == set(app.services)
    (topics,) = [each for each in of_kind("before", "Job") if each["metadata"]["name"] == "topics"]
    arguments = topics["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[:3] == ["topics", "apply", TARGET]
    partitions = int(arguments[arguments.index("--partitions") + 1])
    for name, spec in objects.items():
        (trigger,) = spec["triggers"]
        assert spec["scaleTargetRef"] == {"name": name}
        assert trigger["metadata"]["consumerGroup"] == app.services[name].group
        assert spec["minReplicaCount"] == 3
        assert spec["maxReplicaCount"] == partitions
    for deployment in of_kind("overlays/three", "Deployment"):
        scaled = deployment["metadata"]["name"] in objects
        assert ("replicas" not in deployment["spec"]) == scaled, "an apply would undo what was scaled"
    for deployment in of_kind("base", "Deployment"):
        assert deployment["spec"]["replicas"] >= 2


def test_application_is_reached_where_it_listens() -> None:
    """The Service goes to its pods, and to the port that the probes ask; one relay leads and one stands by."""
    (service,) = of_kind("overlays/three", "Service")
    deployments = {each["metadata"]["name"]: each["spec"] for each in of_kind("overlays/three", "Deployment")}
    labels = deployments["web"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    (container,) = deployments["web"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert container["args"][container["args"].index("--port") + 1] == str(port["containerPort"])
    assert deployments["relay"]["replicas"] == 2
    names = {each["metadata"]["name"]: each for each in of_kind("before", "Job")}
    assert names["web-tables"]["spec"]["template"]["spec"]["containers"][0]["command"][-1] == tables.__name__


def test_image_has_what_the_application_needs() -> None:
    """Its requirements are those that its tests are run with."""
    wanted = (ROOT / "handlers" / "web_orders" / "requirements.txt").read_text().splitlines()
    tried = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    assert set(wanted) <= {each for each in tried if isinstance(each, str)}  # the others include groups
    assert "handlers/web_orders/requirements.txt" in (DEPLOY / "Dockerfile").read_text()


# ---- compose


def test_compose_runs_every_service_and_lets_it_drain() -> None:
    """With what its store and its topics need done before."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    applied = [
        name
        for each in services.values()
        if each.get("command", [""])[:2] == ["store", "apply"]
        for name in re.findall("[a-z]+", " ".join(each["command"][3:]))
        if name != "service"
    ]
    assert sorted(applied) == sorted(app.services)
    for name in app.services:
        service = services[name]
        assert service["command"][:4] == ["run", TARGET, "--service", name]
        assert float(service["stop_grace_period"].removesuffix("s")) > DRAIN_S + FLUSH_S
        for before in ("topics", "store-postgres", "store-redis"):
            assert service["depends_on"][before] == {"condition": "service_completed_successfully"}
    for name, word in BESIDE.items():
        service = services[name]
        assert word in [*service.get("entrypoint", ()), *service["command"]]
        assert float(service["stop_grace_period"].removesuffix("s")) > DRAIN_S + FLUSH_S
        assert service["depends_on"]["web-tables"] == {"condition": "service_completed_successfully"}
    assert (
        services["web"]["environment"]["WEB_ORDERS_DATABASE"] == services["relay"]["environment"]["CHOREO_DATABASE"]
    )


# ---- metrics


@cache
def documented() -> tuple[frozenset[str], frozenset[str]]:
    """Names of metrics and of attributes as Prometheus has them, by docs/metrics.md."""
    names: set[str] = set()
    labels = {"choreo_service", "messaging_operation_name"}  # of every one; of the messaging conventions' own
    page = (ROOT / "docs" / "metrics.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "choreo" / "telemetry").glob("*.py"))
    for row in re.findall(r"^\|( `(?:choreo|messaging)\..*)\|$", page, re.MULTILINE):
        name, kind, attributes, _ = (cell.strip() for cell in row.split("|", 3))
        assert f'"{name.strip("`")}"' in source, f"{name} is in no code"
        type_, _, unit = kind.partition(", ")
        prometheus = name.strip("`").replace(".", "_") + UNITS.get(unit, "")
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "gauge": [""]}[type_]
        names.update(prometheus + suffix for suffix in suffixes)
        labels.update(each.replace(".", "_") for each in re.findall(r"`([a-z_.]+)`", attributes))
    labels |= {"messaging_destination_name", "error_type"}  # "topic" in the table
    return frozenset(names), frozenset(labels)


def used(expression: str) -> Iterator[str]:
    """What an expression names, but for functions, texts, durations and numbers."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\$\w+', " ", expression)
    yield from (word for word in re.findall(r"[a-z_]{2,}", re.sub(r"\b[\d.]+[smhd]?\b", " ", bare)))


def expressions() -> Iterator[tuple[str, str]]:
    """Those of the alerts and of the dashboard, with where they are."""
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((DEPLOY / "grafana" / "choreo.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def test_alerts_and_panels_ask_for_metrics_that_there_are() -> None:
    """By name and by attribute."""
    names, labels = documented()
    seen: set[str] = set()
    for where, expression in expressions():
        found = set(used(expression)) - BUILT_IN
        assert found & names, where
        assert found <= names | labels, f"{where}: {sorted(found - names - labels)}"
        seen |= found & names
    assert len(seen) > len(names) / 2


def test_labels_of_annotations_are_those_of_the_expression() -> None:
    """Else an alert would say nothing where it should name a service."""
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            grouped = set(re.split(r"[,\s]+", re.search(r"by \(([^)]*)\)", rule["expr"])[1]))  # type: ignore[index]
            asked = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
            assert asked <= grouped, rule["alert"]
            for page in re.findall(r"docs/[\w-]+\.md", rule["annotations"]["description"]):
                assert (ROOT / page).exists(), rule["alert"]


def test_panels_lie_beside_each_other() -> None:
    """Ids of their own, and no place taken twice."""
    panels = json.loads((DEPLOY / "grafana" / "choreo.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("command", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")])
def test_prometheus_takes_the_rules(command: tuple[str, ...]) -> None:
    """And they fire when they should, by its own test runner."""
    promtool = tool("promtool", "Prometheus (Debian's package prometheus)")
    done = subprocess.run(
        [promtool, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
