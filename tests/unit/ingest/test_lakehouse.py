"""Delta and Iceberg tables as input: read by their logs, at a version on request, and never as loose files."""

from __future__ import annotations

import json
import struct
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyroaring import BitMap
from support.examples import sweep

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ColumnNotFound, EmptyInput, SettingsError, UnreadableInput
from scalr_prod.ingest import ingest
from scalr_prod.ingest.staging import open_events
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

AT = datetime(2024, 5, 1, tzinfo=UTC)
CSV = "user_id,item_id,timestamp\nu1,t1,2024-05-01T00:00:00Z\n"
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def log(*rows: tuple[str, str]) -> pa.Table:
    users, items = zip(*rows, strict=True)
    return pa.table({"user_id": users, "item_id": items, "timestamp": pa.array([AT] * len(rows), pa.timestamp("us", "UTC"))})


FIRST = log(("u1", "t1"), ("u1", "t2"), ("u2", "t1"))
MORE = log(("u2", "t3"))


@pytest.fixture
def project(tmp_path: Path):
    """A project whose target log is what the TOML lines name."""

    def make(target: str, **sections):
        log(("u1", "s1"), ("u2", "s2")).to_pandas().to_parquet(tmp_path / "s.parquet")
        (tmp_path / "scalr.toml").write_text(
            f'[domains.source]\nname = "a"\nevents = "s.parquet"\n[domains.target]\nname = "b"\n{target}\n'
        )
        return load_settings(tmp_path / "scalr.toml", **sections)

    return make


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A Delta table at version 2: three rows, one more, and one of the first deleted."""
    path = tmp_path / "delta"
    write_deltalake(path, FIRST)
    write_deltalake(path, MORE, mode="append")
    DeltaTable(path).delete("item_id = 't2'")
    return path


@pytest.fixture
def iceberg(tmp_path: Path):
    """An Iceberg table with the same past, and the snapshot before the delete."""
    catalogue = SqlCatalog("test", uri="sqlite:///:memory:", warehouse=f"file://{tmp_path}")
    catalogue.create_namespace("shop")
    table = catalogue.create_table("shop.log", schema=FIRST.schema)
    table.append(FIRST)
    table.append(MORE)
    before = table.current_snapshot().snapshot_id
    table.delete("item_id = 't2'")
    yield table, before
    catalogue.close()


def rows(settings, table: Table = Table.TARGET_EVENTS) -> list[tuple[str, str]]:
    return sorted((row["user_id"], row["item_id"]) for row in Lake.open(settings).read(table).to_pylist())


NOW = [("u1", "t1"), ("u2", "t1"), ("u2", "t3")]
BEFORE = sorted([*NOW, ("u1", "t2")])


def test_deleted_rows_of_a_delta_table_stay_away(project, delta):
    settings = project('events = "delta"')
    report = ingest(settings)
    assert rows(settings) == NOW
    assert report.domains["target"].rows_read == 3
    assert ingest(settings).domains["target"].rows_added == 0


def test_an_old_delta_version_is_read_on_request(project, delta):
    settings = project('events = "delta"\nversion = 1')
    ingest(settings)
    assert rows(settings) == BEFORE


def test_a_delta_table_at_a_file_url_with_partitions(project, tmp_path):
    write_deltalake(tmp_path / "parted", FIRST, partition_by=["user_id"])
    settings = project(f'events = "file://{tmp_path / "parted"}"\nformat = "delta"')
    ingest(settings)
    assert rows(settings) == [("u1", "t1"), ("u1", "t2"), ("u2", "t1")]


def test_rows_marked_in_a_deletion_vector_stay_away(project, tmp_path):
    """As Spark and others delete: the file stays whole, and its log entry says which rows are gone."""
    path = tmp_path / "vectors"
    write_deltalake(path, FIRST)
    commit = path / "_delta_log" / f"{0:020}.json"
    actions = [json.loads(line) for line in commit.read_text().splitlines()]
    for action in actions:
        if "protocol" in action:
            features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
            action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
        if "add" in action:
            action["add"]["deletionVector"] = deletion_vector([1])
    commit.write_text("\n".join(json.dumps(action) for action in actions))
    settings = project('events = "vectors"')
    ingest(settings)
    assert rows(settings) == [("u1", "t1"), ("u2", "t1")]


def deletion_vector(gone: list[int]) -> dict[str, object]:
    """An inline vector by the Delta protocol: a roaring bitmap in base 85."""
    data = struct.pack("<IQI", 1681511377, 1, 0) + BitMap(gone).serialize()
    size = len(data)
    data += bytes(-size % 4)
    words = struct.unpack(f">{len(data) // 4}I", data)
    text = "".join(Z85[word // 85**place % 85] for word in words for place in (4, 3, 2, 1, 0))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": size, "cardinality": len(gone)}


def test_deleted_rows_of_an_iceberg_table_stay_away(project, iceberg):
    settings = project('events = "shop/log"')
    ingest(settings)
    assert rows(settings) == NOW


def test_an_old_iceberg_snapshot_is_read_on_request(project, iceberg):
    settings = project(f'events = "shop/log"\nversion = {iceberg[1]}')
    ingest(settings)
    assert rows(settings) == BEFORE


def test_an_iceberg_metadata_file_can_be_named(project, iceberg, tmp_path):
    former = sorted((tmp_path / "shop" / "log" / "metadata").glob("*.metadata.json"))[-2]
    settings = project(f'events = "{former}"')
    ingest(settings)
    assert rows(settings) == BEFORE


def test_two_latest_metadata_files_are_no_guess(project, iceberg, tmp_path):
    folder = tmp_path / "shop" / "log" / "metadata"
    latest = max(folder.glob("*.metadata.json"))
    (folder / f"{latest.name[:5]}-00000000-0000-0000-0000-000000000000.metadata.json").write_bytes(latest.read_bytes())
    with pytest.raises(UnreadableInput, match="both claim to be the latest") as caught:
        ingest(project('events = "shop/log"'))
    assert "metadata_location" in str(caught.value.next_step)


def test_item_files_can_be_tables_too(project, delta, tmp_path):
    write_deltalake(tmp_path / "items", pa.table({"item_id": ["t1"], "title": ["old"]}))
    write_deltalake(tmp_path / "items", pa.table({"item_id": ["t1"], "title": ["new"]}), mode="overwrite")
    settings = project('events = "delta"\nitems = "items"\nitems_version = 0')
    ingest(settings)
    titles = {row["item_id"]: row["title"] for row in Lake.open(settings).read(Table.TARGET_ITEMS).to_pylist()}
    assert titles["t1"] == "old"
    ingest(project('events = "delta"\nitems = "items"'))
    titles = {row["item_id"]: row["title"] for row in Lake.open(settings).read(Table.TARGET_ITEMS).to_pylist()}
    assert titles["t1"] == "new"
    with pytest.raises(UnreadableInput, match="no such version") as caught:
        ingest(project('events = "delta"\nitems = "items"\nitems_version = 9'))
    assert "items_version" in caught.value.next_step


@pytest.mark.parametrize(
    "named",
    sweep(
        [
            "delta/*.parquet",
            "folder",
            "shop/log/data",
            "delta/part-*",
            "*/*.parquet",
            "**/*.parquet",
            "del*",
            "folder/of/tables/one/user_id=u1",
            "shop",
            "shop/*/data/*.parquet",
        ],
        keep=3,
    ),
)
def test_tables_are_never_globbed(project, delta, iceberg, tmp_path, named):
    write_deltalake(tmp_path / "folder" / "of" / "tables" / "one", FIRST, partition_by=["user_id"])
    settings = project(f'events = "{named}"')
    with pytest.raises(UnreadableInput, match="deleted rows") as caught:
        ingest(settings)
    assert "name the table's own folder" in str(caught.value)
    assert not Lake.open(settings).exists(Table.SOURCE_EVENTS)


def test_a_data_file_of_a_table_is_no_log(project, delta):
    file = next(delta.glob("*.parquet"))
    with pytest.raises(UnreadableInput, match=r"Delta table .*delta"):
        ingest(project(f'events = "{file}"'))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ('events = "delta"\nversion = 9', ("at version 9", "the latest is 2")),
        ('events = "shop/log"\nversion = 9', ("at version 9", "latest snapshots are")),
        ('events = "s.parquet"\nversion = 1', ("no version 1", "Delta and Iceberg")),
        ('events = "delta"\nformat = "parquet"', ("format delta", "loose parquet")),
        ('events = "s.parquet"\nformat = "delta"', ("format delta", "s.parquet")),
        ('events = "nowhere"\nformat = "iceberg"', ("nowhere", "no metadata file")),
    ],
)
def test_what_cannot_be_read_is_told(project, delta, iceberg, target, says):
    settings = project(target)
    with pytest.raises(UnreadableInput) as caught:
        ingest(settings)
    for part in says:
        assert part in str(caught.value)
    assert not Lake.open(settings).exists(Table.SOURCE_EVENTS)


def test_a_missing_column_and_an_empty_table_are_told(project, tmp_path, iceberg):
    write_deltalake(tmp_path / "other", pa.table({"user": ["u1"]}))
    with pytest.raises(ColumnNotFound, match="there are: 'user'"):
        ingest(project('events = "other"'))
    write_deltalake(tmp_path / "empty", FIRST.slice(0, 0))
    with pytest.raises(EmptyInput):
        ingest(project('events = "empty"'))


def test_a_table_whose_files_were_removed_is_told(project, delta):
    for file in delta.glob("*.parquet"):
        file.unlink()
    with pytest.raises(UnreadableInput, match="cannot be read as a table of format delta"):
        ingest(project('events = "delta"'))


@pytest.mark.parametrize("lines", ['events = "x"\nversion = -1', 'events = "x"\nitems_version = 1'])
def test_a_version_needs_something_that_has_one(project, lines):
    with pytest.raises(SettingsError, match="version"):
        project(lines)


def test_loose_files_beside_a_table_are_still_read(project, delta, tmp_path):
    folder = tmp_path / "loose"
    folder.mkdir()
    FIRST.to_pandas().to_parquet(folder / "one.parquet")
    MORE.to_pandas().to_parquet(folder / "two.parquet")
    settings = project('events = "loose"')
    ingest(settings)
    assert rows(settings) == BEFORE


def test_a_table_cannot_name_code_to_be_run(project, tmp_path, monkeypatch):
    """pyiceberg opens files with the class that a table's own properties name, unless it is given one."""
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass IO: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    catalogue = SqlCatalog("test", uri="sqlite:///:memory:", warehouse=f"file://{tmp_path}")
    catalogue.create_namespace("shop")
    table = catalogue.create_table("shop.planted", schema=FIRST.schema)
    table.append(FIRST)
    catalogue.close()
    latest = max((tmp_path / "shop" / "planted" / "metadata").glob("*.metadata.json"))
    metadata = json.loads(latest.read_text())
    metadata["properties"]["py-io-impl"] = "planted.IO"
    latest.write_text(json.dumps(metadata))
    settings = project('events = "shop/planted"')
    ingest(settings)
    assert rows(settings) == [("u1", "t1"), ("u1", "t2"), ("u2", "t1")]
    assert not (tmp_path / "ran").exists()


def test_a_web_server_is_asked_for_the_file_alone(project, tmp_path):
    """It has no folders, and may answer to any name: no table is looked for there."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            asked.append(self.path)
            page = '<a href="x.metadata.json">x</a>' if self.path != "/log.csv" else CSV
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if body:
                self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/log.csv"
            settings = project(f'events = "{url}"')
            ingest(settings)
            with closing(open_events(settings, "target")[0]) as batches:
                assert next(batches).origin == url
        finally:
            server.shutdown()
            thread.join()
    assert rows(settings) == [("u1", "t1")]
    assert set(asked) == {"/log.csv"}
