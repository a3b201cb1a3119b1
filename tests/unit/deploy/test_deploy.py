"""What deploy/ holds fits together, as far as can be told without Docker: schemas, files, names of services, settings."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from scalr_prod.config.settings import load_settings

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_compose_file_fits_its_schema(compose):
    import jsonschema
    from check_jsonschema.builtin_schemas import get_builtin_schema

    jsonschema.validate(compose, get_builtin_schema("vendor.compose-spec"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(compose | {"services": {"triton": {"ports": 1}}}, get_builtin_schema("vendor.compose-spec"))


def test_images_are_pinned_and_every_file_is_there(compose):
    for name, service in compose["services"].items():
        if "image" in service:
            assert re.search(r":\S*\d", service["image"]), name
        else:
            assert (DEPLOY.parent / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            if place.startswith("./"):
                assert (DEPLOY / place).exists(), volume
            elif not place.startswith("$"):
                assert place in compose["volumes"], volume
        assert set(service.get("depends_on", [])) <= set(compose["services"])


def test_no_secret_has_a_value():
    lines = [line for line in (DEPLOY / "compose.yaml").read_text().splitlines() if not line.lstrip().startswith("#")]
    secrets = [line for line in lines if re.search(r"PASSWORD|SECRET", line)]
    assert len(secrets) > 5
    for line in secrets:
        assert not re.search(r"\$\{\w*(PASSWORD|SECRET)\w*:-[^}]", line), line
        plain = re.sub(r"\$\{[^}]*\}|\$\$\w+", "", line)
        assert not re.search(r"(PASSWORD|SECRET)\w*\"?:\s*\"?[A-Za-z0-9]{4,}", plain), line


def test_the_project_of_the_deployment_names_its_servers(compose):
    settings = load_settings(DEPLOY / "scalr.toml")
    places = {
        "lake": settings.project.storage_options["AWS_ENDPOINT_URL"],
        "dask": settings.compute.dask,
        "triton": f"grpc://{settings.serving.url}",
        "redis": f"redis://{settings.feast.redis}",
    }
    for what, address in places.items():
        host = re.match(r"\w+://([^:/]+)", address)[1]
        assert host in compose["services"], f"{what}: {address}"
    environment = compose["services"]["airflow"]["environment"]
    databases = set(re.findall(r"CREATE DATABASE (\w+)", (DEPLOY / "postgres/databases.sql").read_text())) | {"ledger"}
    for name in ("SCALR_LEDGER__URL", "SCALR_FEAST__REGISTRY", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"):
        found = re.fullmatch(r"\S+@(\w+):\d+/(\w+)", environment[name])
        assert found[1] in compose["services"]
        assert found[2] in databases
    # Where the settings put files, something is mounted; what they read secrets from, the environment gives.
    mounted = [volume.rsplit(":/", 1)[1].split(":")[0] for volume in compose["services"]["airflow"]["volumes"]]
    for path in (settings.home, settings.metrics.textfile, settings.domains.target.events, settings.serving.repository):
        assert any(str(path).startswith(f"/{place}") for place in mounted), path
    for name in environment:
        section, _, key = name.removeprefix("SCALR_").lower().partition("__")
        if name.startswith("SCALR_") and key:
            assert key in type(getattr(settings, section)).model_fields, name


def test_both_of_airflows_connections_name_the_driver_that_the_image_has(compose):
    environment = compose["services"]["airflow"]["environment"]
    for name, driver in (("SQL_ALCHEMY_CONN", "psycopg"), ("SQL_ALCHEMY_CONN_ASYNC", "psycopg_async")):
        url = sa.make_url(environment[f"AIRFLOW__DATABASE__{name}"].replace("${POSTGRES_PASSWORD}", "secret"))
        assert (url.drivername, url.database) == (f"postgresql+{driver}", "airflow")


def test_prometheus_asks_services_that_are_there(compose):
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    targets = [target for job in config["scrape_configs"] for one in job["static_configs"] for target in one["targets"]]
    assert {target.split(":")[0] for target in targets} <= set(compose["services"])
    assert [Path(path).name for path in config["rule_files"]] == ["alerts.yml"]
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert [source["url"] for source in sources] == ["http://prometheus:9090"]


def test_the_image_has_the_extras_that_its_programs_need():
    extras = re.search(r"package\[([a-z0-9,]+)\]", (DEPLOY / "scalr.Dockerfile").read_text())[1].split(",")
    known = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= set(known)
    assert {"airflow", "postgres", "redis", "s3"} <= set(extras)
