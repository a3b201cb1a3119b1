"""What is shipped: bounds of the dependencies, what a wheel holds, and how the package gets into the serving environment."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

import feast_delta
from scalr_prod import __version__
from scalr_prod.core import assets
from scalr_prod.serving.install.installer import build_wheel, checkout_folder

ROOT = Path(__file__).resolve().parents[3]
STORE = ROOT / "packages" / "feast-delta"
PROJECT, STORE_PROJECT = (tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, STORE))
PYTHONS = ("3.11", "3.12", "3.13")
SHIPPED = (
    "constraints/package.txt",
    "constraints/serving.in",
    "constraints/serving.txt",
    "feature_repo/definitions.py",
    "feature_repo/feature_store.yaml",
    "feature_repo/template/README.md",
    "feature_repo/template/feature_store.yaml",
    "feature_repo/template/definitions.py",
    "feature_repo/template/make_events.py",
    "feature_repo/template/retrieve.py",
    "triton_models/translator/config.pbtxt",
    "triton_models/translator/1/model.py",
    "airflow_dags/scalr_dags.py",
)


def pinned(name: str, python: str, file: str = "package") -> Version:
    """The version that a constraint file gives a package on Linux."""
    machine = {
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for line in (ROOT / "constraints" / f"{file}.txt").read_text().splitlines():
        pin, _, marker = line.partition(" ; ")
        if pin.split("==")[0] == name and (not marker or Marker(marker).evaluate(machine)):
            return Version(pin.split("==")[1])
    raise AssertionError(f"{name} is not pinned for Python {python}")


def requirements() -> list[Requirement]:
    extras = [line for extra, lines in PROJECT["optional-dependencies"].items() if extra != "all" for line in lines]
    found = [Requirement(line) for line in (*PROJECT["dependencies"], *STORE_PROJECT["dependencies"], *extras)]
    found = [requirement for requirement in found if requirement.name != STORE_PROJECT["name"]]
    bounded = {requirement.name for requirement in found if requirement.specifier}
    # What is only an extra of a bounded one has no bound of its own.
    return [requirement for requirement in found if requirement.specifier or requirement.name not in bounded]


def next_line(version: Version) -> Version:
    """The first version after the release line of another: the next major one, or minor one before 1.0."""
    return Version(f"{version.major + 1}") if version.major else Version(f"0.{version.minor + 1}")


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_bounded_above_by_what_is_tested(requirement):
    assert requirement.specifier
    (above,) = [part for part in requirement.specifier if part.operator == "<"]
    for python in PYTHONS:
        version = pinned(requirement.name, python)
        assert requirement.specifier.contains(version), f"{version} is tested"
        assert Version(above.version) <= max(next_line(version), Version("1")), f"nothing after {version} is tested"


def test_both_distributions_fit_together():
    (needed,) = (Requirement(line) for line in PROJECT["dependencies"] if line.startswith(STORE_PROJECT["name"]))
    assert needed.specifier.contains(feast_delta.__version__)
    shared = {Requirement(line).name: Requirement(line) for line in PROJECT["dependencies"]}
    # The store works with earlier releases than the package: the lake removes files by an action that deltalake has from 1.6.6 on.
    later = {"feast": "feast>=0.66,<0.68", "deltalake": "deltalake>=1.6.6,<2"}
    of_store = [str(Requirement(later.get(Requirement(line).name, line))) for line in STORE_PROJECT["dependencies"]]
    assert [str(shared[Requirement(line).name]) for line in STORE_PROJECT["dependencies"]] == of_store
    assert {Requirement(line).name for line in STORE_PROJECT["dependencies"]} == {"deltalake", "duckdb", "feast", "pyarrow"}
    for name in ("requires-python", "license"):
        assert PROJECT[name] == STORE_PROJECT[name]
    assert (STORE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_both_environments_have_one_torch():
    assert {pinned("torch", python, file) for python in PYTHONS for file in ("package", "serving")} == {pinned("torch", "3.11")}
    assert pinned("numpy", "3.11", "serving") < Version("2") <= pinned("numpy", "3.11")
    wanted = [line for line in (ROOT / "constraints" / "serving.in").read_text().splitlines() if not line.startswith("#")]
    assert all(Requirement(line).specifier.contains(pinned(Requirement(line).name, "3.12", "serving")) for line in wanted)


def test_the_page_of_compatibility_has_every_bound_and_pin():
    page = (ROOT / "docs" / "reference" / "compatibility.md").read_text(encoding="utf-8")
    package, serving, _, reasons = (
        {cells[0]: cells[1:] for line in part.splitlines() if len(cells := line.strip("| ").split(" | ")) > 1}
        for part in page.split("\n## ")[1:]
    )
    for requirement in requirements():
        accepted, tested, needed_by = package[requirement.name]
        bounds = {str(part) for part in requirement.specifier}
        assert bounds in [set(one.split(", ")) for one in (accepted, *re.findall(r"\((.*?)\)", needed_by))]
        assert {Version(one.partition(" ")[0]) for one in tested.split(", ")} == {pinned(requirement.name, p) for p in PYTHONS}
    wanted = [line for line in (ROOT / "constraints" / "serving.in").read_text().splitlines() if not line.startswith("#")]
    assert {Requirement(line).name for line in wanted} == set(serving) - {"package", "---"}
    assert serving["numpy"][1] == str(pinned("numpy", "3.12", "serving"))
    assert set(reasons) - {"package", "---"} <= set(package) | set(serving)


def test_the_newest_releases_are_those_without_an_upper_bound():
    script = runpy.run_path(str(ROOT / "scripts" / "newest.py"))
    relax, libraries = script["without_upper_bound"], script["LIBRARIES"]
    assert [
        relax(line) for line in ("feast>=0.66,<0.68", "torch>=2.6,!=2.7,<2.14", "feast[redis]", "mkdocs-material==9.5")
    ] == [
        "feast>=0.66",
        "torch!=2.7,>=2.6",
        "feast[redis]",
        "mkdocs-material",
    ]
    assert set(libraries) <= {requirement.name for requirement in requirements()}
    assert all((ROOT / path).is_file() for path in libraries.values())
    assert {name: Version(one) for name, one in script["tested_versions"]().items()} == {
        name: pinned(name, "3.11") for name in libraries
    }


def test_the_store_accepts_the_releases_of_feast_that_its_tests_run_on():
    """The newest, which the constraint file has, and the two before; the page of compatibility has the counts of each."""
    matrix = runpy.run_path(str(ROOT / "scripts" / "feast_matrix.py"))
    (accepted,) = [Requirement(line) for line in STORE_PROJECT["dependencies"] if line.startswith("feast>")]
    releases = [Version(release) for release in matrix["RELEASES"]]
    assert releases[0] == pinned("feast", "3.11")
    assert [accepted.specifier.contains(release) for release in releases] == [True] * 3
    assert [release.minor for release in releases] == list(range(releases[0].minor, releases[0].minor - 3, -1))
    found = json.loads(matrix["RESULT"].read_text())["figures"]["releases"]
    assert [one["feast"] for one in found] == list(matrix["RELEASES"])
    page = (ROOT / "docs" / "reference" / "compatibility.md").read_text(encoding="utf-8")
    for one in found:
        assert f"| {one['feast']} | {one['passed']} | {one['failed']} | {one['skipped']} |" in page


def test_each_extra_is_tried_by_itself():
    tried = runpy.run_path(str(ROOT / "scripts" / "try_dist.py"))
    assert list(tried["EXTRAS"]) == sorted(set(PROJECT["optional-dependencies"]) - {"all"})
    assert tried["PYTHONS"] == PYTHONS


def test_no_file_that_installs_names_a_registry_or_a_local_build():
    files = [
        ROOT / "pyproject.toml",
        STORE / "pyproject.toml",
        ROOT / "Makefile",
        *(ROOT / "constraints").iterdir(),
        *(ROOT / "scripts").glob("*.py"),
    ]
    for path in (*files, *(ROOT / "scalr_prod" / "serving").glob("*.py")):
        assert not re.search(r"pypi\.org|pytorch\.org|pythonhosted|==[0-9.]+\+", path.read_text()), path


def test_images_are_built_from_every_folder_that_the_wheel_takes_in():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in (ROOT / "deploy").glob("*.Dockerfile"):
        text = path.read_text()
        if "/build/package" in text:
            for folder in (*tool["packages"], *tool["force-include"]):
                assert f"COPY {folder} /build/package/{folder}\n" in text, path
            needed = "COPY packages/feast-delta /build/feast-delta\n" in text and " /build/feast-delta " in text
            assert needed or "--no-deps /build/package" in text, path


def check_record(archive: zipfile.ZipFile) -> None:
    """Every file of a wheel stands in its record, with its checksum."""
    (record,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
    rows = list(csv.reader(archive.read(record).decode().splitlines()))
    assert {name for name, *_ in rows} == set(archive.namelist())
    for name, digest, size in rows:
        if name != record:
            data = archive.read(name)
            assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert int(size) == len(data)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the checkout as a release is, with the build tool of the running environment."""
    folder = tmp_path_factory.mktemp("dist")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_that_a_run_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        check_record(archive)
    assert {f"scalr_prod/_assets/{path}" for path in SHIPPED} <= names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "scalr_prod").rglob("*.py")}
    assert sources <= names
    assert {f"scalr_prod/quality/{suite}.yaml" for suite in ("training", "leaks")} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "constraints/"))]


