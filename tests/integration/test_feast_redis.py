"""The online stores: SQLite and a real Redis, filled and emptied through Feast; both serve what a join gives offline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from feast import FeatureStore
from support.feast_project import AS_OF, T0, hours, make_project, spine, synthetic
from support.redis_server import client, running_redis

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import FeatureStoreError
from scalr_prod.features import join_point_in_time, materialize, open_feature_store
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

pytestmark = pytest.mark.slow
#: A fill takes one to two seconds. These bring rows in further orders, through the same lines, or to the other store.
long = pytest.mark.long


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


def test_filled_read_and_emptied(redis, tmp_path):
    client(redis).flushall()
    settings = make_project(tmp_path, f'[feast]\nonline_store = "redis"\nredis = "{redis}"\n')
    people = [{"user_id": "a"}, {"user_id": "b"}, {"user_id": "nobody"}]

    def served(*features: str) -> list:
        found = open_feature_store(settings).get_online_features(list(features), people).to_dict()
        return [found[feature.split(":")[1]] for feature in features]

    report = materialize(settings)
    assert report.online_store == "redis"
    lists = served("source_user_history:item_ids", "source_user_history:event_timestamps")
    assert lists == [[["s1", "s2"], ["s1"], None], [hours(1, 2), hours(3), None]]
    assert served("synthetic_target_events:event_id", "synthetic_target_events:probability") == [
        ["e0", "e1", None],
        [0.5, 0.5, None],
    ]

    lake = Lake.open(settings)
    schema = lake.schema(Table.SYNTHETIC_TARGET_EVENTS)
    rows = pa.table(synthetic(["b"], [5], hours(9), "n")).select(schema.names).cast(schema)
    lake.append(Table.SYNTHETIC_TARGET_EVENTS, rows, key="more")
    materialize(settings)
    assert served("synthetic_target_events:event_id") == [["e0", "n0", None]]

    # As it is set up by default, Feast's Redis store writes no older row over a newer one: e1 could not come back.
    lake.delete(Table.SYNTHETIC_TARGET_EVENTS, "event_id in ('e0', 'n0')", key="roll back")
    assert materialize(settings).emptied == ("synthetic_target_events",)
    assert served("synthetic_target_events:event_id") == [[None, "e1", None]]
    assert served("source_user_history:item_ids") == [[["s1", "s2"], ["s1"], None]], "other views keep theirs"


def test_a_redis_that_does_not_answer(redis, tmp_path, monkeypatch):
    monkeypatch.setattr("redis.retry.sleep", lambda _: None)  # ten seconds between the client's attempts
    client(redis).flushall()
    settings = make_project(tmp_path, f'[feast]\nonline_store = "redis"\nredis = "{redis}"\n')
    gone = load_settings(Path(tmp_path) / "scalr.toml", feast={"redis": "127.0.0.1:1"})
    with pytest.raises(FeatureStoreError, match=r"127\.0\.0\.1:1"):
        materialize(gone)
    assert materialize(settings).views


VIEWS = {
    "source_user_history": ["item_ids", "event_timestamps", "event_count"],
    "target_user_history": ["item_ids", "event_count"],
    "synthetic_target_events": ["event_id", "item_id", "probability", "source_domain", "run_id"],
}
PEOPLE = ["a", "b", "c", "nobody"]
DAY = {"start": T0, "end": T0 + timedelta(days=1)}


@pytest.fixture(params=[pytest.param("sqlite", marks=long), "redis"])
def project(request, tmp_path):
    """A project for each kind of online store; Redis is empty at first."""
    if request.param == "sqlite":
        return make_project(tmp_path)
    address = request.getfixturevalue("redis")
    client(address).flushall()
    return make_project(tmp_path, f'[feast]\nonline_store = "redis"\nredis = "{address}"\n')


#: What is decided before a row reaches the store, so that either store passes the same lines: the other one by night; CONTRIBUTING.md.
on_redis, on_sqlite = (
    pytest.mark.parametrize(
        "project",
        [pytest.param(kind, marks=[] if kind == by_day else [pytest.mark.nightly]) for kind in ("sqlite", "redis")],
        indirect=True,
    )
    for by_day in ("redis", "sqlite")
)


def served(settings, view: str = "synthetic_target_events") -> dict[str, list]:
    references = [f"{view}:{feature}" for feature in VIEWS[view]]
    found = open_feature_store(settings).get_online_features(references, [{"user_id": user} for user in PEOPLE]).to_dict()
    return {feature: found[feature] for feature in VIEWS[view]}


def joined(settings, view: str, at: datetime | None = None) -> dict[str, list]:
    """The oracle: the point-in-time join at one time."""
    rows = spine(PEOPLE, [at or datetime.now(UTC)] * len(PEOPLE))
    found = join_point_in_time(open_feature_store(settings), rows, [f"{view}:{name}" for name in VIEWS[view]])
    return {name: found[f"{view}__{name}"].to_pylist() for name in VIEWS[view]}


def assert_online_equals_offline(settings, at: datetime | None = None) -> None:
    for view in VIEWS:
        assert served(settings, view) == joined(settings, view, at), view


def add(settings, table: Table, columns: dict, key: str) -> None:
    lake = Lake.open(settings)
    lake.append(table, pa.table(columns).select(lake.schema(table).names).cast(lake.schema(table)), key=key)


def publish(settings, rows: dict, key: str) -> None:
    """Replace the day's synthetic events, as a run that publishes its window again does."""
    lake, table = Lake.open(settings), Table.SYNTHETIC_TARGET_EVENTS
    lake.replace_window(table, pa.table(rows).select(lake.schema(table).names).cast(lake.schema(table)), key=key, **DAY)


