"""A home's tables belong to the domains they were made for: another pair, or the same pair swapped, is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pandas as pd
import pytest

from scalr_prod import Project
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import DomainsMixed, ProjectsMixed, ScalrError
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.operations.explanation import explain_events
from scalr_prod.publication import publish, rollback_run
from scalr_prod.publication.toggle import disable_publication, enable_publication, publication_state
from scalr_prod.schemas import Table

RUN = f"run_{0:016x}"


def project_in(folder: Path):
    """Settings of a pair of domains, each with a log of its own name; all share one home unless told otherwise."""

    def make(source: str, target: str, *, source_toml: str = "", target_toml: str = "", **sections):
        for name in (source, target):
            at = pd.to_datetime(["2024-05-01T00:00:00Z"] * 2)
            rows = {"user_id": ["u1", "u2"], "item_id": [f"{name}1", f"{name}2"], "timestamp": at}
            pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet")
        (folder / "scalr.toml").write_text(
            f'[domains.source]\nname = "{source}"\nevents = "{source}.parquet"\n{source_toml}\n'
            f'[domains.target]\nname = "{target}"\nevents = "{target}.parquet"\n{target_toml}\n'
        )
        return load_settings(folder / "scalr.toml", **sections)

    return make


@pytest.fixture
def project(tmp_path: Path):
    return project_in(tmp_path)


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory):
    """The same, in a home that was made for kitchen and food: tests that change nothing share it."""
    make = project_in(tmp_path_factory.mktemp("bound"))
    ingest(make("kitchen", "food"))
    return make


def contents(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def unbind(settings) -> None:
    """As a home was made before tables were bound."""
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        Lake.open(settings).set_description(table, "", key="unbound")


@pytest.mark.parametrize(
    ("source", "target", "says", "next_step"),
    [
        ("food", "kitchen", ("swapped",), "swap them back"),
        ("tools", "food", ("'kitchen'", "'tools'"), 'formerly = "kitchen"'),
        ("kitchen", "tools", ("'food'", "'tools'"), 'formerly = "food"'),
        ("tools", "books", ("'kitchen'", "'tools'"), "[project] home"),
        ("food", "tools", ("'kitchen'", "'food'"), "[project] home"),
    ],
    ids=["swapped", "another source", "another target", "another pair", "target as source"],
)
def test_other_domains_are_refused_before_anything_is_written(bound, source, target, says, next_step):
    settings = bound(source, target)
    before = contents(settings.home)
    with pytest.raises(DomainsMixed) as caught:
        ingest(settings)
    for part in (*says, f"'{source}'", f"'{target}'", "'kitchen'", "'food'"):
        assert part in str(caught.value)
    assert next_step in str(caught.value.next_step)
    assert contents(settings.home) == before


def test_one_domain_alone_is_held_to_both_names(project):
    ingest(project("kitchen", "food"), domain="source")
    with pytest.raises(DomainsMixed, match="swapped"):
        ingest(project("food", "kitchen"), domain="target")
    ingest(project("kitchen", "food"), domain="target")


@pytest.mark.parametrize(
    "act",
    [
        lambda settings: publish(settings, RUN),
        lambda settings: rollback_run(settings, RUN),
        disable_publication,
        enable_publication,
        publication_state,
        lambda settings: explain_events(settings, ["0" * 32]),
        lambda settings: Project(settings).status(),
        lambda settings: Project(settings).maintain(),
    ],
    ids=["publish", "roll back", "disable", "enable", "state", "explain", "status", "maintain"],
)
def test_what_looks_at_or_changes_what_was_published_refuses_them_too(bound, act):
    """A second scalr.toml beside the first one has the same home, and with it the name that the home bears."""
    beside = bound("tools", "food")
    before = contents(beside.home)
    with pytest.raises(DomainsMixed, match="the tables were made for source 'kitchen' and target 'food'"):
        act(beside)
    changed = {name for name, content in contents(beside.home).items() if before.get(name) != content}
    assert all(name.startswith("ledger.db") for name in changed)


def test_later_stages_refuse_them_too(bound):
    swapped = bound("food", "kitchen")
    for stage in (build_histories, apply_feature_repo):
        with pytest.raises(DomainsMixed, match="swapped"):
            stage(swapped)


def test_a_home_from_before_is_bound_by_its_next_ingest(project):
    settings = project("kitchen", "food")
    ingest(settings)
    unbind(settings)
    build_histories(settings)
    assert [part.rows_added for part in ingest(settings).domains.values()] == [0, 0]
    with pytest.raises(DomainsMixed, match="swapped"):
        ingest(project("food", "kitchen"))


def test_a_domain_can_be_renamed_in_place(project):
    ingest(project("kitchen", "food"))
    renamed = project("home_and_kitchen", "food", source_toml='formerly = "kitchen"')
    assert ingest(renamed).domains["target"].rows_added == 0
    # Bound anew: the former name is not needed any more, and is another domain from now on.
    ingest(project("home_and_kitchen", "food"))
    with pytest.raises(DomainsMixed):
        ingest(project("kitchen", "food"))


def test_a_former_name_does_not_make_a_swap_a_rename(project):
    ingest(project("kitchen", "food"))
    with pytest.raises(DomainsMixed, match="swapped"):
        ingest(project("food", "kitchen", source_toml='formerly = "kitchen"', target_toml='formerly = "food"'))


def test_another_home_takes_the_other_pair(project):
    ingest(project("kitchen", "food"))
    report = ingest(project("food", "kitchen", project={"home": "other"}))
    assert [part.rows for part in report.domains.values()] == [2, 2]


def test_of_two_pairs_at_once_in_a_new_home_one_lands(project):
    pairs = [project("kitchen", "food"), project("tools", "books")]
    start = threading.Barrier(2)
    refused: list[Exception] = []

    def work(settings) -> None:
        start.wait()
        try:
            ingest(settings)
        except ScalrError as error:
            refused.append(error)

    threads = [threading.Thread(target=work, args=(settings,)) for settings in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lake = Lake.open(pairs[0])
    prefixes = tuple(
        {row["item_id"].rstrip("12") for row in lake.read(table).to_pylist()}
        for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)
    )
    # Whoever was refused between the two tables leaves its first one behind, never a mixture.
    assert all(len(found) <= 1 for found in prefixes)
    assert len(refused) == 1
    assert all(isinstance(error, DomainsMixed | ProjectsMixed) for error in refused)
