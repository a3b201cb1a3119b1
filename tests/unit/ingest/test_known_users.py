"""`[users]`: two logs that know the same people by different ids."""

from __future__ import annotations

import sqlite3

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from support.examples import sweep

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import BadValue, ColumnNotFound, EmptyInput, NoCommonUsers, SettingsError, UnreadableInput
from scalr_prod.ingest import ingest
from scalr_prod.ingest.id_mapping import IdMapping
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

#: Ingests several times; each kind of map is read by the same code.
long = pytest.mark.long

#: Source user 2 is nobody's in the map, and target user 2 is somebody else.
SOURCE = [(1, "s1", 1), (1, "s2", 2), (2, "s1", 3), (3, "s3", 4)]
TARGET = [(2, "t1", 5), (70, "t1", 6), (90, "t2", 7)]
MANY = (
    "2 source ids have several target ids, 2 of them with target ids that stand for several source ids: "
    "'1' is '70', '71'; '3' is '70', '90'"
)
PAIRS = {"shop": [1, 3, 55], "films": [70, 90, 91]}


@pytest.fixture
def project(tmp_path):
    def write(name: str, rows: list) -> None:
        table = pd.DataFrame(rows, columns=["user_id", "item_id", "day"])
        table["timestamp"] = (pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(table.pop("day"), unit="D")).astype(
            "datetime64[us, UTC]"
        )
        table.to_parquet(tmp_path / name)

    def make(users: str = 'map = "pairs.csv"', *, source=SOURCE, target=TARGET, pairs=PAIRS):
        write("s.parquet", source)
        write("t.parquet", target)
        pd.DataFrame(pairs).to_csv(tmp_path / "pairs.csv", index=False)
        (tmp_path / "scalr.toml").write_text(
            f'[domains.source]\nname = "shop"\nevents = "s.parquet"\n[domains.target]\nname = "films"\nevents = "t.parquet"\n'
            f"[users]\n{users}\n"
        )
        return load_settings(tmp_path / "scalr.toml")

    return make


def users_of(settings, table=Table.SOURCE_EVENTS) -> list:
    rows = Lake.open(settings).read(table).sort_by("event_timestamp")
    return rows["user_id"].to_pylist()


def test_source_users_become_target_users_and_the_others_stay_their_own(project):
    settings = project()
    report = ingest(settings)
    assert users_of(settings) == ["70", "70", "source:2", "90"]
    assert users_of(settings, Table.TARGET_EVENTS) == ["2", "70", "90"]
    assert report.common_users == 2
    assert report.to_json()["users"] == {"pairs": 3, "without": 0, "mapped": 2, "unmapped": 1, "merged": 0}
    again = ingest(settings)
    assert [one.rows_added for one in again.domains.values()] == [0, 0]


@long
def test_every_kind_of_map_gives_the_same_rows(project, tmp_path):
    expected = ["70", "70", "source:2", "90"]
    pairs = pd.DataFrame(PAIRS)
    pairs.to_parquet(tmp_path / "pairs.parquet")
    pairs.astype(float).to_csv(tmp_path / "floats.csv", index=False)
    pairs.assign(note="x").rename(columns={"shop": "a", "films": "b"}).to_csv(tmp_path / "named.csv", index=False)
    write_deltalake(str(tmp_path / "pairs"), pairs)
    with sqlite3.connect(tmp_path / "ids.db") as db:
        pairs.to_sql("ids", db, index=False)
    db.close()
    for number, users in enumerate(
        [
            'map = "pairs.parquet"',
            'map = "floats.csv"',
            'map = "pairs"',
            'map = "named.csv"\ncolumns = { source = "a", target = "b" }',
            f'query = "SELECT shop, films FROM ids"\nurl = "sqlite:///{tmp_path}/ids.db"',
        ]
    ):
        settings = project(f'{users}\n[project]\nhome = "home{number}"')
        ingest(settings)
        assert users_of(settings) == expected, users


def test_several_source_ids_of_one_person_are_one_user(project):
    settings = project(pairs={"shop": [1, 3], "films": [70, 70]})
    assert ingest(settings).to_json()["users"]["merged"] == 1
    assert users_of(settings) == ["70", "70", "source:2", "70"]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ({"shop": [1, 1, 3], "films": [70, 71, 90]}, "1 source ids have several target ids: '1' is '70', '71'"),
        (
            {"shop": [1, 1, 3, 3], "films": [70, 71, 70, 90]},
            MANY,
        ),
    ],
)
def test_a_source_id_with_several_target_ids_is_refused(project, pairs, said):
    settings = project(pairs=pairs)
    with pytest.raises(BadValue) as caught:
        ingest(settings)
    assert caught.value.found == said
    assert not Lake.open(settings).exists(Table.SOURCE_EVENTS)


