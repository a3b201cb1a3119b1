"""Several projects in one Feast registry, and a project that bears a new name there."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from support.feast_project import COUNT, COUNTS, fill, hours, make_project, spine, synthetic

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ProjectsMixed
from scalr_prod.features import (
    ViewWindow,
    apply_feature_repo,
    join_point_in_time,
    materialize,
    open_feature_store,
    save_dataset,
    stream_window,
)
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

#: Applies a repository three times or more; renaming and sharing a registry are in the others.
long = pytest.mark.long

FORMER = "s_to_t"


def registry_of(url: str, project: str | None = None) -> dict[str, list]:
    """Every row of the registry, or those of a project; without the times at which they were touched."""
    engine = sa.create_engine(url)
    found = {}
    with engine.connect() as connection:
        for table in sa.inspect(connection).get_table_names():
            rows = [dict(row) for row in connection.execute(sa.text(f"SELECT * FROM {table}")).mappings()]
            found[table] = sorted(repr(row) for row in rows if project in {None, row.get("project_id")})
    engine.dispose()
    return {table: rows for table, rows in found.items() if rows}


def in_folder(folder: Path, toml: str = ""):
    folder.mkdir()
    return make_project(folder, toml)


def renamed(settings, name: str = "shop", **sections):
    project = {"name": name, "formerly": FORMER}
    return load_settings(settings.base / "scalr.toml", project=project, **sections)


def add_event(settings, user: str, item: int) -> None:
    """A synthetic event that tells the projects' views apart."""
    lake, table = Lake.open(settings), Table.SYNTHETIC_TARGET_EVENTS
    rows = (
        pa.table(synthetic([user], [item], hours(4), f"own{item}_")).select(lake.schema(table).names).cast(lake.schema(table))
    )
    lake.append(table, rows, key="own")


def items_of(settings) -> set[int]:
    return set(
        stream_window(settings, ViewWindow("synthetic_target_events", columns=["item_id"])).read_all()["item_id"].to_pylist()
    )