@pytest.mark.slow
def test_the_offline_store_s_wheel_holds_its_package_alone(tmp_path):
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, STORE], check=True, timeout=300)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        check_record(archive)
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert {f"feast_delta-{feast_delta.__version__}.dist-info/licenses/LICENSE"} <= set(archive.namelist())
    sources = STORE / "src"
    assert names == {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.suffix in {".py", ".typed"}}


@pytest.mark.nightly
@pytest.mark.slow
def test_two_builds_are_the_same_to_the_byte(tmp_path):
    """In two folders, at two times of day, with two umasks. Nightly: it builds eight archives."""
    sums = []
    for name, umask in (("first", 0o022), ("second", 0o077)):
        command = [sys.executable, ROOT / "scripts" / "dist.py", tmp_path / name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900, umask=umask)
        sums.append(done.stdout.splitlines())
    assert sums[0] == sums[1]
    names = [line.rpartition(" ")[2] for line in sums[0]]
    assert [name.partition("-")[0] for name in names] == ["feast_delta"] * 3 + ["scalr_prod"] * 3
    assert [name.endswith(".cdx.json") for name in names] == [True, False, False] * 2
    for line in (tmp_path / "first" / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((tmp_path / "first" / name).read_bytes()).hexdigest() == digest


def test_the_folders_that_the_wheel_holds_are_found_in_a_checkout():
    for path in SHIPPED:
        folder, _, rest = path.partition("/")
        assert (assets.asset_folder(folder) / rest).is_file()


@pytest.mark.slow
def test_the_installed_package_packs_itself_into_a_wheel(tmp_path):
    wheel = build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        check_record(archive)
        assert not [name for name in archive.namelist() if "__pycache__" in name]
        assert archive.read("scalr_prod/translator/module.py") == (ROOT / "scalr_prod/translator/module.py").read_bytes()
    target = tmp_path / "elsewhere"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(command, check=True, timeout=300)
    (found,) = metadata.distributions(path=[str(target)])
    assert (found.name, found.version) == ("scalr-prod", __version__)
    assert (target / "scalr_prod" / "serving" / "client" / "wire.py").is_file()


def test_a_checkout_is_told_from_an_installed_package():
    assert checkout_folder() == ROOT


def test_every_source_file_names_the_license():
    line = f"# SPDX-License-Identifier: {PROJECT['license']}\n"
    files = sorted(path for folder in (ROOT / "scalr_prod", STORE) for path in folder.rglob("*.py"))
    assert len(files) > 200
    assert [path for path in files if not path.read_text(encoding="utf-8").startswith(line)] == []
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("Apache License")
