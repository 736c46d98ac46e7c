"""Image, compose file and manifests name only what exists: settings, ports, paths, metrics, files. No engine runs them here."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
import yaml
from tests.architecture.sources import ROOT

from hx_gateway.cli.main import application
from hx_gateway.config.environment import NAMES
from hx_gateway.config.load import load_text
from hx_gateway.telemetry.families import FAMILIES

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
PARTS = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "gateway.yaml").read_text(encoding="utf-8")))
KINDS = {part["kind"]: part for part in PARTS}
POD = KINDS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STAGES = DOCKERFILE.split("\nFROM ")[1:]
READ_BY_OTHERS = {"PGPASSWORD", "HX_CONFIG", "STATE_DIRECTORY", "PATH", "PYTHONDONTWRITEBYTECODE"}
VARIABLES = {name for name, _ in NAMES} | READ_BY_OTHERS
PATHS = set(re.findall(r"^\| GET \| `(/[^`]*)`", (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8"), re.MULTILINE))
USER = "10001"


def configuration(text: str, environ: dict[str, str]) -> Any:
    loaded = load_text(text, "config.yaml", environ)
    assert (loaded.blockers, loaded.unused) == ((), ())
    return loaded.config


def given(environment: dict[str, str]) -> dict[str, str]:
    """The environment as compose makes it, with secrets that are set."""
    return {name: re.sub(r"\$\{\w+:\?[^}]*\}", "a-secret-that-somebody-chose", value) for name, value in environment.items()}


def test_the_image_is_built_in_one_stage_and_runs_in_another_as_nobody() -> None:
    build, final = STAGES
    assert "AS build" in build.splitlines()[0] and not re.search(r"\b(apt|gcc|pip|build-essential)\b", final)
    assert re.search(rf"^USER {USER}:{USER}$", final, re.MULTILINE) and "COPY --from=build" in final
    for line in re.findall(r"^COPY (?!--from)(.+)$", build, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
    variables = re.findall(r"(\w+)=", re.search(r"^ENV (.+)$", final, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert set(variables) <= VARIABLES
    extras = re.search(r"^ARG EXTRAS=(\S+)", build, re.MULTILINE).group(1).split(",")  # type: ignore[union-attr]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)


def test_the_image_reads_all_it_is_built_from_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    wanted = {
        source.removeprefix("./") for line in re.findall(r"^COPY (?!--from)(.+)$", STAGES[0], re.MULTILINE) for source in line.split()[:-1]
    }
    assert ignored[0] == "*" and {line[1:] for line in ignored if line.startswith("!")} == wanted


def test_the_health_check_of_the_image_is_a_command_that_exists() -> None:
    words = yaml.safe_load(re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", STAGES[1], re.MULTILINE).group(1))  # type: ignore[union-attr]
    port = re.search(r"API_GATEWAY_PORT=(\d+)", STAGES[1]).group(1)  # type: ignore[union-attr]
    assert words[0] == yaml.safe_load(re.search(r"^ENTRYPOINT (.+)$", STAGES[1], re.MULTILINE).group(1))[0] == "hx-gateway"  # type: ignore[union-attr]
    assert words[-1].endswith(f":{port}") and f"EXPOSE {port}" in STAGES[1]
    group = typer.main.get_command(application())
    command = group.get_command(None, words[1])  # type: ignore[attr-defined, arg-type]
    options = {name for one in command.params for name in one.opts}
    assert {word for word in words[2:] if word.startswith("--")} <= options


def test_compose_names_settings_services_and_files_that_exist() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"gateway", "postgres", "redis", "qdrant", "ollama"}
    gateway = services["gateway"]
    assert set(gateway["environment"]) <= VARIABLES
    assert gateway["read_only"] and gateway["cap_drop"] == ["ALL"] and gateway["security_opt"] == ["no-new-privileges:true"]
    (mounted,) = gateway["configs"]
    assert mounted["target"] == gateway["environment"]["HX_CONFIG"]
    file = ROOT / COMPOSE["configs"][mounted["source"]]["file"]
    config = configuration(file.read_text(encoding="utf-8"), given(gateway["environment"]) | {"API_GATEWAY_HOST": "0.0.0.0"})
    assert gateway["ports"] == [f"{config.service.port}:{config.service.port}"]
    addresses = [config.storage.database_url.reveal(), config.storage.redis_url.reveal(), config.storage.qdrant_url.reveal()]
    addresses += [one.url for one in config.endpoints.values()]
    hosts = {re.search(r"//(?:[^@/]*@)?([a-z]+)", address).group(1) for address in addresses}  # type: ignore[union-attr]
    assert hosts == set(services) - {"gateway"}
    volumes = {volume.partition(":")[0] for one in services.values() for volume in one.get("volumes", ())}
    assert volumes == set(COMPOSE["volumes"])
    assert set(gateway["depends_on"]) <= {name for name, one in services.items() if "healthcheck" in one}
    assert all(":" in one["image"] or "build" in one for one in services.values()), "an image has a tag"


def test_no_secret_stands_in_them() -> None:
    for name, value in COMPOSE["services"]["gateway"]["environment"].items():
        if "KEY" in name or "PASSWORD" in name:
            assert re.fullmatch(r"\$\{\w+:\?.+\}", value), f"{name} is asked for"
    assert "Secret" not in KINDS and CONTAINER["envFrom"] == [{"secretRef": {"name": "hx-gateway"}}]


def test_the_secret_of_the_cluster_holds_settings_that_exist() -> None:
    first = (ROOT / "deploy" / "kubernetes" / "gateway.yaml").read_text(encoding="utf-8").split("apiVersion")[0]
    words = shlex.split(next(line for line in first.splitlines() if "create secret" in line).lstrip("# "))
    assert {word.partition("=")[2].partition("=")[0] for word in words if word.startswith("--from-literal")} <= VARIABLES


def test_the_configuration_of_the_cluster_loads_and_its_ports_and_paths_agree() -> None:
    text = KINDS["ConfigMap"]["data"]["config.yaml"]
    environ = {"MASTER_KEY": "a-secret-that-somebody-chose", "API_GATEWAY_HOST": "0.0.0.0"}
    config = configuration(text, environ)
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == config.service.port
    assert KINDS["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"]["path"] in PATHS and CONTAINER[probe]["httpGet"]["port"] == port["name"]
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/readyz" and CONTAINER["livenessProbe"]["httpGet"]["path"] == "/healthz"
    notes = POD["metadata"]["annotations"]
    assert notes["prometheus.io/path"] in PATHS and notes["prometheus.io/port"] == str(config.service.port)
    (mount,) = (one for one in CONTAINER["volumeMounts"] if one["name"] == "config")
    assert {one["name"]: one["value"] for one in CONTAINER["env"]} == {"HX_CONFIG": f"{mount['mountPath']}/config.yaml"}
    assert {one["name"] for one in CONTAINER["volumeMounts"]} == {one["name"] for one in POD["spec"]["volumes"]}
    state = re.search(r"STATE_DIRECTORY=(\S+)", STAGES[1]).group(1)  # type: ignore[union-attr]
    assert state in {one["mountPath"] for one in CONTAINER["volumeMounts"]} and f"VOLUME {state}" in STAGES[1]
    assert POD["spec"]["terminationGracePeriodSeconds"] > config.http.drain_timeout_seconds + 30


def test_the_pods_run_as_the_user_of_the_image_with_no_rights() -> None:
    assert str(POD["spec"]["securityContext"]["runAsUser"]) == USER and POD["spec"]["securityContext"]["runAsNonRoot"]
    rights = CONTAINER["securityContext"]
    assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"] and rights["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
def test_what_selects_pods_selects_these(kind: str) -> None:
    selector = KINDS[kind]["spec"]["selector"]
    assert selector.get("matchLabels", selector).items() <= POD["metadata"]["labels"].items()


def test_replicas_scale_by_a_metric_that_exists_and_some_always_stay() -> None:
    scaler, deployment = KINDS["HorizontalPodAutoscaler"]["spec"], KINDS["Deployment"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert {one["pods"]["metric"]["name"] for one in scaler["metrics"] if one["type"] == "Pods"} <= set(FAMILIES)
    assert 0 < KINDS["PodDisruptionBudget"]["spec"]["minAvailable"] < scaler["minReplicas"] <= deployment["spec"]["replicas"]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