def test_two_projects_of_equal_domains_each_read_their_own_rows(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first = in_folder(tmp_path / "a", f'[project]\nname = "staging"\n[feast]\nregistry = "{url}"\n')
    add_event(first, "a", 70)
    known = registry_of(url, "staging")
    second = in_folder(tmp_path / "b", f'[project]\nname = "production"\n[feast]\nregistry = "{url}"\n')
    add_event(second, "a", 71)
    assert registry_of(url, "staging") == known
    assert items_of(first) == {7, 8, 70}
    assert items_of(second) == {7, 8, 71}


def test_two_projects_of_one_name_are_refused_with_both_lakes_and_nothing_changes(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first = in_folder(tmp_path / "a", f'[feast]\nregistry = "{url}"\n')
    before = registry_of(url)
    (tmp_path / "b").mkdir()
    for _ in range(2):
        with pytest.raises(ProjectsMixed) as caught:
            make_project(tmp_path / "b", f'[feast]\nregistry = "{url}"\n')
    second = load_settings(tmp_path / "b" / "scalr.toml")
    for settings in (first, second):
        assert Lake.open(settings).root in str(caught.value)
    assert registry_of(url) == before
    assert not (second.feast_repo / "feature_store.yaml").exists(), "nobody reads the other's rows from here"
    assert items_of(first) == {7, 8}

    # The next step that it names.
    second = renamed(second, "staging")
    assert apply_feature_repo(second).applied
    add_event(second, "a", 71)
    assert items_of(second) == {7, 8, 71}
    assert items_of(first) == {7, 8}
    assert registry_of(url, FORMER) == {table: rows for table, rows in registry_of(url, FORMER).items() if table in before}


def test_a_project_that_was_moved_says_so(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first = in_folder(tmp_path / "a", f'[feast]\nregistry = "{url}"\n')
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ProjectsMixed):
        apply_feature_repo(load_settings(tmp_path / "b" / "scalr.toml"))
    for place in (Lake.open(first).root, str(first.home)):
        moved = load_settings(tmp_path / "b" / "scalr.toml", project={"moved_from": place})
        assert apply_feature_repo(moved).path
    assert items_of(moved) == {7, 8}


def test_a_new_name_leaves_nothing_under_the_former_one(own):
    rows = own.home / "datasets" / "set" / "v1" / "rows"
    rows.mkdir(parents=True)
    pq.write_table(pa.table({"event_timestamp": hours(1), "user_id": ["a"]}), rows / "part.parquet")
    save_dataset(own, "set_v1", path=rows)
    materialize(own)
    url = f"sqlite:///{own.home / 'feast_registry.db'}"
    before = registry_of(url, FORMER)
    now = renamed(own)
    assert apply_feature_repo(now).applied
    assert registry_of(url, FORMER) == {}
    assert registry_of(url, "shop").keys() == before.keys()
    assert open_feature_store(now).get_saved_dataset("set_v1").storage.to_data_source().path == str(rows)
    assert items_of(now) == {7, 8}
    assert join_point_in_time(open_feature_store(now), spine(["a"], hours(5)), COUNTS)[COUNT].to_pylist() == [2]
    online = sa.inspect(sa.create_engine(f"sqlite:///{own.home / 'feast_online.db'}")).get_table_names()
    assert not [table for table in online if table.startswith(FORMER)]
    materialize(now)
    found = open_feature_store(now).get_online_features(COUNTS, [{"user_id": "a"}]).to_dict()
    assert found["event_count"] == [2]
    assert not apply_feature_repo(now).applied


@long
def test_a_home_that_was_moved_and_renamed_at_once_leaves_nothing_either(tmp_path):
    in_folder(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    now = load_settings(tmp_path / "b" / "scalr.toml", project={"name": "shop"})
    assert apply_feature_repo(now).applied
    assert registry_of(f"sqlite:///{now.home / 'feast_registry.db'}", FORMER) == {}
    assert items_of(now) == {7, 8}


@long
def test_a_change_of_name_that_was_cut_off_is_taken_up_again(own, monkeypatch):
    from scalr_prod.features import repository

    url = f"sqlite:///{own.home / 'feast_registry.db'}"
    now = renamed(own)

    def killed(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repository, "remove_from_registry", killed)
        with pytest.raises(KeyboardInterrupt):
            apply_feature_repo(now)
    assert registry_of(url, FORMER)
    assert apply_feature_repo(now).applied
    assert registry_of(url, FORMER) == {}
    assert items_of(now) == {7, 8}


@long
def test_what_others_keep_under_the_former_name_stays(tmp_path):
    """Two that shared a name before it was looked at: one goes, and the other keeps its own."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first = in_folder(tmp_path / "a", f'[feast]\nregistry = "{url}"\n')
    store = open_feature_store(first)
    from feast import Entity, FeatureService, FeatureView

    counts = store.get_feature_view("source_user_history")
    over_ours = FeatureView(
        name="somebodys_counts",
        entities=[store.get_entity("user")],
        schema=counts.schema,
        source=counts.batch_source,
        online=False,
    )
    mine = FeatureService(name="somebodys_model", features=[over_ours])
    store.apply([Entity(name="somebody_elses"), over_ours, mine])
    apply_feature_repo(renamed(first))
    assert [source.name for source in store.registry.list_data_sources(FORMER)] == []
    assert [view.name for view in store.registry.list_feature_views(FORMER)] == ["somebodys_counts"]
    assert [service.name for service in store.registry.list_feature_services(FORMER)] == ["somebodys_model"]
    assert "shop" in {project.name for project in store.registry.list_projects()}
    second = tmp_path / "b"
    second.mkdir()
    fill(Lake.open(load_settings(_toml(second, url))))
    assert apply_feature_repo(load_settings(second / "scalr.toml")).applied
    theirs = registry_of(url, FORMER)
    apply_feature_repo(renamed(first, "shop2"))
    assert registry_of(url, FORMER) == theirs


def _toml(folder: Path, url: str) -> Path:
    path = folder / "scalr.toml"
    domains = '[domains.source]\nname = "s"\nevents = "s.parquet"\n[domains.target]\nname = "t"\nevents = "t.parquet"\n'
    path.write_text(f'{domains}[feast]\nregistry = "{url}"\n')
    return path


def test_a_registry_at_the_address_of_another_is_not_taken_for_it(own, monkeypatch):
    """Feast caches what it reads of a registry by its memory address, which is free again once the registry is gone."""
    from feast import Entity, ValueType
    from feast.infra.registry import proto_registry_utils
    from feast.protos.feast.core.Registry_pb2 import Registry

    open_feature_store(own)
    monkeypatch.setattr(proto_registry_utils, "id", lambda _: 7, raising=False)
    found = []
    for description in ("of one project", "of another"):
        registry, entity = Registry(), Entity(name="user", value_type=ValueType.STRING, description=description)
        entity_proto = entity.to_proto()
        entity_proto.spec.project = "logs"
        registry.entities.append(entity_proto)
        found.append(proto_registry_utils.list_entities(registry, "logs", None)[0].description)
    assert found == ["of one project", "of another"]