def test_rows_without_an_id_say_nothing_and_are_counted(project, tmp_path):
    settings = project()
    (tmp_path / "pairs.csv").write_text("shop,films\n1,70\n,71\n3,\n")
    report = ingest(settings)
    assert report.mapped.without == 2
    assert users_of(settings) == ["70", "70", "source:2", "source:3"]


def test_what_cannot_be_a_map_is_refused(project, tmp_path):
    with pytest.raises(ColumnNotFound, match="which column has") as caught:
        ingest(project(pairs={"a": [1], "b": [70]}))
    assert "under [users]" in caught.value.next_step
    (tmp_path / "empty.csv").write_text("shop,films\n")
    with pytest.raises(EmptyInput, match="no pair"):
        ingest(project('map = "empty.csv"'))
    with pytest.raises(UnreadableInput, match="no such file"):
        ingest(project('map = "nothing.csv"'))
    with pytest.raises(SettingsError, match="both"):
        project('map = "a.csv"\nquery = "SELECT 1"\nurl = "sqlite://"')
    with pytest.raises(NoCommonUsers):
        ingest(project(pairs={"shop": [1], "films": [500]}))
    with pytest.raises(BadValue, match="begins with 'source:'"):
        ingest(project(target=[("source:2", "t1", 5), ("70", "t1", 6)]))


def test_a_lake_of_integers_takes_no_map(project):
    ingest(project("", source=[(70, "s1", 1)]))
    with pytest.raises(BadValue, match="contains int64 user ids"):
        ingest(project())


def test_events_are_never_there_under_a_former_and_a_new_id(project):
    ingest(project())
    settings = project(pairs={"shop": [1, 2, 3], "films": [70, 2, 90]})
    with pytest.raises(BadValue, match="1 events of 1 users are in the lake under other ids") as caught:
        ingest(settings)
    assert "scalr ingest --replace 2024-01-04" in caught.value.next_step
    assert users_of(settings) == ["70", "70", "source:2", "90"]
    ingest(settings, replace=pd.Timestamp("2024-01-01", tz="UTC").to_pydatetime())
    assert users_of(settings) == ["70", "70", "2", "90"]


def test_a_lost_event_may_be_like_a_new_one_of_somebody_else(project):
    """In a log of dates that is no rare coincidence, and the map did not change."""
    rows = [(1, "s1", 0), (1, "s2", 3), (2, "s1", 0), (2, "s9", 3)]
    ingest(project(source=rows))
    ingest(project(source=[*rows[:1], *rows[2:], (2, "s2", 3)]))
    assert sorted(users_of(project())) == ["70", "70", "source:2", "source:2", "source:2"]


@pytest.mark.parametrize("asked", sweep(["source:1", "70"], keep=1))
def test_whoever_is_forgotten_stays_away_by_either_id_and_whatever_the_map_says(project, asked):
    from scalr_prod.operations.erasure import erase_users

    more = [*SOURCE, (4, "s1", 8)]
    settings = project(source=more)
    ingest(settings)
    erase_users(settings, [asked])
    assert users_of(settings) == ["source:2", "90", "source:4"]
    for pairs in (PAIRS, {"shop": [3], "films": [90]}, {"shop": [1, 3], "films": [71, 90]}):
        settings = project(source=more, pairs=pairs)
        ingest(settings)
        assert users_of(settings) == ["source:2", "90", "source:4"]
        assert users_of(settings, Table.TARGET_EVENTS) == ["2", "90"]


@long
def test_whoever_was_forgotten_without_a_pair_stays_away_with_one(project):
    from scalr_prod.operations.erasure import erase_users

    ingest(project())
    erase_users(project(), ["source:2"])
    settings = project(pairs={"shop": [1, 2, 3], "films": [70, 2, 90]})
    ingest(settings)
    assert users_of(settings) == ["70", "70", "90"]


def test_all_ids_of_a_person_are_found_from_any_of_them():
    """Two source ids stand for one target id: erasing by one of them is erasing the person."""
    pairs = pa.table({"source": ["5", "6", "7"], "target": ["t", "t", "w"]})
    mapping = IdMapping("pairs.csv", pairs=[pairs])
    for asked in ("t", "source:5", "source:6"):
        assert {asked, *mapping.equivalent_ids([asked])} == {"t", "source:5", "source:6"}
    assert mapping.equivalent_ids(["w"]) == ["source:7"]
    assert mapping.equivalent_ids(["unknown"]) == []


def test_a_source_id_of_several_people_erases_none_of_them():
    """Such as a placeholder: an ingest refuses the map, and an erasure, which cannot be undone, does too."""
    mapping = IdMapping("pairs.csv", pairs=[pa.table({"source": ["0", "0", "8"], "target": ["t", "w", "v"]})])
    for asked in ("t", "w"):
        with pytest.raises(BadValue, match="'0' has several target ids"):
            mapping.equivalent_ids([asked])
    assert set(mapping.equivalent_ids(["v"])) == {"source:8"}
