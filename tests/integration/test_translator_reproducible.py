"""A second training of the same logs gives the same version, whatever the number of threads."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.translator import load_version, train

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory, make_project) -> Path:
    """The folder of a project with histories, with enough users for torch to share out its work among threads."""
    folder = tmp_path_factory.mktemp("reproducible") / "logs"
    settings = make_project(folder, users=1500, source_items=400, target_items=240)
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    return folder


def trained(untrained: Path, home: Path, threads: int) -> dict[str, str]:
    """Train in a copy: the digest of every tensor and of every other table of the version, and its figures."""
    shutil.copytree(untrained, home)
    settings = load_settings(home / "scalr.toml", translator={"threads": threads, "dim": 64})
    apply_feature_repo(settings)
    train(settings)
    version = load_version(settings)
    tensors = load_file(version.path / "translator.safetensors")
    found = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
    found |= {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in version.path.glob("*.parquet")}
    return found | {"metrics": str(version.manifest["metrics"])}


@pytest.fixture(scope="module")
def alone(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one thread trains."""
    return trained(untrained, tmp_path_factory.mktemp("alone") / "logs", 1)


@pytest.mark.parametrize("threads", [2, pytest.param(3, marks=pytest.mark.nightly(reason="CONTRIBUTING.md"))])
def test_any_number_of_threads_trains_the_same_version(untrained, alone, tmp_path, threads):
    assert {"-1/sequential/source", "1/factorisation/target", "1/calibration/held_out"} <= alone.keys()
    found = trained(untrained, tmp_path / "logs", threads)
    assert alone.keys() == found.keys()
    assert [name for name in alone if alone[name] != found[name]] == []
