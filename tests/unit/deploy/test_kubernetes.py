"""What deploy/kubernetes holds fits together, as far as can be told without a cluster: schemas, names, ports, mounts, settings."""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS = [one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())]


def of_kind(kind):
    return {one["metadata"]["name"]: one for one in MANIFESTS if one["kind"] == kind}


def templates():
    """Name → pod template of everything that starts pods."""
    pods = {name: one["spec"]["template"] for name, one in (of_kind("Deployment") | of_kind("StatefulSet")).items()}
    return pods | {name: one["spec"]["jobTemplate"]["spec"]["template"] for name, one in of_kind("CronJob").items()}


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_manifests_fit_the_schemas_of_kubernetes(version):
    for manifest in MANIFESTS:
        kubernetes_validate.validate(manifest, version, strict=True)
    wrong = yaml.safe_load((FOLDER / "home.yaml").read_text())
    wrong["spec"]["accessMode"] = ["ReadWriteMany"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_every_file_is_listed_and_every_image_is_named():
    beside = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == beside
    named = {image["name"] for image in KUSTOMIZATION["images"]}
    used = {container["image"] for pod in templates().values() for container in pod["spec"]["containers"]}
    assert used == named
    assert all(re.search(r"\d", image["newTag"]) for image in KUSTOMIZATION["images"])


def test_what_pods_name_is_there():
    secret = set(re.findall(r"^(\w+)=", (FOLDER / "secrets.env.example").read_text(), re.MULTILINE))
    generated = {one["name"] for one in KUSTOMIZATION["configMapGenerator"]}
    for name, pod in templates().items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "scalr-home") in of_kind("PersistentVolumeClaim")
            assert volume.get("configMap", {}).get("name", "scalr") in generated
        for container in pod["spec"]["containers"]:
            mounted = [mount["name"] for mount in container.get("volumeMounts", [])]
            assert sorted(mounted) == sorted(volumes), name
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    assert variable["valueFrom"]["secretKeyRef"] == {"name": "scalr", "key": variable["name"]}
                    assert variable["name"] in secret
            assert all(one["secretRef"]["name"] == "scalr" for one in container.get("envFrom", []))
            assert container["resources"]["limits"]["memory"]


def test_services_find_pods_and_their_ports():
    labels = {name: pod["metadata"]["labels"] for name, pod in templates().items()}
    for name, one in (of_kind("Deployment") | of_kind("StatefulSet")).items():
        assert one["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
    (stateful,) = of_kind("StatefulSet").values()
    assert of_kind("Service")[stateful["spec"]["serviceName"]]["spec"]["clusterIP"] == "None", "each pod has a name"
    for name, service in of_kind("Service").items():
        found = [pod for pod, has in labels.items() if service["spec"]["selector"].items() <= has.items()]
        assert found == [name]
        ports = {port["name"]: port["containerPort"] for port in templates()[name]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports


def test_nothing_runs_as_root_or_may_become_it():
    for pod in templates().values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_project_names_services_that_are_there_and_files_that_are_mounted(monkeypatch):
    for variable in re.findall(r"^(\w+)=", (FOLDER / "secrets.env.example").read_text(), re.MULTILINE):
        name = {"SCALR_LEDGER__URL": "ledger", "SCALR_FEAST__REGISTRY": "feast"}.get(variable)
        monkeypatch.setenv(variable, f"postgresql+psycopg://scalr:secret@postgres/{name}" if name else "scalr=secret")
    settings = load_settings(FOLDER / "scalr.toml")
    assert settings.ledger.url.startswith("postgresql")
    replicas = of_kind("StatefulSet")["scalr-triton"]["spec"]["replicas"]
    assert [url.split(".")[0] for url in settings.serving.urls] == [f"scalr-triton-{number}" for number in range(replicas)]
    for address in (settings.compute.dask.removeprefix("tcp://"), *(url.partition(".")[2] for url in settings.serving.urls)):
        host, port = address.split(":")
        assert int(port) in {one["port"] for one in of_kind("Service")[host]["spec"]["ports"]}
    worker = templates()["scalr-worker"]["spec"]["containers"][0]
    assert f"tcp://{settings.compute.dask.removeprefix('tcp://')}" in worker["args"]
    driver = templates()["scalr-run"]["spec"]["containers"][0]
    for container in (driver, worker):
        mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
        for path in (
            settings.home,
            settings.domains.source.events,
            settings.domains.target.events,
            settings.serving.repository,
        ):
            assert any(str(path).startswith(place) for place in mounted), path
    # What Triton reads is the repository that the driver writes.
    models = next(
        mount for mount in templates()["scalr-triton"]["spec"]["containers"][0]["volumeMounts"] if mount["name"] == "home"
    )
    assert settings.home / models["subPath"] == Path(settings.serving.repository)


def test_the_nightly_command_is_one_that_the_package_has():
    job = of_kind("CronJob")["scalr-run"]["spec"]["jobTemplate"]["spec"]
    command = job["template"]["spec"]["containers"][0]["args"]
    assert command[0] == "scalr"
    settings = next(mount for mount in job["template"]["spec"]["containers"][0]["volumeMounts"] if mount["name"] == "settings")
    file = command[command.index("--config") + 1]
    assert file == f"{settings['mountPath']}/{KUSTOMIZATION['configMapGenerator'][0]['files'][0]}"
    # It is understood: what is missing here is the file alone.
    result = CliRunner().invoke(app, command[1:])
    assert (result.exit_code, file in result.output + result.stderr) == (1, True)


def test_the_gpu_is_added_to_the_container_of_triton():
    overlay = yaml.safe_load((FOLDER / "gpu" / "kustomization.yaml").read_text())
    assert (FOLDER / "gpu" / overlay["resources"][0] / "kustomization.yaml").is_file()
    (patch,) = overlay["patches"]
    place = of_kind(patch["target"]["kind"])[patch["target"]["name"]]
    (change,) = yaml.safe_load(patch["patch"])
    *way, key = (part.replace("~1", "/") for part in change["path"].strip("/").split("/"))
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[key] = change["value"]
    for version in ("1.30", "1.34"):
        kubernetes_validate.validate(of_kind("StatefulSet")["scalr-triton"], version, strict=True)
