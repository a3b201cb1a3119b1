"""Several source domains: how they are named, which homes they fit, and what becomes of homes that know one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import BadValue, DomainsMixed, EvaluationError, NoCommonUsers, SettingsError
from scalr_prod.evaluation.arms import ALL_ARMS
from scalr_prod.evaluation.plan import select_arms
from scalr_prod.features import apply_feature_repo
from scalr_prod.generation.policy import settings_digest
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

TARGET = '[domains.target]\nname = "food"\nevents = "food.parquet"\n'
ONE = '[domains.source]\nname = "books"\nevents = "books.parquet"\n'


def several(*names: str, extra: str = "") -> str:
    return "".join(f'[domains.sources.{name}]\nevents = "{name}.parquet"\n{extra}' for name in names)


@pytest.fixture
def load(tmp_path: Path):
    """Settings of some lines beside logs of the domains books, music, films and food, all of one home."""
    for name, users in (("books", ["u1", "u2"]), ("music", ["u2", "u3"]), ("films", ["u9"]), ("food", ["u1", "u2", "u3"])):
        times = pd.to_datetime(["2024-05-01T00:00:00Z"] * len(users))
        rows = {"user_id": users, "item_id": range(len(users)), "timestamp": times}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")

    def make(text: str, **sections):
        (tmp_path / "scalr.toml").write_text(text)
        return load_settings(tmp_path / "scalr.toml", **sections)

    return make


def test_source_domains_are_known_by_their_keys(load):
    domains = load(several("books", "music") + TARGET).domains
    assert domains.has_several_sources
    assert domains.source_names == ("books", "music")
    assert domains.log_keys("source") == ("sources.books", "sources.music")
    assert domains["sources.music"].name == "music"
    assert domains["target"].name == "food"
    alone = load(several("books") + TARGET).domains
    assert (alone.has_several_sources, alone.source_names) == (False, ("books",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE + several("music") + TARGET, "has both 'source' and 'sources'"),
        (TARGET, "names no source domain"),
        ("[domains.sources]\n" + TARGET, "names no source domain"),
        (several("books", "food") + TARGET, r"\[domains.sources.food\] has the name of the target"),
        (several("books", "'my music'") + TARGET, r"\[domains\] sources: 'my music' is not a valid name"),
        (several("books", "7inch") + TARGET, "is not a valid name"),
        (several("books", "'a:b'") + TARGET, "is not a valid name"),
        (several("Books", "books") + TARGET, r"\[domains\] sources: 'Books' and 'books' differ in case only"),
        (several("books", "music", extra='name = "other"\n') + TARGET, "its name is 'books'"),
        (several("books", "music", extra='formerly = "x"\n') + TARGET, "cannot be renamed"),
        ("[domains.sources]\nbooks = 3\n" + TARGET, r"\[domains.sources\] books"),
        ('[domains.sources.books]\nformat = "csv"\n' + TARGET, "needs either 'events'"),
    ],
)
def test_what_cannot_be_meant_is_refused(load, text, message):
    with pytest.raises(SettingsError, match=message) as caught:
        load(text)
    assert caught.value.next_step


def test_a_mistyped_key_of_one_of_them_is_named(load):
    with pytest.raises(SettingsError, match=r"unknown key \[domains.sources.books\] evnts") as caught:
        load(several("books", extra="evnts = 1\n") + TARGET)
    assert caught.value.next_step == "did you mean 'events'?"


def test_the_environment_reaches_one_of_them(load, monkeypatch):
    monkeypatch.setenv("SCALR_DOMAINS__SOURCES__MUSIC__TIMEZONE", "Europe/Paris")
    domains = load(several("books", "music") + TARGET).domains
    assert (domains["sources.music"].timezone, domains["sources.books"].timezone) == ("Europe/Paris", None)
    monkeypatch.setenv("SCALR_DOMAINS__SOURCES__MUSIC__TIMEZNE", "Europe/Paris")
    with pytest.raises(SettingsError, match="SCALR_DOMAINS__SOURCES__MUSIC__TIMEZNE") as caught:
        load(several("books", "music") + TARGET)
    assert "TIMEZONE" in str(caught.value.next_step)


def test_only_a_domain_that_there_is_can_be_read_alone(load):
    with pytest.raises(SettingsError, match=r"there are: sources\.books, sources\.music, target, source"):
        ingest(load(several("books", "music") + TARGET), domain="sources.musik")


def test_users_may_be_in_any_of_the_domains_but_someone_in_both_sides(load):
    report = ingest(load(several("books", "music", "films") + TARGET))  # films shares no user with food
    assert report.common_users == 3
    with pytest.raises(NoCommonUsers, match="'films' and 'food' share no user"):
        ingest(load(several("films") + TARGET, project={"home": "other"}))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (ONE, several("books", "music"), "made for one source domain, 'books'; the settings name 'books', 'music'"),
        (several("books", "music"), ONE, "made for several source domains; the settings name 'books'"),
        (several("books", "music", "films"), several("books", "music"), "contain events of 'films'"),
    ],
    ids=["several after one", "one after several", "one of several is gone"],
)
def test_a_home_of_other_source_domains_is_refused_before_anything_is_written(load, before, after, message):
    settings = load(before + TARGET)
    ingest(settings)
    lake = Lake.open(settings)
    versions = [lake.version(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)]
    for stage in (ingest, build_histories, apply_feature_repo):
        with pytest.raises(DomainsMixed, match=message) as caught:
            stage(load(after + TARGET))
        assert "[project] home" in str(caught.value.next_step)
    assert [lake.version(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)] == versions


def test_one_source_may_be_written_in_either_form(load):
    ingest(load(ONE + TARGET))
    again = ingest(load(several("books") + TARGET))
    assert [report.rows_added for report in again.domains.values()] == [0, 0]


def test_a_further_source_domain_may_join_several(load):
    ingest(load(several("books", "music") + TARGET))
    joined = ingest(load(several("books", "music", "films") + TARGET)).domains
    assert {place: report.rows_added for place, report in joined.items()} == {
        "sources.books": 0,
        "sources.music": 0,
        "sources.films": 1,
        "target": 0,
    }
    with pytest.raises(DomainsMixed, match="'films'"):
        ingest(load(several("books", "music") + TARGET))


def test_one_of_several_with_ids_of_another_type_cannot_join_later(load, tmp_path):
    ingest(load(several("books", "music") + TARGET))
    films = pd.read_parquet(tmp_path / "films.parquet")
    films.assign(item_id="f1").to_parquet(tmp_path / "films.parquet")
    with pytest.raises(BadValue, match="synthetic_quarantine contains int64"):
        ingest(load(several("books", "music", "films") + TARGET))


def test_a_policy_belongs_to_its_source_domains(load):
    digests = [settings_digest(load(text + TARGET)) for text in (ONE, several("books", "music"), several("books", "films"))]
    assert len(set(digests)) == 3
    assert digests[1] == settings_digest(load(several("books", "music") + TARGET))


def test_an_arm_leaves_each_of_several_out():
    estimators = ("popularity", "linear")
    assert select_arms(("without_books",), estimators, ("books", "music"))[-1] == "without_books"
    assert {"without_books", "without_music"} <= set(
        select_arms((*ALL_ARMS, "without_books", "without_music"), estimators, ("books", "music"))
    )
    with pytest.raises(EvaluationError, match="no arm without_books"):
        select_arms(("without_books",), estimators, ("books",))
