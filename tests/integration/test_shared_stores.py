"""Two projects of equal domains on one PostgreSQL (ledger and Feast registry) and one Redis: neither meets the other's rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from support.feast_project import fill, hours, make_project, synthetic
from support.lakes import mark_home
from support.ledger_runs import make_spec, validated
from support.redis_server import client, running_redis

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ProjectsMixed, RunOfOtherProject
from scalr_prod.features import ViewWindow, apply_feature_repo, materialize, open_feature_store, stream_window
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.publication import publish, rollback_run
from scalr_prod.quality import validate_run
from scalr_prod.schemas import Table

pytestmark = pytest.mark.slow
#: Makes two more projects on the stores that the first test shares between two.
long = pytest.mark.long

PEOPLE = [{"user_id": user} for user in ("a", "b", "c")]


@pytest.fixture
def database(postgres):
    return {name: postgres.database(name).render_as_string(hide_password=False) for name in ("ledger", "feast")}


@pytest.fixture
def redis(tmp_path_factory):
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture
def stores(database, redis):
    """The lines of scalr.toml that name the shared stores, and all that these hold, to compare."""

    def toml(name: str | None) -> str:
        project = f'[project]\nname = "{name}"\n' if name else ""
        feast = f'[feast]\nregistry = "{database["feast"]}"\nonline_store = "redis"\nredis = "{redis}"\n'
        return f'{project}[ledger]\nurl = "{database["ledger"]}"\n{feast}'

    def held() -> dict[str, list]:
        found = {"redis": sorted((key, repr(_value(client(redis), key))) for key in client(redis).scan_iter())}
        for name, url in database.items():
            engine = sa.create_engine(url)
            with engine.connect() as connection:
                for table in sa.inspect(connection).get_table_names():
                    rows = connection.execute(sa.text(f"SELECT * FROM {table}"))
                    found[f"{name}.{table}"] = sorted(repr(row) for row in rows)
            engine.dispose()
        return found

    return toml, held


def _value(server, key: bytes) -> object:
    return server.hgetall(key) if server.type(key) == b"hash" else server.get(key)


def made(folder: Path, toml: str, user: str, item: int):
    folder.mkdir()
    settings = make_project(folder, toml)
    lake, table = Lake.open(settings), Table.SYNTHETIC_TARGET_EVENTS
    rows = pa.table(synthetic([user], [item], hours(9), f"own{item}_")).select(lake.schema(table).names)
    lake.append(table, rows.cast(lake.schema(table)), key="own")
    materialize(settings)
    return settings


def online(settings) -> list:
    store = open_feature_store(settings)
    return store.get_online_features(["synthetic_target_events:item_id"], PEOPLE).to_dict()["item_id"]


def items(settings) -> set[int]:
    return set(
        stream_window(settings, ViewWindow("synthetic_target_events", columns=["item_id"])).read_all()["item_id"].to_pylist()
    )


def test_two_projects_of_equal_domains_share_everything_and_meet_nowhere(stores, tmp_path):
    toml, held = stores
    first = made(tmp_path / "a", toml("staging"), "a", 70)
    second = made(tmp_path / "b", toml("production"), "b", 71)
    assert (items(first), items(second)) == ({7, 8, 70}, {7, 8, 71})
    assert (online(first), online(second)) == ([70, 8, None], [7, 71, None])

    with Ledger.open(first) as ledger, Ledger.open(second) as other:
        assert ledger.runs.begin(make_spec()).created
        assert other.runs.begin(make_spec()).created
        run_id = validated(other, seed=1)
        other.publications.record_intent(run_id, base_version=1, rows=1, replaced={})
        other.publications.confirm(run_id, attempt=1, delta_version=2, rows=1, cause="x")
    before, versions = held(), [[Lake.open(one).version(table) for table in Table] for one in (first, second)]
    for attempt in (rollback_run, publish, validate_run):
        with pytest.raises(RunOfOtherProject, match="project 'production'"):
            attempt(first, run_id)
    assert held() == before
    assert [[Lake.open(one).version(table) for table in Table] for one in (first, second)] == versions


@long
def test_a_second_project_of_one_name_is_refused_by_every_store_with_both_lakes(stores, tmp_path):
    toml, held = stores
    first = made(tmp_path / "a", toml(None), "a", 70)
    with Ledger.open(first) as ledger:
        ledger.runs.begin(make_spec())
    before = held()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "scalr.toml").write_text((tmp_path / "a" / "scalr.toml").read_text())
    second = load_settings(tmp_path / "b" / "scalr.toml")
    mark_home(second)
    fill(Lake.open(second))
    alone = load_settings(tmp_path / "b" / "scalr.toml", feast={"registry": f"sqlite:///{tmp_path / 'b' / 'registry.db'}"})
    apply_feature_repo(alone)
    for attempt in (lambda: apply_feature_repo(second), lambda: Ledger.open(second), lambda: materialize(alone)):
        with pytest.raises(ProjectsMixed) as caught:
            attempt()
        for settings in (first, second):
            assert Lake.open(settings).root in str(caught.value)
    assert held() == before
    assert online(first) == [70, 8, None]


@long
def test_a_new_name_takes_the_rows_along_and_leaves_nothing_behind(stores, tmp_path):
    toml, held = stores
    first = made(tmp_path / "a", toml(None), "a", 70)
    former = first.project_name
    with Ledger.open(first) as ledger:
        run_id = ledger.runs.begin(make_spec()).run_id
    other = made(tmp_path / "b", toml("production"), "b", 71)
    theirs = [row for rows in held().values() for row in rows if "production" in repr(row)]
    now = load_settings(tmp_path / "a" / "scalr.toml", project={"name": "staging", "formerly": former})
    assert apply_feature_repo(now).applied
    with Ledger.open(now) as ledger:
        assert ledger.runs.get(run_id).project == "staging"
    materialize(now)
    after = held()
    left = [row for rows in after.values() for row in rows if former in repr(row)]
    assert left == []
    assert [row for rows in after.values() for row in rows if "production" in repr(row)] == theirs
    assert (online(now), online(other)) == ([70, 8, None], [7, 71, None])
