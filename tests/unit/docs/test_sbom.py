"""The bill of materials that `make dist` writes beside a wheel: what is in it, and that it is the same each time."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from scalr_prod import __version__

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "sbom.py"
REQUIRES = (
    "pyarrow>=17,<27",
    "feast[redis]>=0.66",
    'polars>=1; extra == "frames"',
    'mine[frames]; extra == "all"',
    'gone; python_version < "3"',
)


def make_wheel(folder: Path, requires: tuple[str, ...] = REQUIRES) -> Path:
    wheel = folder / "mine-1.0-py3-none-any.whl"
    about = ["Metadata-Version: 2.4", "Name: mine", "Version: 1.0", "License-Expression: MIT"]
    about += ["Provides-Extra: frames", "Provides-Extra: all", *(f"Requires-Dist: {line}" for line in requires)]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(zipfile.ZipInfo("mine-1.0.dist-info/METADATA"), "\n".join(about) + "\n")
    return wheel


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_components_are_what_a_wheel_needs_in_the_installed_releases(script, tmp_path):
    wheel = make_wheel(tmp_path)
    made = script["sbom"](wheel, epoch=0)
    found = {one["name"]: one for one in made["components"]}
    for name, scope in (("pyarrow", "required"), ("feast", "required"), ("redis", "required"), ("polars", "optional")):
        assert found[name]["version"] == metadata.version(name)
        assert found[name]["purl"] == f"pkg:pypi/{name}@{metadata.version(name)}"
        assert found[name]["scope"] == scope
    assert not {"mine", "gone", "torch"} & set(found)
    subject = made["metadata"]["component"]
    assert subject["licenses"] == [{"expression": "MIT"}]
    assert subject["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    needs = {one["ref"]: one["dependsOn"] for one in made["dependencies"]}
    assert set(needs) == {subject["bom-ref"], *(one["bom-ref"] for one in found.values())}
    assert {need.split("/")[1].split("@")[0] for need in needs[subject["bom-ref"]]} == {"pyarrow", "feast", "polars"}
    reached, ahead = set(), [subject["bom-ref"]]
    while ahead:
        reached |= {reference := ahead.pop()}
        ahead += [need for need in needs[reference] if need not in reached]
    assert reached == set(needs), "every component is there because something needs it"


def test_a_local_build_is_named_by_its_release(script, tmp_path):
    made = script["sbom"](make_wheel(tmp_path, ("torch",)), epoch=0)
    (torch,) = (one for one in made["components"] if one["name"] == "torch")
    assert torch["version"] == metadata.version("torch").partition("+")[0]


def test_the_same_wheel_gives_the_same_bytes(tmp_path):
    wheel = make_wheel(tmp_path)
    texts = []
    for name, seed in (("one.json", "1"), ("two.json", "2")):
        environment = os.environ | {"SOURCE_DATE_EPOCH": "86400", "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, SCRIPT, wheel, tmp_path / name], check=True, env=environment)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["metadata"]["timestamp"] == "1970-01-02T00:00:00Z"


def test_what_is_not_installed_is_told(tmp_path):
    wheel = make_wheel(tmp_path, ("no-such-distribution",))
    done = subprocess.run([sys.executable, SCRIPT, wheel], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "no-such-distribution is not installed, so its release is unknown; run: make setup\n",
    )
    assert list(tmp_path.iterdir()) == [wheel]


def test_the_citation_names_this_release():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (found["cff-version"], found["version"], found["license"]) == ("1.2.0", __version__, "Apache-2.0")
    assert {"message", "title", "authors"} <= set(found)
