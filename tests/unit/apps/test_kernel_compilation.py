"""After an installation no run compiles: both environments have the translator's kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalr_prod.apps.kernel_compilation import compile_kernels
from scalr_prod.config.settings import load_settings
from scalr_prod.project import Project
from scalr_prod.serving.install.environment import find_environment

#: Compile everything.
long = pytest.mark.long


def compiled(cache: Path) -> dict[str, set[str]]:
    """Names of the functions with code in each environment's folder."""
    found: dict[str, set[str]] = {}
    for file in cache.rglob("*.nbc"):
        environment = file.relative_to(cache).parts[1]
        found.setdefault(environment, set()).add(file.name.partition("-")[0])
    return found


@long
def test_both_environments_have_the_kernels_and_a_run_compiles_none(project, tmp_path):
    environment = find_environment(load_settings(project)).folder
    variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "scalr_prod.apps.kernel_compilation", str(environment)]
    done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    assert done.stderr.startswith("compiling the translator's kernels")
    assert "could not" not in done.stderr
    served, trained = sorted(compiled(tmp_path).values(), key=len)
    assert served == {"item_block.add_log_products", "item_block.score_block"}
    assert served < trained
    before = compiled(tmp_path)
    subprocess.run(
        [str(Path(sys.executable).with_name("scalr")), "run", "--config", str(project)],
        env=variables,
        check=True,
        capture_output=True,
    )
    assert compiled(tmp_path) == before


@long
def test_an_environment_that_cannot_compile_is_warned_about_only(tmp_path, caplog):
    compile_kernels(tmp_path / "nowhere")
    assert "could not be compiled; the first run will try again" in caplog.text
    assert "nowhere" in caplog.text


def test_the_ledger_and_lake_of_the_environments_variables_are_not_touched(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("trained far enough")

    monkeypatch.setenv("SCALR_PROJECT__LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("SCALR_LEDGER__URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setattr(Project, "train", refuse)
    compile_kernels(None)
    assert "trained far enough" in caplog.text
    assert not list(tmp_path.iterdir())
    assert os.environ["SCALR_PROJECT__LAKE"] == str(tmp_path / "lake")
