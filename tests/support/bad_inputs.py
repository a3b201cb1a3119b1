"""A table of hostile and broken inputs: files, settings, command lines, SQL, requests to the translator, spines.

Each must be answered with a clear error, and must leave the project as it was. The logs of `ingest.test_bad_input` are part of it.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pyarrow as pa
from ingest.test_bad_input import CASES as LOGS
from ingest.test_bad_input import HEAD, ROW, Case, typed

from scalr_prod.errors import BadValue, ColumnNotFound, InputError, UnreadableInput

__all__ = ["COMMANDS", "FILES", "LOGS", "REQUESTS", "SETTINGS", "SPINES", "SQL", "Case"]

WHEN = "2024-05-01T12:00:00Z"
BIG = 10 * 2**20


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def good(**changes: Any) -> dict[str, Any]:
    return {"user_id": "u1", "item_id": "i1", "timestamp": WHEN, **changes}


def twice(name: str) -> pa.Table:
    table = typed()
    return pa.Table.from_arrays([*table.columns, table[name]], names=[*table.column_names, name])


#: Logs beyond those of the ingest's own table.
FILES: dict[str, Case] = {
    "a 10 MB cell in CSV": Case("t.csv", HEAD + f"u1,{'x' * BIG},{WHEN}\n", InputError, ("t.csv",)),
    "a 10 MB id in JSON": Case("t.jsonl", lines(good(item_id="x" * BIG)), BadValue, ("column 'item_id'", "characters")),
    "a 10 MB id in Parquet": Case("t.parquet", typed(item=["x" * BIG]), BadValue, ("column 'item_id'", "characters")),
    "a 10 MB timestamp": Case("t.jsonl", lines(good(timestamp="2" * BIG)), BadValue, ("column 'timestamp'",)),
    "a 10 MB weight": Case("t.jsonl", lines(good(w="9" * BIG)), BadValue, ("column 'w'",), 'columns = { weight = "w" }'),
    "a million columns in CSV": Case("t.csv", ",".join(f"c{n}" for n in range(10**6)) + "\n1\n", InputError, ("t.csv",)),
    "a hundred thousand columns in JSON": Case(
        "t.jsonl", lines({f"c{n}": 1 for n in range(10**5)}), ColumnNotFound, ("'user_id'",)
    ),
    "five thousand columns in Parquet": Case(
        "t.parquet", pa.table({f"c{n}": [1] for n in range(5000)}), ColumnNotFound, ("'user_id'",)
    ),
    "a Parquet column twice": Case("t.parquet", twice("user_id"), BadValue, ("'user_id'", "2 times")),
    "a timestamp column twice": Case("t.parquet", twice("timestamp"), BadValue, ("'timestamp'", "2 times")),
    "nested JSON, a hundred thousand deep": Case("t.jsonl", "[" * 10**5 + "\n", UnreadableInput, ("t.jsonl, row 1",)),
    "nested objects, a hundred thousand deep": Case("t.jsonl", '{"a":' * 10**5 + "\n", UnreadableInput, ("t.jsonl, row 1",)),
    "an integer of five thousand digits": Case("t.jsonl", '{"user_id": ' + "9" * 5000 + "}\n", InputError, ("t.jsonl",)),
    "an integer beyond 64 bits in JSON": Case("t.jsonl", lines(good(user_id=2**70)), InputError, ("t.jsonl",)),
    "half a surrogate in JSON": Case(
        "t.jsonl", lines(r'{"user_id": "\ud800", "item_id": "i", "timestamp": "x"}'), InputError, ("t.jsonl",)
    ),
    "NaN as an id in JSON": Case(
        "t.jsonl", lines('{"user_id": NaN, "item_id": "i1", "timestamp": "x"}'), BadValue, ("'user_id'",)
    ),
    "an object as an id": Case("t.jsonl", lines(good(item_id={"a": 1})), BadValue, ("'item_id'",)),
    "null JSON lines": Case("t.jsonl", "null\nnull\n", UnreadableInput, ("t.jsonl, row 1",)),
    "a JSON string": Case("t.jsonl", '"u1"\n', UnreadableInput, ("t.jsonl, row 1",)),
    "JSON over several lines": Case("t.jsonl", json.dumps(good(), indent=1), UnreadableInput, ("t.jsonl, row 1",)),
    "JSON of UTF-16": Case("t.jsonl", lines(good()).encode("utf-16"), UnreadableInput, ("t.jsonl", "UTF")),
    "CSV of UTF-16": Case("t.csv", (HEAD + ROW).encode("utf-16"), InputError, ("t.csv",)),
    "an open quote in CSV": Case("t.csv", HEAD + ROW + f'"u1,i1,{WHEN}\n', InputError, ("t.csv",)),
    "zero bytes in a CSV header": Case("t.csv", "user_id\0,item_id,timestamp\n" + ROW, ColumnNotFound, ("'user_id'",)),
    "binary noise named CSV": Case("t.csv", bytes(range(256)) * 64, InputError, ("t.csv",)),
    "binary noise named JSON": Case("t.jsonl", bytes(range(128, 256)) * 64, InputError, ("t.jsonl",)),
    "binary noise named Parquet": Case(
        "t.parquet", b"PAR1" + bytes(range(256)) * 64 + b"PAR1", UnreadableInput, ("t.parquet",)
    ),
    "a gzip bomb of nothing": Case("t.csv.gz", gzip.compress(b"\n" * BIG), InputError, ("t.csv.gz",)),
    "a Parquet footer that lies": Case(
        "t.parquet", b"PAR1" + b"\xff" * 4 + b"\x7f\xff\xff\xffPAR1", UnreadableInput, ("t.parquet",)
    ),
    "binary ids": Case("t.parquet", typed(user=pa.array([b"\xff\xfe"])), BadValue, ("'user_id'", "binary")),
    "decimal ids with places": Case(
        "t.parquet", typed(user=pa.array([1.5]).cast(pa.decimal128(5, 1))), BadValue, ("'user_id'", "decimal")
    ),
    "decimal ids beyond 64 bits": Case(
        "t.parquet", typed(user=pa.array([10**30], pa.decimal128(38, 0))), BadValue, ("'user_id'", "64")
    ),
    "dates as ids": Case("t.parquet", typed(user=pa.array([0], pa.date32())), BadValue, ("'user_id'",)),
    "a time of day as a timestamp": Case(
        "t.parquet", typed(timestamp=pa.array([0], pa.time64("us"))), BadValue, ("'timestamp'", "time64")
    ),
    "naive and aware timestamps mixed": Case("t.csv", HEAD + ROW + "u1,i1,2024-05-01 12:00:00\n", BadValue, ("row 2", "naive")),
    "an unknown zone's name": Case("t.csv", HEAD + "u1,i1,2024-05-01 12:00:00 MARS\n", BadValue, ("row 1",)),
    "an offset of a hundred hours": Case("t.csv", HEAD + "u1,i1,2024-05-01T12:00:00+99:99\n", BadValue, ("row 1",)),
    "the year zero": Case("t.csv", HEAD + "u1,i1,0000-01-01T00:00:00Z\n", BadValue, ("row 1",)),
    "a timestamp before 1678": Case("t.csv", HEAD + "u1,i1,1500-01-01T00:00:00Z\n", BadValue, ("row 1",)),
    "an epoch that is infinite": Case("t.parquet", typed(timestamp=pa.array([float("inf")])), BadValue, ("'timestamp'",)),
    "an epoch that is no number": Case("t.parquet", typed(timestamp=pa.array([float("nan")])), BadValue, ("'timestamp'",)),
    "minus infinite weight": Case("t.parquet", typed(w=[float("-inf")]), BadValue, ("'w'",), 'columns = { weight = "w" }'),
    "lists as weights": Case("t.parquet", typed(w=[[1.0]]), BadValue, ("'w'",), 'columns = { weight = "w" }'),
    "NaN text as a weight": Case(
        "t.csv", "user_id,item_id,timestamp,w\n" + ROW.strip() + ",nan\n", BadValue, ("'w'",), 'columns = { weight = "w" }'
    ),
    "an unknown file system": Case("nosuch://bucket/t.csv", None, UnreadableInput, ("nosuch",)),
    "a server that refuses": Case("http://127.0.0.1:9/t.csv", None, UnreadableInput, ("127.0.0.1:9",)),
    "an object store without its client's place": Case("memory://nowhere/t.csv", None, UnreadableInput, ("memory",)),
    "a folder named like a file": Case("t.csv", "dir", UnreadableInput, ("t.csv",)),
    "a path up and out": Case("../../../../../../etc/passwd-none", None, UnreadableInput, ("no such file",)),
    "a text file up and out": Case("/etc/hostname", None, UnreadableInput, ("format",)),
    "an endless device": Case("/dev/zero", None, UnreadableInput, ("format",)),
    "a path of ten thousand characters": Case("x/" * 5000 + "t.csv", None, UnreadableInput, ()),
    "a zero byte in the path": Case(r"t\u0000.csv", None, UnreadableInput, ()),
    "a glob that is none": Case("[.csv", None, UnreadableInput, ()),
}

DOMAINS = '[domains.source]\nname = "a"\nevents = "s.parquet"\n[domains.target]\nname = "b"\nevents = "t.parquet"\n'

#: Lines after two good domains; all must end as `SettingsError`. A callable gets nothing and gives the whole file's bytes.
SETTINGS: dict[str, str | bytes] = {
    "not TOML": b"[domains",
    "not UTF-8": b"\xff\xfe\x00",
    "an empty file": b"",
    "JSON": json.dumps({"domains": {}}).encode(),
    "a key twice": DOMAINS + "[generation]\nseed = 1\nseed = 2",
    "a section twice": DOMAINS + "[generation]\nseed = 1\n[generation]\nseed = 2",
    "an unknown section": DOMAINS + "[generatoin]\nseed = 1",
    "an unknown key": DOMAINS + "[generation]\nsed = 1",
    "a section as a number": DOMAINS.replace("[domains.source]", "generation = 3\n[domains.source]"),
    "a domain as a text": 'domains = "both"',
    "a list of domains": '[[domains]]\nname = "a"',
    "one domain alone": '[domains.source]\nname = "a"\nevents = "s.parquet"',
    "a third domain": DOMAINS + '[domains.third]\nname = "c"\nevents = "c.parquet"',
    "a name with a slash": DOMAINS.replace('name = "a"', 'name = "../a"'),
    "a name of 100 characters": DOMAINS.replace('name = "a"', f'name = "{"a" * 100}"'),
    "SQL as a name": DOMAINS.replace('name = "a"', 'name = "a\'; DROP TABLE runs; --"'),
    "events and a query": DOMAINS.replace('events = "s.parquet"', 'events = "s"\nquery = "SELECT 1"\nurl = "sqlite://"'),
    "a query without its database": DOMAINS.replace('events = "s.parquet"', 'query = "SELECT 1"'),
    "a zone on Mars": DOMAINS.replace('events = "s.parquet"', 'events = "s"\ntimezone = "Mars/Olympus"'),
    "a zone up and out": DOMAINS.replace('events = "s.parquet"', 'events = "s"\ntimezone = "../../etc/passwd"'),
    "a format of its own": DOMAINS.replace('events = "s.parquet"', 'events = "s"\nformat = "xlsx"'),
    "a training set up and out": DOMAINS + '[training_set]\nname = "../../etc"',
    "a training set named by a dot": DOMAINS + '[training_set]\nname = "."',
    "a model up and out": DOMAINS + '[serving]\nmodel_name = "../x"',
    "a model named by dots": DOMAINS + '[serving]\nmodel_name = ".."',
    "a temperature of zero": DOMAINS + "[generation]\ntemperature = 0",
    "a temperature that is no number": DOMAINS + "[generation]\ntemperature = nan",
    "an infinite temperature": DOMAINS + "[generation]\ntemperature = inf",
    "an infinite lift": DOMAINS + "[generation]\nmin_lift = inf",
    "a lift that is no number": DOMAINS + "[generation]\nmin_lift = nan",
    "a seed beyond 63 bits": DOMAINS + "[generation]\nseed = 9223372036854775808",
    "a negative seed": DOMAINS + "[generation]\nseed = -1",
    "a million partitions": DOMAINS + "[generation]\npartitions = 1000000",
    "no partition": DOMAINS + "[generation]\npartitions = 0",
    "a batch of nothing": DOMAINS + "[generation]\nbatch_size = 0",
    "a window backwards": DOMAINS + "[generation]\nstart = 2024-02-01T00:00:00Z\nend = 2024-01-01T00:00:00Z",
    "a naive start": DOMAINS + "[generation]\nstart = 2024-02-01T00:00:00",
    "a start that is a date": DOMAINS + "[generation]\nstart = 2024-02-01",
    "a start that is no time": DOMAINS + '[generation]\nstart = "soon"',
    "as_of before the end": DOMAINS + "[generation]\nend = 2024-02-01T00:00:00Z\nas_of = 2024-01-01T00:00:00Z",
    "a mode of its own": DOMAINS + '[generation]\nmode = "both"',
    "a share above one": DOMAINS + "[quality]\nmax_quarantine_share = 1.5",
    "a share that is no number": DOMAINS + "[quality]\nmax_quarantine_share = nan",
    "an estimator twice": DOMAINS + '[translator]\nestimators = ["linear", "linear"]',
    "no estimator": DOMAINS + "[translator]\nestimators = []",
    "one fold": DOMAINS + "[translator]\nfolds = 1",
    "half of everything for validation": DOMAINS + "[translator]\nvalidation_fraction = 0.5",
    "a scheduler without a scheme": DOMAINS + '[compute]\ndask = "somewhere"',
    "a scheduler over HTTP": DOMAINS + '[compute]\ndask = "http://127.0.0.1:8786"',
    "no memory": DOMAINS + "[compute]\nmemory_mb = 0",
    "no deadline": DOMAINS + "[serving]\ndeadline_s = 0",
    "a deadline that is no number": DOMAINS + "[serving]\ndeadline_s = nan",
    "an infinite deadline": DOMAINS + "[serving]\ndeadline_s = inf",
    "a scorer of its own": DOMAINS + '[serving]\nscorer = "gpu"',
    "a server with a path": DOMAINS + '[serving]\nurl = "http://127.0.0.1:8001/v2"',
    "a server without a port": DOMAINS + '[serving]\nurl = "127.0.0.1"',
    "a server with a wrong port": DOMAINS + '[serving]\nurl = "127.0.0.1:99999"',
    "a key without its certificate": DOMAINS + '[serving]\nurl = "h:1"\ntls = true\nclient_key = "k.pem"',
    "certificates without TLS": DOMAINS + '[serving]\nurl = "h:1"\nca_certificate = "ca.pem"',
    "a home with a zero byte": DOMAINS + '[project]\nhome = "a\\u0000b"',
    "the folder of the settings": DOMAINS.replace("[domains.source]", 'base = "/"\n[domains.source]', 1),
    "a number for a text": DOMAINS.replace('name = "a"', "name = 3"),
    "a table for a number": DOMAINS + "[generation]\nseed = { a = 1 }",
    "a number of 5000 digits": DOMAINS + f"[generation]\nseed = {'9' * 5000}",
}

#: Arguments after `scalr`, exit code (1 a clear error, 2 wrong usage).
COMMANDS: dict[str, tuple[list[str], int]] = {
    "an unknown command": (["frobnicate"], 2),
    "an unknown option": (["ingest", "--fast"], 2),
    "an option without a value": (["ingest", "--config"], 2),
    "an unknown domain": (["ingest", "--domain", "third"], 2),
    "a version that is no number": (["generate", "--version", "latest"], 2),
    "a negative version": (["translator", "promote", "--version", "-1"], 1),
    "version zero": (["generate", "--version", "0"], 1),
    "a version beyond 64 bits": (["generate", "--version", str(10**30)], 1),
    "a version of 5000 digits": (["generate", "--version", "9" * 5000], 2),
    "no time to train until": (["translator", "train", "--trained-until", "soon"], 2),
    "a translator before all data": (["translator", "train", "--trained-until", "1990-01-01"], 1),
    "nothing to evaluate": (["translator", "evaluate", "--version", "7"], 1),
    "nothing to roll back": (["translator", "rollback"], 1),
    "no run's id": (["runs", "show"], 2),
    "an empty id": (["runs", "show", ""], 1),
    "an id up and out": (["runs", "resume", "../../etc"], 1),
    "an absolute path as an id": (["publish", "/etc/passwd"], 1),
    "SQL as an id": (["runs", "rollback", "run_0' OR '1'='1"], 1),
    "SQL that ends as an id": (["validate", "x'; DROP TABLE runs; --"], 1),
    "an id in capitals": (["runs", "show", "RUN_0123456789ABCDEF"], 1),
    "an id with a line break": (["runs", "show", "run_0123456789abcdef\n"], 1),
    "an id of ten thousand characters": (["runs", "show", "run_" + "0" * 10_000], 1),
    "an id of other letters": (["runs", "resume", "run_" + "\uff10" * 10 + "abcdef"], 1),
    "an id that nobody has": (["runs", "resume", "run_0123456789abcdef"], 1),
    "nobody's run to publish": (["publish", "run_0123456789abcdef"], 1),
    "nobody's run to take out": (["runs", "rollback", "run_0123456789abcdef"], 1),
    "a format of its own": (["runs", "list", "--yaml"], 2),
}

#: `[domains.target]`'s url and query.
SQL: dict[str, tuple[str, str]] = {
    "no URL": ("somewhere", "SELECT 1"),
    "an empty URL": ("", "SELECT 1"),
    "an unknown dialect": ("nosuch://host/db", "SELECT 1"),
    "a driver that is not there": ("oracle+cx_oracle://u:hunter2@h/db", "SELECT 1"),
    "a port that is none": ("postgresql://u:hunter2@host:port/db", "SELECT 1"),
    "a database that refuses": ("postgresql+psycopg://u:hunter2@127.0.0.1:9/db", "SELECT 1"),
    "no table": ("sqlite://", "SELECT * FROM nowhere"),
    "no SQL": ("sqlite://", "this is not SQL"),
    "an empty query": ("sqlite://", ""),
    "a comment alone": ("sqlite://", "-- nothing"),
    "two statements": ("sqlite://", "SELECT 1 AS user_id; DROP TABLE log"),
    "a statement that gives no rows": ("sqlite://", "CREATE TABLE x (a)"),
    "a deletion": ("sqlite:///{log}", "DELETE FROM log"),
    "a table dropped": ("sqlite:///{log}", "DROP TABLE log"),
    "a missing column": ("sqlite:///{log}", "SELECT user_id FROM log"),
    "a column twice": ("sqlite:///{log}", "SELECT user_id, user_id, item_id, timestamp FROM log"),
    "no rows": ("sqlite:///{log}", "SELECT * FROM log WHERE user_id = 'x; DROP TABLE log'"),
    "blobs as ids": ("sqlite:///{log}", "SELECT x'ff' AS user_id, item_id, timestamp FROM log"),
    "reals as ids": ("sqlite:///{log}", "SELECT 1.5 AS user_id, item_id, timestamp FROM log"),
    "nulls as ids": ("sqlite:///{log}", "SELECT NULL AS user_id, item_id, timestamp FROM log"),
    "mixed types": ("sqlite:///{log}", "SELECT 1 AS user_id, item_id, timestamp FROM log UNION ALL SELECT 'a', 'b', 'c'"),
    "integers beyond 64 bits": ("sqlite:///{log}", "SELECT 9223372036854775808 AS user_id, item_id, timestamp FROM log"),
    "division of a text": ("sqlite:///{log}", "SELECT abs(-9223372036854775807 - 1) AS user_id, 1 AS item_id, 1 AS timestamp"),
    "a file that is no database": ("sqlite:///{here}/scalr.toml", "SELECT 1"),
    "a folder as a database": ("sqlite:///{here}", "SELECT 1"),
}


def tensors(**changes: Any) -> dict[str, np.ndarray]:
    """A good request for two contexts, with changes; None leaves an input out."""
    request = {
        "history_items": np.array([[0, 1, 2], [1, 2, 3]], np.int32),
        "history_ages": np.zeros((2, 3), np.float32),
        "history_end": np.full((2, 1), 2**59, np.int64),
        "event_time": np.full((2, 1), 2**60, np.int64),
        "fold": np.full((2, 1), -1, np.int32),
        "noise_key": np.array([[1], [2]], np.int64),
        "exclude": np.full((2, 1), -1, np.int32),
        "k": np.full((2, 1), 3, np.int32),
        "temperature": np.ones((2, 1), np.float32),
        "min_lift": np.zeros((2, 1), np.float32),
    } | changes
    return {name: array for name, array in request.items() if array is not None}


def column(value: float, dtype: type, rows: int = 2) -> np.ndarray:
    return np.full((rows, 1), value, dtype)


#: Requests that must be answered with an error.
REQUESTS: dict[str, dict[str, np.ndarray]] = {
    "no input at all": {},
    **{f"{name} is missing": tensors(**{name: None}) for name in ("history_items", "history_ages", "event_time", "fold")},
    "history_end is missing": tensors(history_end=None),
    "noise_key is missing": tensors(noise_key=None),
    "exclude is missing": tensors(exclude=None),
    "items as floats": tensors(history_items=np.zeros((2, 3), np.float32)),
    "ages as doubles": tensors(history_ages=np.zeros((2, 3), np.float64)),
    "keys of 32 bits": tensors(noise_key=column(1, np.int32)),
    "ages of another length": tensors(history_ages=np.zeros((2, 4), np.float32)),
    "fewer keys than contexts": tensors(noise_key=column(1, np.int64, 1)),
    "more folds than contexts": tensors(fold=column(-1, np.int32, 3)),
    "a history in three dimensions": tensors(history_items=np.zeros((2, 3, 1), np.int32)),
    "a history without an event": tensors(history_items=np.zeros((2, 0), np.int32), history_ages=np.zeros((2, 0), np.float32)),
    "an item past the vocabulary": tensors(history_items=np.full((2, 3), 2**30, np.int32)),
    "a negative item": tensors(history_items=np.full((2, 3), -5, np.int32)),
    "an age that is no number": tensors(history_ages=np.full((2, 3), np.nan, np.float32)),
    "an infinite age": tensors(history_ages=np.full((2, 3), np.inf, np.float32)),
    "an event after the history's end": tensors(history_ages=np.full((2, 3), -1, np.float32)),
    "a history that ends after the time asked about": tensors(history_end=column(2**61, np.int64)),
    "a fold that is none": tensors(fold=column(99, np.int32)),
    "a fold below none": tensors(fold=column(-3, np.int32)),
    "an exclusion past the catalogue": tensors(exclude=np.full((2, 1), 2**30, np.int32)),
    "an exclusion below none": tensors(exclude=np.full((2, 1), -7, np.int32)),
    "no draw": tensors(k=column(0, np.int32)),
    "minus one draw": tensors(k=column(-1, np.int32)),
    "more draws than items": tensors(k=column(2**30, np.int32)),
    "a temperature of zero": tensors(temperature=column(0, np.float32)),
    "a temperature that is no number": tensors(temperature=column(np.nan, np.float32)),
    "an infinite temperature": tensors(temperature=column(np.inf, np.float32)),
    "a negative lift": tensors(min_lift=column(-1, np.float32)),
    "a lift that is no number": tensors(min_lift=column(np.nan, np.float32)),
    "two temperatures": tensors(temperature=np.array([[1.0], [2.0]], np.float32)),
    "candidates of one context": tensors(candidates=np.zeros((1, 2), np.int32)),
    "a candidate past the catalogue": tensors(candidates=np.full((2, 2), 2**30, np.int32)),
    "candidates as floats": tensors(candidates=np.zeros((2, 2), np.float32)),
    "a list of candidates": tensors(candidates=np.zeros(2, np.int32)),
}

MOMENT = pa.timestamp("us", "UTC")
GOOD_SPINE = pa.table({"user_id": ["u1"], "event_timestamp": pa.array([1_714_564_800_000_000], MOMENT)})

#: Spines, and the features asked for.
SPINES: dict[str, tuple[pa.Table, Any]] = {
    "no key": (GOOD_SPINE.drop_columns("user_id"), ["source_user_history:item_ids"]),
    "no time": (GOOD_SPINE.drop_columns("event_timestamp"), ["source_user_history:item_ids"]),
    "no column": (pa.table({}), ["source_user_history:item_ids"]),
    "an unknown service": (GOOD_SPINE, "nobody_v1"),
    "an unknown view": (GOOD_SPINE, ["nothing:item_ids"]),
    "an unknown feature": (GOOD_SPINE, ["source_user_history:secret"]),
    "no colon": (GOOD_SPINE, ["source_user_history"]),
    "SQL as a feature": (GOOD_SPINE, ["source_user_history:item_ids; DROP TABLE x"]),
    "SQL as a service": (GOOD_SPINE, "x'; DROP TABLE feature_services; --"),
    "no feature": (GOOD_SPINE, []),
    "text as times": (GOOD_SPINE.set_column(1, "event_timestamp", pa.array(["soon"])), ["source_user_history:item_ids"]),
    "numbers as times": (GOOD_SPINE.set_column(1, "event_timestamp", pa.array([1.5])), ["source_user_history:item_ids"]),
    "lists as keys": (GOOD_SPINE.set_column(0, "user_id", pa.array([["u1"]])), ["source_user_history:item_ids"]),
    "a column of a feature's name": (
        GOOD_SPINE.append_column("source_user_history__item_ids", pa.array(["x"])),
        ["source_user_history:item_ids"],
    ),
}
