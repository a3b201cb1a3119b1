"""The recipes of docs/guides/weights.md for libraries that the project does not need, each installed apart from it.

Those for installed libraries run with the other pages, in test_docs_run.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.shown import blocks_of
from support.small import LOCAL, lean

from scalr_prod import Project

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guides" / "weights.md").read_text(encoding="utf-8")
BLOCKS = [block.text for block in blocks_of(PAGE) if block.language == "python"]
(RECBOLE,) = (text for text in BLOCKS if "recbole" in text)
#: With what they import that the project lacks. TorchRec's release goes with torch's: constraints/package.txt.
TRAINERS = (
    "keras", "namex", "optree", "h5py", "ml_dtypes", "absl-py",
    "torchrec==1.8.0", "fbgemm-gpu-cpu==1.8.0", "tensordict", "pyvers", "orjson", "torchmetrics==1.0.3", "lightning-utilities",
    "pyre-extensions", "typing_inspect", "mypy_extensions",
)  # fmt: skip

#: Three libraries are downloaded and installed.
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]


def done(*command: str | Path, **options) -> str:
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert found.returncode == 0, (found.stdout + found.stderr)[-3000:]
    return found.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An empty environment's folder of programs."""
    folder = tmp_path_factory.mktemp("environment")
    done(sys.executable, "-m", "venv", folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def project(make_project, tmp_path_factory) -> Path:
    """A project that has run, with a set of real and synthetic events."""
    folder = tmp_path_factory.mktemp("project")
    config = lean(make_project(folder, LOCAL, users=80).base / "scalr.toml")
    with Project.open(config) as opened:
        opened.run()
    return config


def test_recbole_trains_on_the_export(project, environment):
    (needed,) = re.findall(r"`pip install (recbole .*?)`", PAGE)
    done(environment / "pip", "install", "-q", *needed.replace('"', "").split())
    with Project.open(project) as opened:
        rows = opened.training_set(1)  # the next test adds a version with negatives, which RecBole's BPR draws itself
        report = rows.export(project.parent / "films", "recbole")
    assert 0 < report.synthetic < rows.manifest["synthetic"]
    shown = "print(len(train.dataset), bool(model.user_embedding.weight.isfinite().all()), config['rm_dup_inter'])"
    code = RECBOLE + shown
    said = done(environment / "python", "-c", code, cwd=project.parent, env={**os.environ, "PYTHONPATH": ""})
    assert said.splitlines()[-1] == f"{report.rows} True None"


def test_keras_and_torchrec_train_with_the_weights(project, environment, tmp_path):
    done(environment / "pip", "install", "-q", "--no-deps", "--target", tmp_path, *TRAINERS)
    config = project.read_text()
    project.write_text(f'{config}\n[training_set]\ntask = "classification"\n')
    with Project.open(project) as opened:
        opened.build_training_set()
        opened.training_set().export(project.parent / "sampled.csv", weights="sample")
    code = "".join(text for text in BLOCKS if text is not RECBOLE)
    shown = "print(len(network.weights), float(losses.detach().mean()) > 0, trees.num_trees())"
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    said = done(
        sys.executable,
        "-W",
        "ignore",
        "-c",
        code + shown,
        cwd=project.parent,
        env={**os.environ, "PYTHONPATH": paths, "KERAS_BACKEND": "torch"},
    )
    assert said.splitlines()[-1] == "4 True 20"
    assert (project.parent / "sampled.parquet").is_file()
