"""The registry: a plug-in is found by its name or its place, and what cannot be one is refused with its reason."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import QualityError, ScalrError, SettingsError
from scalr_prod.plugins import ESTIMATORS, MODELS, READERS, RULES, PluginGroup

DOMAINS = '[domains.source]\nname = "a"\nevents = "s.parquet"\n[domains.target]\nname = "b"\nevents = "t.parquet"\n'


class Speaker(Protocol):
    """What the group of these tests asks for."""

    version: int

    def speak(self, loudly, *, times):
        """Say something."""


class Whole:
    version = 1

    def speak(self, loudly, *, times): ...


class Mute:
    version = 1


class Unversioned:
    def speak(self, loudly, *, times): ...


OWN = {"whole": f"{__name__}:Whole", "os": "os"}
GROUP = PluginGroup("speakers", "speaker", "[test] speakers", QualityError, OWN)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "speakers", sys.modules[__name__])
    monkeypatch.setitem(GROUP.builtin, "whole", "speakers:Whole")


def install(folder: Path, name: str, points: str) -> None:
    """A distribution with entry points, as pip leaves it."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(points)


def test_one_of_ours_is_found_by_name_and_any_by_its_place():
    assert GROUP.load("whole", Speaker) is GROUP.load("speakers:Whole", Speaker) is Whole


@pytest.mark.parametrize(
    "name", ["hole", "no_such_module:Whole", "speakers:Nobody", "speakers:Whole.Nobody", ":Whole", "speakers:"]
)
def test_an_unknown_one_is_refused_with_a_list_of_those_that_are_there(name):
    with pytest.raises(QualityError, match="whole") as caught:
        GROUP.load(name, Speaker)
    assert caught.value.where == "[test] speakers"
    assert "module:Class" in caught.value.next_step


@pytest.mark.parametrize(("name", "part"), [("Mute", r"method speak\(loudly, times\)"), ("Unversioned", "attribute version")])
def test_one_that_lacks_a_part_of_the_protocol_is_refused_by_that_part(name, part):
    with pytest.raises(QualityError, match=f"speakers:{name} has no {part}"):
        GROUP.load(f"speakers:{name}", Speaker)


@pytest.mark.parametrize("statement", ["sys.exit(0)", "raise BaseException('odd')", "raise RuntimeError('odd')"])
def test_one_that_ends_the_process_while_it_is_imported_is_refused(tmp_path, monkeypatch, statement):
    (tmp_path / "quits_early.py").write_text(f"import sys\n{statement}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(QualityError, match="speaker quits_early:Speaker cannot be imported") as caught:
        GROUP.load("quits_early:Speaker", Speaker)
    assert caught.value.where == "quits_early"


def test_ctrl_c_while_one_is_imported_stops_the_command(tmp_path, monkeypatch):
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        GROUP.load("interrupted:Speaker", Speaker)


def test_entry_points_of_other_distributions_are_found(tmp_path, monkeypatch):
    assert GROUP.names() == ["whole", "os"]
    install(tmp_path, "theirs", "[scalr_prod.speakers]\nloud = speakers:Whole [extra]\nno/name = speakers:Whole\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert GROUP.names() == ["whole", "os", "loud"]
    assert GROUP.load("loud", Speaker) is Whole
    assert GROUP.find_problem("loud") is None


@pytest.mark.parametrize("name", ["whole", "loud"])
def test_two_of_one_name_are_refused(tmp_path, monkeypatch, name):
    for distribution in ("theirs", "others"):
        install(tmp_path, distribution, "[scalr_prod.speakers]\nwhole = x:Whole\nloud = x:Loud\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(QualityError, match=rf"plug-ins have the name '{name}': .*x:\w+") as caught:
        GROUP.load(name, Speaker)
    assert "scalr_prod.speakers" in caught.value.where
    assert GROUP.load("speakers:Whole", Speaker) is Whole


@pytest.mark.parametrize("group", [ESTIMATORS, MODELS, READERS, RULES], ids=lambda group: group.name)
def test_every_one_of_ours_can_be_loaded(group):
    class Anything(Protocol):
        pass

    for name in group.builtin:
        assert group.load(name, Anything) is not None


@pytest.mark.parametrize(
    "text",
    [
        DOMAINS.replace('"t.parquet"', '"t"\nformat = "xlsx"'),
        DOMAINS + '[translator]\nestimators = ["liner"]',
        DOMAINS + '[quality]\nrules = ["no rule"]',
        DOMAINS + '[downstream]\nmodels = ["magic"]',
        DOMAINS + '[downstream]\nmodels = ["a/b:c"]',
    ],
)
def test_settings_refuse_a_name_that_is_none(tmp_path, text):
    (tmp_path / "scalr.toml").write_text(text)
    with pytest.raises(SettingsError, match="there are: "):
        load_settings(tmp_path / "scalr.toml")


def test_settings_take_the_place_of_one_that_is_not_there_yet(tmp_path):
    (tmp_path / "scalr.toml").write_text(DOMAINS + '[downstream]\nmodels = ["my_package.my_module:Popular"]')
    assert load_settings(tmp_path / "scalr.toml").downstream.models == ("my_package.my_module:Popular",)


def test_the_examples_of_the_guide_are_plug_ins(monkeypatch):
    """Every class of docs/guides/plugins.md meets the protocol of its section."""
    from scalr_prod.evaluation import DownstreamModel
    from scalr_prod.ingest import LogReader
    from scalr_prod.quality import GateRule
    from scalr_prod.translator import Estimator

    text = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "plugins.md").read_text()
    wanted = {"XmlReader": (READERS, LogReader), "HouseRules": (RULES, GateRule)}
    wanted |= {"Popular": (MODELS, DownstreamModel), "Together": (ESTIMATORS, Estimator)}
    monkeypatch.setitem(sys.modules, "guide", guide := ModuleType("guide"))
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, vars(guide))  # noqa: S102 - our own guide
    for name, (group, protocol) in wanted.items():
        assert group.load(f"guide:{name}", protocol) is getattr(guide, name)


def test_errors_are_ours():
    assert all(issubclass(group.error, ScalrError) for group in (ESTIMATORS, MODELS, READERS, RULES))
