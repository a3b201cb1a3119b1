"""How an ingest reads: the types of ids, and every format and type of column that a log may come in."""

from __future__ import annotations

import bz2
import gzip
import lzma
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.examples import sweep
from support.ingest_project import DAY, SOURCE, TARGET, project_in, rows_of, triples

from scalr_prod.errors import ColumnNotFound, UnreadableInput
from scalr_prod.ingest import ingest, read_path
from scalr_prod.ingest.column_mapping import ColumnSelection
from scalr_prod.ingest.sources import files
from scalr_prod.ingest.staging import open_events
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, id_type_of


@pytest.fixture
def project(tmp_path):
    return project_in(tmp_path)


@pytest.mark.parametrize("ids", ["int64", "string"])
def test_typed_ids_keep_their_type(project, ids):
    kind = int if ids == "int64" else str
    source, target = (
        frame.assign(**{c: frame[c].str[1:].map(kind) for c in ("user_id", "item_id")}) for frame in (SOURCE, TARGET)
    )
    settings = project(source, target)
    ingest(settings)
    schema = Lake.open(settings).schema(Table.SYNTHETIC_EVENT_PROVENANCE)
    assert {id_type_of(schema, column) for column in ("user_id", "source_item_id")} == {ids}
    assert {row["user_id"] for row in rows_of(settings)} == {kind(1), kind(2)}


def test_the_domains_may_have_different_types_of_item_ids(project):
    settings = project(source=SOURCE.assign(item_id=[1, 2, 1]))
    ingest(settings)
    schema = Lake.open(settings).schema(Table.SYNTHETIC_EVENT_PROVENANCE)
    assert id_type_of(Lake.open(settings).schema(Table.SYNTHETIC_TARGET_EVENTS), "item_id") == "string"
    assert id_type_of(schema, "source_item_id") == "int64"


def csv(tmp_path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return f'events = "{name}"'


@pytest.mark.parametrize(
    ("ids", "expected"),
    [(("1", "2"), 1), (("1", "x"), "1"), (("007", "1"), "007"), (("1", "9223372036854775808"), "1"), (("-3", "0"), -3)],
    ids=["all canonical", "one is a word", "leading zeros", "does not fit", "negative"],
)
def test_ids_of_a_text_file_are_int64_only_if_all_are_canonical(project, tmp_path, ids, expected):
    source = csv(tmp_path, "s.csv", "".join(["user_id,item_id,timestamp\n", *(f"{i},a,2024-01-01T00:00:00Z\n" for i in ids)]))
    target = csv(tmp_path, "t.csv", f"user_id,item_id,timestamp\n{ids[0]},b,2024-01-02T00:00:00Z\n")
    settings = project(source, target)
    ingest(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        assert rows_of(settings, table)[0]["user_id"] == expected


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (("1.0", "2.0"), ("1", "2"), [1, 2]),
        (("1.0", "2.0"), ("1.0", "2.0"), ["1.0", "2.0"]),  # nothing says that these are numbers
        (("1.0", "b"), ("1.0", "2"), ["1.0", "b"]),
        (("123456789012345.0",), ("123456789012345",), [123456789012345]),
    ],
)
def test_whole_numbers_with_a_point_are_integers_where_the_other_side_has_integers(project, tmp_path, source, target, expected):
    def text(name, ids):
        return csv(tmp_path, name, "user_id,item_id,timestamp\n" + "".join(f"{i},a,2024-01-01T00:00:00Z\n" for i in ids))

    settings = project(text("s.csv", source), text("t.csv", target))
    ingest(settings)
    assert [row["user_id"] for row in rows_of(settings)] == expected
    ingest(settings)  # by what the lake holds
    assert [row["user_id"] for row in rows_of(settings)] == expected


@pytest.mark.parametrize("kind", [str, int])
def test_text_ids_follow_the_typed_side(project, tmp_path, kind):
    source = csv(tmp_path, "s.csv", "user_id,item_id,timestamp\n1,5,2024-01-01T00:00:00Z\n")
    settings = project(source, TARGET.assign(user_id=[kind(1), kind(3)]))
    assert ingest(settings).domains["source"].user_id == {str: "string", int: "int64"}[kind]
    assert [row["user_id"] for row in rows_of(settings)] == [kind(1)]