def cut_off(settings, monkeypatch, *, at: int = 1) -> None:
    """A fill that ends with an error, before it writes the rows of its `at`-th view."""
    calls, fill = [], FeatureStore.materialize

    def failing(store, *arguments, **options):
        calls.append(options["feature_views"])
        if len(calls) == at:
            raise OSError("the machine goes down")
        fill(store, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "materialize", failing)
        with pytest.raises(FeatureStoreError, match="goes down"):
            materialize(settings)


class TestOnlineEqualsOffline:
    def test_a_late_event_at_a_time_that_has_a_row(self, project):
        materialize(project)
        assert_online_equals_offline(project)
        late = {
            "user_id": ["a"],
            "item_ids": [["s1", "s9", "s2"]],
            "event_timestamps": [hours(1, 1.5, 2)],
            "event_count": [3],
            "event_timestamp": hours(2),
            "created_timestamp": hours(5),
        }
        add(project, Table.SOURCE_USER_HISTORY, late, "late")
        assert materialize(project).emptied == ()
        assert served(project, "source_user_history")["item_ids"][0] == ["s1", "s9", "s2"]
        assert_online_equals_offline(project)

    @on_redis
    def test_a_day_writes_the_entities_that_it_touches(self, project):
        assert set(materialize(project).written.values()) == {None}, "all, at first"
        assert set(materialize(project).written.values()) == {0}
        add(project, Table.SYNTHETIC_TARGET_EVENTS, synthetic(["c"], [70], hours(9), "new"), "new")
        written = materialize(project).written
        assert written.pop("synthetic_target_events") == 1
        assert set(written.values()) == {0}
        assert_online_equals_offline(project)

    @long
    @on_redis
    def test_rows_that_come_of_age(self, project):
        """They were in the table at the last fill, and neither had happened nor were known by its end."""
        end = hours(1.5)[0]
        materialize(project, end=end)
        assert_online_equals_offline(project, at=end)
        for later in (2.5, 15, 21):
            end = hours(later)[0]
            report = materialize(project, end=end)
            assert_online_equals_offline(project, at=end)
        assert report.written["synthetic_target_events"] == 2
        assert report.written["source_user_history"] == 0

    @long
    def test_a_store_that_lost_its_rows_or_went_back_to_an_older_copy(self, project):
        address, file = project.feast.redis, project.home / "feast_online.db"
        on_redis = project.feast.online_store == "redis"

        def copy() -> dict:
            if on_redis:
                return {key: client(address).dump(key) for key in client(address).scan_iter()}
            return {file: file.read_bytes()}

        def bring_back(content: dict) -> None:
            if on_redis:
                client(address).flushall()
            for key, value in content.items():
                client(address).restore(key, 0, value) if on_redis else key.write_bytes(value)

        empty = copy()
        materialize(project)
        older = copy()
        assert older
        add(project, Table.SYNTHETIC_TARGET_EVENTS, synthetic(["c"], [70], hours(9), "new"), "new")
        materialize(project)
        for content in (older, empty):
            bring_back(content)
            assert set(materialize(project).written.values()) == {None}
            assert_online_equals_offline(project)

    @on_sqlite
    def test_a_view_that_was_defined_anew(self, project):
        materialize(project)
        store = open_feature_store(project)
        view = store.get_feature_view("source_user_history")
        view.tags = {**view.tags, "knowledge_time": "event"}
        store.apply([view])
        written = materialize(project).written
        assert written["source_user_history"] is None
        assert written["target_user_history"] == 0

    def test_a_window_published_again(self, project):
        materialize(project)
        publish(project, synthetic(["a", "c"], [70, 90], hours(2, 4), "again"), "again")
        assert materialize(project).emptied == ("synthetic_target_events",)
        assert served(project)["event_id"] == ["again0", None, "again1", None], "a's new event has the old one's time"
        assert_online_equals_offline(project)

    @long
    @on_redis
    def test_a_window_published_again_with_older_rows(self, project):
        materialize(project)
        publish(project, synthetic(["a", "b"], [70, 90], hours(1, 1), "older"), "older")
        assert materialize(project).emptied == ()
        assert served(project)["event_id"] == ["older0", "older1", None, None]
        assert_online_equals_offline(project)

    @long
    @on_redis
    def test_a_rollback(self, project):
        materialize(project)
        add(
            project, Table.SYNTHETIC_TARGET_EVENTS, synthetic(["a", "b", "c"], [70, 71, 72], hours(9, 3, 9), "second"), "second"
        )
        materialize(project)
        assert served(project)["event_id"] == ["second0", "second1", "second2", None]
        lake = Lake.open(project)
        lake.delete(Table.SYNTHETIC_TARGET_EVENTS, "event_id LIKE 'second%'", key="roll back")
        assert materialize(project).emptied == ("synthetic_target_events",)
        assert served(project)["event_id"] == ["e0", "e1", None, None]
        assert_online_equals_offline(project)

    @long
    @on_redis
    def test_one_context_a_user(self, project):
        """With ``contexts = "users"`` all of a user's events have one time, in each run the same."""

        def draws(prefix: str, users: str) -> dict:
            people = [user for user in users for _ in range(5)]
            items = [(7 * number) % 11 for number in range(len(people))]
            return synthetic(people, items, [AS_OF] * len(people), prefix)

        publish(project, draws("first", "ab"), "first")
        materialize(project)
        assert_online_equals_offline(project)
        for prefix, users in (("again", "ab"), ("zero", "bc"), ("back", "ab")):
            publish(project, draws(prefix, users), prefix)
            materialize(project)
            found = served(project)
            assert [value is not None for value in found["event_id"]] == [user in users for user in PEOPLE]
            assert all(value is None or value.startswith(prefix) for value in found["event_id"])
            assert_online_equals_offline(project)

    @long
    @on_redis
    def test_up_to_an_earlier_time(self, project):
        materialize(project)
        end = hours(2.5)[0]
        materialize(project, end=end)
        assert served(project, "source_user_history")["event_count"] == [2, None, None, None]
        assert served(project)["event_id"] == [None] * 4, "not created by then"
        assert_online_equals_offline(project, at=end)
        materialize(project)
        assert_online_equals_offline(project)

    @long
    @on_redis
    def test_a_fill_that_was_cut_off(self, project, monkeypatch):
        materialize(project)
        add(project, Table.SYNTHETIC_TARGET_EVENTS, synthetic(["c"], [70], hours(9), "cut"), "cut")
        fill = FeatureStore.materialize

        def cut_off(*arguments, **options):
            fill(*arguments, **options)
            raise OSError("the machine goes down")

        with monkeypatch.context() as patched:
            patched.setattr(FeatureStore, "materialize", cut_off)
            with pytest.raises(FeatureStoreError, match="goes down"):
                materialize(project)
        Lake.open(project).delete(Table.SYNTHETIC_TARGET_EVENTS, "event_id = 'cut0'", key="take out")
        materialize(project)
        assert_online_equals_offline(project)

    @long
    @pytest.mark.parametrize("emptied", [False, True])
    def test_a_first_fill_that_was_cut_off(self, project, monkeypatch, emptied):
        """One view is filled, the others are not; then, perhaps, the store loses the first one too."""
        file = project.home / "feast_online.db"
        on_redis = project.feast.online_store == "redis"
        content = None if on_redis else file.read_bytes()
        cut_off(project, monkeypatch, at=2)
        if emptied:
            client(project.feast.redis).flushall() if on_redis else file.write_bytes(content)
        written = list(materialize(project).written.values())
        assert written[0] == (None if emptied else 0)
        assert set(written[1:]) == {None}
        assert_online_equals_offline(project)
        assert set(materialize(project).written.values()) == {0}

    @on_sqlite
    def test_a_view_whose_first_fill_was_cut_off_beside_filled_ones(self, project, monkeypatch):
        materialize(project, views=["source_user_history"])
        cut_off(project, monkeypatch)
        written = materialize(project).written
        assert written.pop("source_user_history") == 0
        assert set(written.values()) == {None}
        assert_online_equals_offline(project)

    @long
    def test_a_departure_that_was_cut_off_and_taken_back(self, project, monkeypatch):
        """SQLite had been emptied for it: who neither departed nor came back is missing too."""
        add(project, Table.SYNTHETIC_TARGET_EVENTS, synthetic(["c"], [70], hours(9), "other"), "a file of its own")
        materialize(project)
        Lake.open(project).delete(Table.SYNTHETIC_TARGET_EVENTS, "event_id = 'e0'", key="take out")
        cut_off(project, monkeypatch)
        add(project, Table.SYNTHETIC_TARGET_EVENTS, synthetic(["a"], [7], hours(2), "back"), "back")
        materialize(project)
        assert served(project)["event_id"] == ["back0", "e1", "other0", None]
        assert_online_equals_offline(project)

    @pytest.mark.parametrize(
        "record",
        [None, *(pytest.param(one, marks=pytest.mark.nightly) for one in ("{", '{"synthetic_target_events": 3}'))],
    )
    def test_a_lost_record(self, project, record):
        """What the store holds is not known then: all of it goes first."""
        materialize(project)
        Lake.open(project).delete(Table.SYNTHETIC_TARGET_EVENTS, "event_id = 'e0'", key="take out")
        path = project.feast_repo / ".materialized.json"
        path.unlink()
        if record is not None:
            path.write_text(record)
        materialize(project)
        assert_online_equals_offline(project)


