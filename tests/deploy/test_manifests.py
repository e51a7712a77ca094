"""The manifests beside the code: they parse, and name only options and metrics that exist."""

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from preble.cost import CostModel
from preble.types import LoadReport, WorkerSpec, WorkerState
from preble_deploy.cli import COMMANDS
from preble_deploy.options import command_line
from preble_deploy.settings import RouterSettings, ServeSettings, WorkerSettings
from preble_deploy.sources import Settings, flag_names, load, read_yaml
from preble_router.metrics import Metrics
from preble_router.status import ClusterStatus, TreeStatus, WorkerStatus

DEPLOY = Path(__file__).parents[2] / "deploy"
MODELS: dict[str, type[Settings]] = {
    "router": RouterSettings,
    "worker": WorkerSettings,
    "serve": ServeSettings,
}
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def containers(node: Any) -> Iterator[dict[str, Any]]:
    """Every container of every pod template, however deep."""
    if isinstance(node, dict):
        yield from node.get("containers", [])
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from containers(item)


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every `preble` command line of every manifest, with where it stands."""
    for path in KUBERNETES:
        for document in documents(path):
            for container in containers(document):
                if "args" in container:
                    yield f"{path.name}, {container['name']}", container["args"]
            if "entrypoint" in document.get("spec", {}):
                program, *words = shlex.split(document["spec"]["entrypoint"])
                assert program == "preble"
                yield path.name, words
    for path in sorted((DEPLOY / "systemd").glob("*.service")):
        program, *words = shlex.split(unit(path)["Service"]["ExecStart"])
        assert program.endswith("/preble")
        yield path.name, words
    for line in (DEPLOY / "container" / "Dockerfile").read_text().splitlines():
        if line.startswith("CMD "):
            yield "Dockerfile", json.loads(line.removeprefix("CMD "))


def unit(path: Path) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


COMMAND_LINES = list(command_lines())


def test_there_are_command_lines_to_check() -> None:
    assert len(COMMAND_LINES) >= 7
    assert {words[0] for _, words in COMMAND_LINES} == {"router", "worker", "serve"}


@pytest.mark.parametrize(("where", "words"), COMMAND_LINES)
def test_command_lines_use_options_that_exist(where: str, words: list[str]) -> None:
    command, *rest = words
    assert command in COMMANDS
    model = MODELS[command]
    by_flag = {
        flag: name for name, field in model.model_fields.items() for flag in flag_names(name, field)
    }
    given: dict[str, object] = {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            given["model"] = word
            continue
        flag, equals, value = word.partition("=")
        assert flag in by_flag, f"{where}: {flag}"
        given[by_flag[flag]] = value if equals else rest.pop(0)
    given.pop("config", None)
    # What Kubernetes and systemd would put in.
    filled = {
        name: re.sub(r"\$\(\w+\)|%\w", "10.0.0.9", str(value)) for name, value in given.items()
    }
    assert command_line(load(model, filled))


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_config_maps_are_settings_files_of_every_process(path: Path, tmp_path: Path) -> None:
    for document in documents(path):
        for name, text in (document.get("data") or {}).items():
            file = tmp_path / name
            file.write_text(text)
            for model in MODELS.values():
                assert read_yaml(file, model)
                load(model, {"config": str(file)})


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_manifests_hang_together(path: Path) -> None:
    found = documents(path)
    labels = [
        template["metadata"]["labels"]
        for template in templates(found)
        if "labels" in template.get("metadata", {})
    ]
    secrets = {"PREBLE_API_KEY", "PREBLE_WORKER_TOKEN", "PREBLE_ROUTER_TOKEN"}
    for document in found:
        assert {"apiVersion", "kind", "metadata"} <= document.keys()
        if document["kind"] == "Service":
            selector = document["spec"]["selector"].items()
            assert any(selector <= each.items() for each in labels), "it selects nothing"
        if document["kind"] == "Deployment":
            spec = document["spec"]
            match = spec["selector"]["matchLabels"].items()
            assert match <= spec["template"]["metadata"]["labels"].items()
        for container in containers(document):
            names = {entry["name"] for entry in container.get("env", [])}
            ours = {name for name in names if name.startswith("PREBLE_")}
            assert ours <= secrets
            assert all("valueFrom" in e for e in container.get("env", []) if e["name"] in ours)
            used = set(re.findall(r"\$\((\w+)\)", " ".join(container.get("args", []))))
            assert used <= names
    for template in templates(found):
        # Else Kubernetes sets PREBLE_ROUTER_PORT and the like.
        assert template["spec"]["enableServiceLinks"] is False


def templates(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template, however deep."""
    if isinstance(node, dict):
        if "template" in node:
            yield node["template"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from templates(item)


def test_prometheus_scrapes_the_gateway() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    port = RouterSettings.model_fields["port"].default
    assert job["static_configs"][0]["targets"] == [f"127.0.0.1:{port}"]


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name
)
def test_units_give_time_to_drain(path: Path) -> None:
    parsed = unit(path)
    assert parsed.sections() == ["Unit", "Service", "Install"]
    drain = RouterSettings.model_fields["drain_seconds"].default
    assert int(parsed["Service"]["TimeoutStopSec"]) > drain
    assert parsed["Service"]["RestartPreventExitStatus"] == "2"


def exposed_metrics() -> dict[str, set[str]]:
    """Names of all samples that a router exposes, with the labels of each."""
    spec = WorkerSpec(
        worker_id="w",
        epoch=1,
        model="m",
        page_tokens=16,
        capacity_tokens=1,
        max_batch_tokens=1,
        max_sequences=1,
        context_tokens=1,
        vocab_size=1,
        cost=CostModel(
            name="c",
            fixed=0.0,
            per_prefill_token=0.0,
            per_attention=0.0,
            per_decode=0.0,
            per_context_token=0.0,
        ),
    )
    worker = WorkerStatus(
        address="a:1", worker_id="w", state=WorkerState.READY, spec=spec, load=LoadReport()
    )
    status = ClusterStatus(
        router_id="r",
        version="1",
        model="m",
        policy="p",
        workers=(worker,),
        tree=TreeStatus(nodes=0, pages=0, held_pages=0),
        live_requests=0,
        uptime_seconds=0.0,
        outcomes={"stop": 1},
        placements={"explore": 1},
    )
    metrics = Metrics()
    metrics.http_request("GET", "/x", 200, 0.1)
    text, _ = asyncio.run(metrics.render(status, accept="text/plain"))
    found: dict[str, set[str]] = {}
    for line in text.decode().splitlines():
        if sample := re.match(r"(\w+)(?:\{(.*)\})? ", line):
            found.setdefault(sample[1], set()).update(re.findall(r"(\w+)=", sample[2] or ""))
    return found


def test_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    exposed = exposed_metrics()
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) >= 14
    for expression in expressions:
        names = set(re.findall(r"preble_\w+", expression))
        assert names
        for name in names:
            assert name in exposed, f"{name} in {expression}"
        labels = set(re.findall(r"by \((\w+)\)", expression)) | set(
            re.findall(r"[{,](\w+)=", expression)
        )
        known = set().union(*(exposed[name] for name in names)) | {"instance", "le"}
        assert labels <= known, f"{labels - known} in {expression}"
    variables = [entry["name"] for entry in dashboard["templating"]["list"]]
    assert variables == ["datasource", "router"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