def test_text_ids_follow_what_the_lake_holds(project, tmp_path):
    ingest(project(source=SOURCE.assign(item_id=["1", "2", "3"])))
    settings = project(csv(tmp_path, "s.csv", "user_id,item_id,timestamp\nu1,4,2024-05-01T00:00:00Z\n"))
    ingest(settings)
    assert [row["item_id"] for row in rows_of(settings)] == ["1", "2", "3", "4"]


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    # Two frames, as tools write that work on several threads.
    ".zst": lambda data: b"".join(pa.compress(half, "zstd", asbytes=True) for half in (data[:99], data[99:])),
}


@pytest.mark.parametrize(
    "suffix",
    sweep(
        ["tsv", "csv.zst", "jsonl.gz", "parquet", "csv", "csv.gz", "csv.bz2", "jsonl", "jsonl.zst", "jsonl.xz", "ndjson"],
        keep=4,
    ),
)
def test_every_format_gives_the_same_rows(project, tmp_path, suffix):
    frame = SOURCE.assign(other='ignored, "quoted"\nand broken', timestamp=SOURCE["timestamp"].map(lambda t: t.isoformat()))
    path = tmp_path / f"s.{suffix}"
    if suffix == "parquet":
        SOURCE.to_parquet(path)
    else:
        separator = "\t" if suffix == "tsv" else ";"
        text = frame.to_csv(index=False, sep=separator) if "sv" in suffix else frame.to_json(orient="records", lines=True)
        path.write_bytes(COMPRESS.get(path.suffix, bytes)(text.encode()))
    settings = project(f'events = "s.{suffix}"')
    ingest(settings)
    assert triples(settings) == sorted(SOURCE.itertuples(index=False, name=None))


