"""The serving environment: where it goes, what it is made of, what is refused, and that it is asked for before any work."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from support.warm import run

from scalr_prod import __version__
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ServingError
from scalr_prod.project import Project
from scalr_prod.serving.install import interpreters, virtualenvs
from scalr_prod.serving.install.environment import environment_candidates, find_environment, require_environment
from scalr_prod.serving.install.installer import _precompile, plan_serving
from scalr_prod.serving.install.virtualenvs import EnvironmentSpec, build_environment

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="no Triton server for this machine"
)
#: Makes environments with pip or uv; what would be installed, and where, is in the others.
long = pytest.mark.long


def test_a_run_asks_for_the_environment_before_any_work(project):
    settings = load_settings(project, serving={"environment": "nowhere"})
    with pytest.raises(ServingError, match="no serving environment") as caught:
        Project(settings).run()
    assert caught.value.where == str(project.parent / "nowhere")
    assert "scalr serving install" in caught.value.next_step
    assert not settings.home.exists()


@pytest.mark.parametrize("serving", [{"scorer": "local"}, {"url": "elsewhere:8001"}])
def test_other_scorers_need_no_environment(project, serving):
    require_environment(load_settings(project, serving={"environment": "nowhere", **serving}))


def test_an_environment_of_another_version_of_the_package_is_not_used(project):
    environment = find_environment(load_settings(project))
    assert environment.find_problem() is None
    other = replace(environment, packages=environment.packages | {"scalr-prod": "0.0.1"})
    assert other.find_problem() == f"scalr-prod 0.0.1 is installed there, and {__version__} here"


@pytest.mark.slow
def test_what_the_model_imports_is_kept_compiled_and_what_cannot_be_imported_is_told(project, tmp_path):
    environment = find_environment(load_settings(project))
    assert _precompile(environment) is None
    packages = next(environment.folder.glob("lib/python3*/site-packages"))
    assert all(list((packages / name / "__pycache__").glob("__init__.*.pyc")) for name in ("numba", "numpy", "torch"))
    broken = tmp_path / "bin" / "python"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no torch >&2\nexit 1\n")
    broken.chmod(0o755)
    assert _precompile(replace(environment, folder=tmp_path)) == "the model's imports fail: no torch"


def test_the_plan_is_made_from_what_ships_with_the_package(project, tmp_path):
    plan = plan_serving(folder=tmp_path / "new")
    assert (plan.folder, plan.exists, plan.package) == (tmp_path / "new", False, ROOT)
    assert plan.minor in interpreters.SUPPORTED_MINORS
    wanted = [line for line in plan.requirements.read_text().splitlines() if not line.startswith("#")]
    assert {line.partition("<")[0].partition(">")[0].partition("=")[0] for line in wanted} == {
        "numba",
        "numpy",
        "nvidia-pytriton",
        "safetensors",
        "torch",
    }
    assert "torch==" in plan.constraints.read_text()
    assert not plan.folder.exists()
    named = load_settings(project, serving={"environment": "mine"})
    assert plan_serving(named).folder == project.parent / "mine"


def test_the_environment_that_is_used_is_the_one_that_is_brought_up_to_date(project):
    plan = plan_serving(load_settings(project))
    assert plan.exists
    assert plan.folder == find_environment(load_settings(project)).folder


def test_without_a_virtual_environment_nothing_goes_beside_the_systems_python(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.chdir(tmp_path)
    assert Path(sys.base_prefix).parent / ".venv-triton" not in environment_candidates(None)
    assert tmp_path / ".venv-triton" in environment_candidates(None)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "letters").write_text("to keep")
    for folder in (tmp_path, Path(sys.prefix)):
        with pytest.raises(ServingError, match="not a serving environment") as caught:
            plan_serving(folder=folder)
        assert "--folder" in caught.value.next_step
    assert (tmp_path / "letters").read_text() == "to keep"


def test_a_machine_without_a_fitting_python_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(interpreters, "SUPPORTED_MINORS", ("3.99",))
    with pytest.raises(ServingError, match=r"needs Python 3\.99") as caught:
        plan_serving(folder=tmp_path / "new")
    assert "pip install uv" in caught.value.next_step


def test_the_command_needs_no_project(tmp_path):
    command = [Path(sys.executable).with_name("scalr"), "serving", "install", "--dry-run", "--json", "--folder", "new"]
    done = run(command, cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "new")
    assert not any(tmp_path.iterdir())


def add_wheel(index: Path, name: str, version: str, *needs: str) -> None:
    """A package of one empty module, in a folder that pip and uv can install from."""
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(params=["uv", "pip"])
def index(request, tmp_path, monkeypatch) -> Path:
    """A folder of wheels as the only index, on a machine without a GPU, with uv or without."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(virtualenvs, "has_nvidia_gpu", lambda: False)
    if request.param == "pip":
        monkeypatch.setattr(virtualenvs, "find_uv", lambda: None)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A virtual environment with pip alone; to make one takes seconds."""
    folder = tmp_path_factory.mktemp("empty") / "environment"
    virtualenvs._make_venv(folder, sys.executable, system_packages=False)
    return folder


@pytest.fixture
def recipe(tmp_path, empty, monkeypatch) -> EnvironmentSpec:
    """What is made is a copy of the empty one, instead of another."""
    monkeypatch.setattr(virtualenvs, "_make_venv", lambda folder, *_, **__: shutil.copytree(empty, folder, symlinks=True))
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.13.0\n")
    return EnvironmentSpec(tmp_path / "environment", sys.executable, constraints, ("torch>=2.6",))


def installed(recipe: EnvironmentSpec) -> set[str]:
    found = [path.name.split("-")[0] for path in (recipe.folder / "lib").glob("python*/site-packages/*.dist-info")]
    return set(found) - {"pip", "setuptools"}


@long
@pytest.mark.slow
def test_an_index_that_has_the_cuda_build_alone_is_told_of(index, recipe, caplog):
    add_wheel(index, "torch", "2.13.0", "nvidia-cublas")
    add_wheel(index, "nvidia_cublas", "13.1.0")
    with pytest.raises(ServingError, match="only the CUDA build of torch") as caught:
        build_environment(recipe, torch="cpu")
    assert "PIP_FIND_LINKS" in caught.value.next_step
    assert not recipe.folder.exists(), "what was begun is removed again"
    build_environment(recipe)
    assert "only the CUDA build of torch" in caplog.text
    assert installed(recipe) == {"torch", "nvidia_cublas"}


#: pip is asked for as uv is: by day it has the test above.
uv_by_day = pytest.mark.parametrize("index", ["uv", pytest.param("pip", marks=pytest.mark.nightly)], indirect=True)


@long
@pytest.mark.slow
@uv_by_day
def test_a_cpu_build_that_the_index_has_is_taken(index, recipe, caplog):
    add_wheel(index, "torch", "2.13.0", "nvidia-cublas")
    add_wheel(index, "nvidia_cublas", "13.1.0")
    add_wheel(index, "torch", "2.13.0+cpu")
    build_environment(recipe)
    assert installed(recipe) == {"torch"}
    assert not caplog.text


@long
@pytest.mark.slow
@uv_by_day
def test_packages_are_compiled_where_python_writes_no_bytecode(index, recipe, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # as in many images: every process would compile its imports
    add_wheel(index, "torch", "2.13.0+cpu")
    build_environment(recipe)
    assert list((recipe.folder / "lib").glob("python*/site-packages/__pycache__/torch.*.pyc"))


@long
@pytest.mark.slow
@uv_by_day
def test_an_installation_that_fails_leaves_what_was_there(index, recipe):
    add_wheel(index, "torch", "2.13.0+cpu")
    build_environment(recipe)
    with pytest.raises(ServingError, match="could not install") as caught:
        build_environment(replace(recipe, requirements=("torch>=2.6", "nowhere-to-be-found")))
    assert caught.value.next_step
    assert installed(recipe) == {"torch"}
    add_wheel(index, "own", "1")
    build_environment(replace(recipe, no_deps_arguments=(str(index / "own-1-py3-none-any.whl"),)))
    assert installed(recipe) == {"torch", "own"}


@pytest.mark.parametrize(
    ("version", "gpu", "told"),
    [
        ("2.13.0+cpu", True, True),
        ("2.13.0+cpu", False, False),
        ("2.13.0", True, False),
        ("2.13.0+cu128", True, False),
        (None, True, False),
    ],
)
def test_an_environment_that_cannot_see_the_gpu_says_so(tmp_path, monkeypatch, version, gpu, told):
    monkeypatch.setattr(virtualenvs, "has_nvidia_gpu", lambda: gpu)
    found = virtualenvs.describe_unseen_gpu(tmp_path, version)
    assert (found is not None) == told
    if told:
        assert f"remove {tmp_path}, then run: scalr serving install --torch cuda" in found
