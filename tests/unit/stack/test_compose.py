"""docker-compose.yml, which no test can run here: its syntax, its versions, its ports and what it mounts."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurestore.config import Settings
from featurestore.stack import versions

ROOT = Path(__file__).resolve().parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "scripts/docker/Dockerfile").read_text()
MADE_BY_THE_USER = {"./scripts/docker/keys/api_keys", "./scripts/docker/keys/metrics_key"}


def pins() -> dict[str, str]:
    """Return the exactly pinned packages of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [one for extra in project["optional-dependencies"].values() for one in extra]
    return dict(one.split("==") for one in requirements if "==" in one)


def test_the_parts_of_the_system_are_there() -> None:
    expected = {"kafka", "valkey", "spark-master", "spark-worker", "tools", "scorer", "prometheus", "grafana"}
    assert SERVICES.keys() == expected


def test_versions_agree_with_the_list_and_with_the_python_packages() -> None:
    assert pins()["pyspark"] == versions.SPARK
    assert pins()["delta-spark"] == versions.DELTA
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{versions.KAFKA}"
    assert SERVICES["valkey"]["image"] == f"valkey/valkey:{versions.VALKEY}"
    tags = {service["build"]["args"]["SPARK"] for service in SERVICES.values() if "build" in service}
    tags |= set(re.findall(r"^ARG SPARK=(.+)$", DOCKERFILE, re.MULTILINE))
    assert tags == {f"{versions.SPARK}-scala2.13-java{versions.JAVA[0]}-python3-ubuntu"}
    assert SERVICES["spark-master"]["image"] == f"featurestore-spark:{versions.SPARK}"


def test_the_python_of_the_images_is_one_the_package_supports() -> None:
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    (python,) = re.findall(r"^ARG PYTHON=(.+)$", DOCKERFILE, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in supported


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), f"{name}: {port}"


def test_no_port_is_published_twice() -> None:
    published = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == len(set(published))


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"tools"}))
def test_every_server_has_a_health_check_and_waits_only_for_ones_that_have(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_and_built_exists(name: str) -> None:
    service = SERVICES[name]
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    for secret in service.get("secrets", []):
        assert COMPOSE["secrets"][secret]["file"] in MADE_BY_THE_USER
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert f" AS {service['build']['target']}\n" in DOCKERFILE


def test_the_containers_are_configured_with_settings_that_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in SERVICES["tools"]["environment"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    settings = Settings.load()
    assert settings.online.url == "redis://valkey:6379/0"
    assert settings.kafka["bootstrap.servers"] == "kafka:19092"
    assert settings.spark.master == "spark://spark-master:7077"
    assert settings.offline == "/data/offline"


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+", service["image"]), name


def test_what_the_images_copy_exists() -> None:
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_prometheus_scrapes_services_that_exist_on_ports_they_listen_on() -> None:
    config = yaml.safe_load((ROOT / "scripts/docker/prometheus/prometheus.yml").read_text())
    targets = {
        target for job in config["scrape_configs"] for group in job["static_configs"] for target in group["targets"]
    }
    inside = {f"{name}:{port.split(':')[2]}" for name, service in SERVICES.items() for port in service.get("ports", [])}
    inside |= {f"{name}:{port}" for name, service in SERVICES.items() for port in service.get("expose", [])}
    assert targets <= inside


def test_the_dashboard_asks_only_for_metrics_the_scorer_has() -> None:
    from featurestore.scoring.metrics import ScorerMetrics

    exposed = set(re.findall(r"^# TYPE (\S+)", ScorerMetrics().render().decode(), re.MULTILINE))
    dashboard = json.loads((ROOT / "scripts/docker/grafana/dashboards/scorer.json").read_text())
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked = set(re.findall(r"featurestore_scorer_\w+", expressions))
    assert asked
    assert {name.removesuffix("_bucket") for name in asked} <= exposed