@pytest.mark.parametrize(("kind", "suffix"), sweep([("jsonl", ".gz"), ("csv", ".zst"), ("csv", ".gz"), ("csv", ".xz")], keep=2))
def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_read_whole(project, tmp_path, monkeypatch, kind, suffix):
    monkeypatch.setattr(files, "_ANY_EXPANSION_BYTES", 2 << 20)
    head = "user_id,item_id,timestamp\n" if kind == "csv" else ""
    rows = "u1,s1,2024-01-01T00:00:00Z\n" if kind == "csv" else SOURCE.head(1).to_json(orient="records", lines=True)
    data = (head + rows * ((7 << 20) // len(rows))).encode()
    path = tmp_path / f"s.{kind}{suffix}"
    path.write_bytes(COMPRESS[suffix](data))
    sizes = []
    read = files._Unpacked.readinto

    def noted(self, buffer):
        sizes.append(read(self, buffer))
        return sizes[-1]

    monkeypatch.setattr(files._Unpacked, "readinto", noted)
    settings = project(extra="[compute]\nmax_expansion = 100")
    wanted = ColumnSelection(("user_id", "item_id", "timestamp"), "domains.source.columns")
    with pytest.raises(UnreadableInput, match=r"unpacks to over \d+ MiB, .* more than max_expansion = 100") as caught:
        list(read_path(settings, path.name, wanted))
    assert "raise [compute] max_expansion" in str(caught.value)
    assert str(path) in str(caught.value)
    assert sum(sizes) < len(data) / 2
    for granted in (settings.with_sections(compute={"max_expansion": 1e6}), settings):
        assert sum(batch.rows.num_rows for batch in read_path(granted, path.name, wanted)) == data.count(b"u1")
        monkeypatch.setattr(files, "_ANY_EXPANSION_BYTES", len(data))  # up to this size the ratio does not count


def test_empty_lines_are_no_rows(project, tmp_path):
    settings = project(
        csv(tmp_path, "s.csv", "\n\nuser_id,item_id,timestamp\nu1,s1,2024-01-01T00:00:00Z\n\nu2,s1,2024-01-02T00:00:00Z\n")
    )
    assert ingest(settings).domains["source"].rows_read == 2


def test_globs_folders_and_fsspec_urls(project, tmp_path):
    import fsspec

    folder = tmp_path / "days"
    folder.mkdir()
    for day in range(3):
        SOURCE.iloc[day : day + 1].to_parquet(folder / f"{day}.parquet")
    memory = fsspec.filesystem("memory")
    with memory.open("/scalr-test/t.parquet", "wb") as file:
        TARGET.to_parquet(file)
    for events in ("days/*.parquet", "days"):
        settings = project(f'events = "{events}"', 'events = "memory://scalr-test/t.parquet"')
        assert ingest(settings).domains["source"].rows_read == 3
    assert triples(settings) == sorted(SOURCE.itertuples(index=False, name=None))
    assert triples(settings, Table.TARGET_EVENTS) == sorted(TARGET.itertuples(index=False, name=None))
    memory.rm("/scalr-test", recursive=True)


def test_lines_of_json_may_omit_a_column_in_any_block_but_not_in_the_whole_file(project, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BYTES", 1)  # a block for each line
    line = '{"user_id": "u1", "item_id": "s1", "timestamp": "2024-03-01T00:00:00Z"'
    (tmp_path / "s.jsonl").write_text(f'{line}}}\n{line}, "price": 2.5}}\n{line}}}\n')
    settings = project('events = "s.jsonl"', source_toml='columns = { value = "price" }')
    batches, _ = open_events(settings, "source")
    assert [batch.rows.column("price").to_pylist() for batch in batches] == [[None], [2.5], [None]]
    with pytest.raises(ColumnNotFound, match=r"no column 'cost'; there are: 'user_id', 'item_id', 'timestamp'"):
        list(open_events(project('events = "s.jsonl"', source_toml='columns = { value = "cost" }'), "source")[0])
    with pytest.raises(ColumnNotFound, match="no column 'uid'"):
        next(open_events(project('events = "s.jsonl"', source_toml='columns = { user = "uid" }'), "source")[0])


def test_hidden_and_temporary_folders_of_a_log_are_not_read(project, tmp_path):
    folder = tmp_path / ".cache" / "log"  # what lies above the log's folder does not count
    for name in ("day=1", "_hour=2", "_temporary/0", ".ipynb_checkpoints"):
        (folder / name).mkdir(parents=True)
        SOURCE.iloc[:1].to_parquet(folder / name / "part-1.parquet")
    assert ingest(project('events = ".cache/log"')).domains["source"].rows_read == 2
    assert ingest(project('events = ".cache/log/_temporary/*/*.parquet"')).domains["source"].rows_read == 1


def test_dictionary_and_view_and_narrow_columns_are_taken(project, tmp_path):
    times = pa.array([0, 1], pa.timestamp("ns", tz="Asia/Tokyo"))
    table = pa.table(
        {
            "user_id": pa.array([3, 4], pa.uint8()),
            "item_id": pa.array(["a", "b"]).dictionary_encode(),
            "timestamp": times,
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    large = table.set_column(1, "item_id", pa.array(["a", "b"], pa.large_string()))
    pq.write_table(large, tmp_path / "t.parquet")
    settings = project('events = "s.parquet"', 'events = "t.parquet"')
    ingest(settings)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert triples(settings) == [(3, "a", epoch), (4, "b", epoch)]
    assert triples(settings, Table.TARGET_EVENTS) == triples(settings)


def test_naive_timestamps_are_taken_in_the_zone_of_the_settings(project):
    naive = SOURCE.assign(timestamp=SOURCE["timestamp"].dt.tz_localize(None))
    settings = project(naive, source_toml='timezone = "Europe/Paris"')
    ingest(settings)
    assert rows_of(settings)[0]["event_timestamp"] == DAY.to_pydatetime() - timedelta(hours=1)


def test_a_word_that_often_stands_for_nothing_is_told_of_where_ids_are_words(project, tmp_path, caplog):
    """A user may be called so."""
    source = csv(tmp_path, "s.csv", "user_id,item_id,timestamp\nann,a,2024-01-01T00:00:00Z\nNULL,a,2024-01-01T00:00:00Z\n")
    settings = project(source, csv(tmp_path, "t.csv", "user_id,item_id,timestamp\nann,b,2024-01-02T00:00:00Z\n"))
    ingest(settings)
    assert {row["user_id"] for row in rows_of(settings, Table.SOURCE_EVENTS)} == {"ann", "NULL"}
    assert "column 'user_id', row 2: 'NULL' is used as an id; 1 ids are words that often mean a missing value" in caplog.text