def test_another_projects_rows_stay(redis, tmp_path):
    """Redis keys end in the project's name, and one name may be the end of another."""
    client(redis).flushall()
    text = f'[feast]\nonline_store = "redis"\nredis = "{redis}"\n'
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    mine = make_project(tmp_path / "mine", text)
    other = make_project(tmp_path / "other", f'[project]\nname = "my_s_to_t"\n{text}')
    names = [open_feature_store(settings).project for settings in (mine, other)]
    assert names[1].endswith(names[0])

    for settings in (mine, other):
        materialize(settings)
    (mine.feast_repo / ".materialized.json").unlink()
    Lake.open(mine).delete(Table.SYNTHETIC_TARGET_EVENTS, "user_id = 'a'", key="a")
    assert "synthetic_target_events" in materialize(mine).emptied
    assert served(mine)["event_id"] == [None, "e1", None, None]
    assert_online_equals_offline(other)


@long
def test_nothing_is_left_of_what_departed(redis, tmp_path):
    """A deleted entity's key goes with its last row."""
    client(redis).flushall()
    settings = make_project(tmp_path, f'[feast]\nonline_store = "redis"\nredis = "{redis}"\n')
    materialize(settings)
    keys = client(redis).dbsize()
    lake = Lake.open(settings)
    for table in (Table.SYNTHETIC_TARGET_EVENTS, Table.SOURCE_USER_HISTORY, Table.TARGET_USER_HISTORY):
        lake.delete(table, "user_id = 'a'", key="a")
    materialize(settings)
    assert client(redis).dbsize() == keys - 1
