"""Owner, tags and project of the definitions, and synthetic events as a label view."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest
from feast import ConflictPolicy
from feast.errors import FeastPermissionError
from feast.labeling import resolve_conflicts
from feast.permissions.action import AuthzedAction
from feast.permissions.security_manager import SecurityManager
from feast.permissions.user import User
from support.feast_project import AS_OF, hours, make_project, spine, synthetic

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import SettingsError
from scalr_prod.features import apply_feature_repo, materialize, open_feature_store
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

LABELS = "synthetic_target_labels"
NAMED = '[feast]\nlabel_view = true\nowner = "growth@example.org"\ntags = { tier = "gold" }\n'
KEYS = ["user_id", "item_id"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """With a label view, an owner and a tag; a synthetic event is of the user and item of an earlier real one."""
    settings = make_project(tmp_path_factory.mktemp("labelled"), NAMED)
    lake = Lake.open(settings)
    rows = pa.table(synthetic(["a"], [1], hours(5), "late") | {"run_id": ["run-2"]})
    schema = lake.schema(Table.SYNTHETIC_TARGET_EVENTS)
    lake.append(Table.SYNTHETIC_TARGET_EVENTS, rows.select(schema.names).cast(schema), key="late")
    return settings


def labels_of(settings, users: list[str], items: list[int], times: list) -> list[dict]:
    store = open_feature_store(settings)
    asked = [f"{LABELS}:{name}" for name in ("weight", "run_id")]
    return store.get_historical_features(entity_df=spine(users, times, item_id=items), features=asked).to_arrow().to_pylist()


def test_a_run_labels_a_user_and_an_item(labelled):
    after = AS_OF.replace(hour=22)
    rows = labels_of(labelled, ["a", "b", "b", "a"], [7, 8, 7, 7], [after, after, after, hours(9)[0]])
    assert [(row["weight"], row["run_id"]) for row in rows] == [(0.25, "run-1"), (0.25, "run-1"), (None, None), (None, None)]
    view = open_feature_store(labelled).get_label_view(LABELS)
    assert (view.labeler_field, view.reference_feature_view) == ("run_id", "synthetic_target_events")
    assert set(view.join_keys) == set(KEYS)
    assert not view.online


def test_real_labels_come_before_synthetic_ones(labelled):
    """By the view's policy and the order of labelers, which Feast takes from the caller; the latest would win by its default."""
    view = open_feature_store(labelled).get_label_view(LABELS)
    after = AS_OF.replace(hour=22)
    made = pd.DataFrame(labels_of(labelled, ["a", "a"], [1, 7], [after, after]))
    real = Lake.open(labelled).read(Table.TARGET_EVENTS).select([*KEYS, "event_timestamp", "weight"]).to_pandas()
    both = pd.concat([made, real.assign(run_id="real")])

    def resolve(policy: ConflictPolicy) -> dict:
        rows = resolve_conflicts(both, KEYS, ["weight"], "event_timestamp", view.labeler_field, policy, ["real"])
        return {(row.user_id, row.item_id): row.run_id for row in rows.itertuples()}

    expected = {("a", 1): "real", ("a", 7): "run-1", ("b", 2): "real", ("b", 3): "real"}
    assert resolve(view.conflict_policy) == expected
    assert resolve(ConflictPolicy.LAST_WRITE_WINS) == expected | {("a", 1): "run-2"}


def test_the_online_store_is_filled_without_labels(labelled):
    assert LABELS not in materialize(labelled).to_json()["written"]


def test_a_label_view_is_not_there_unless_asked_for(tmp_path):
    settings = make_project(tmp_path, NAMED)
    assert LABELS in apply_feature_repo(settings).views
    path = tmp_path / "scalr.toml"
    path.write_text(path.read_text().replace("label_view = true\n", ""))
    now = load_settings(path)
    assert LABELS not in apply_feature_repo(now).views
    assert open_feature_store(now).list_label_views() == []


def test_readers_of_the_target_domain_may_not_read_provenance(tmp_path):
    """By Feast's own check of permissions, as its servers make it."""
    settings = make_project(tmp_path, '[feast]\nreader_roles = ["analyst"]\noperator_roles = ["owner"]\n')
    store = open_feature_store(settings)
    security = SecurityManager(store.project, store.registry)

    def may(role: str, resource, action: AuthzedAction) -> bool:
        security.set_current_user(User("somebody", [role]))
        try:
            return bool(security.assert_permissions([resource], action))
        except FeastPermissionError:
            return False

    read = AuthzedAction.READ_OFFLINE
    views = {view.name: view for view in store.list_feature_views()}
    hidden = {"synthetic_event_provenance", "source_events", "source_user_history"}
    assert {name for name, view in views.items() if may("analyst", view, read)} == set(views) - hidden
    assert {name for name, view in views.items() if may("analyst", view.batch_source, read)} == set(views) - hidden
    services = {service.name for service in store.list_feature_services() if may("analyst", service, AuthzedAction.DESCRIBE)}
    assert services == {"target_training_v1"}
    assert not may("analyst", views["synthetic_target_events"], AuthzedAction.WRITE_OFFLINE)
    assert all(may("owner", view, action) for view in views.values() for action in AuthzedAction)
    assert not any(may("stranger", view, read) for view in views.values())

    path = tmp_path / "scalr.toml"
    path.write_text(path.read_text().partition("[feast]")[0])
    apply_feature_repo(load_settings(path))
    assert open_feature_store(load_settings(path)).list_permissions() == []


def test_readers_need_operators(tmp_path):
    with pytest.raises(SettingsError, match="operator_roles"):
        make_project(tmp_path, '[feast]\nreader_roles = ["analyst"]\n')


def test_definitions_have_an_owner_and_tags(labelled):
    store = open_feature_store(labelled)
    project = store.registry.get_project(store.project)
    assert project.description == "Synthetic events of t, translated from events of s."
    entities = [entity for entity in store.list_entities() if not entity.name.startswith("__dummy")]
    views = [*store.list_feature_views(), *store.list_label_views()]
    found = [project, *entities, *views, *store.list_feature_services(), *store.list_data_sources()]
    assert len(found) == 1 + 3 + 8 + 3 + 7
    assert {one.owner for one in found} == {"growth@example.org"}
    assert {one.tags["tier"] for one in found} == {"gold"}


def test_tags_do_not_change_the_clock(tmp_path):
    with pytest.raises(SettingsError, match="strict clock"):
        make_project(tmp_path, '[feast]\ntags = { knowledge_time = "event" }\n')
