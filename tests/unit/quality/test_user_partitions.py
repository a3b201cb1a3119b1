"""The gate judges users range by range: verdict and accepted rows are those of one look at all of them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.small_project import GATE_TARGET, QUARANTINE, Handmade

from scalr_prod.ledger import run_folder
from scalr_prod.quality import validate_run
from scalr_prod.quality.user_partitions import UserPartitions
from scalr_prod.schemas import Table


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path, target=GATE_TARGET, items=[*(f"t{i}" for i in range(10)), "late", "unseen"])


class CandidateReads:
    """A DuckDB connection that counts the candidate files that each partition names."""

    def __init__(self, connection):
        self._connection, self.files = connection, []

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, query, *parameters):
        if "TABLE partition_rows" in query:
            self.files.append(query.partition("filename IN")[2].count(".parquet"))
        return self._connection.execute(query, *parameters)


def test_a_partition_reads_only_the_files_with_its_users(project, monkeypatch):
    """If each partition opened all files of a run, their number would grow with the square of the run."""
    spec = project.run()
    rows = project.candidates(spec).sort_values("user_id", ignore_index=True)
    parts = 8
    project.write(
        spec, rows.iloc[np.arange(len(rows)).reshape(parts, -1).T.ravel()], parts=parts
    )  # consecutive users in a file
    monkeypatch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", 50)
    reads, iter_files = [], UserPartitions.iter_files

    def counted(self):
        self._connection = CandidateReads(self._connection)
        reads.append(self._connection)
        return iter_files(self)

    monkeypatch.setattr(UserPartitions, "iter_files", counted)
    assert validate_run(project.settings, spec.run_id).rows == len(rows)
    (connection,) = reads
    partitions = len(connection.files)
    assert partitions > 4
    assert parts <= sum(connection.files) <= parts + 2 * partitions


@pytest.mark.long
@pytest.mark.parametrize("each_user", [False, True])
def test_a_run_judged_range_by_range_gets_the_verdict_that_it_gets_at_once(project, monkeypatch, each_user):
    """Of the same rows, among them such as break a rule that looks at other rows, at a log, or at nothing but themselves."""
    project.configure(QUARANTINE.replace("0.2", "0.9"))
    spec = project.run(**({"contexts": "users"} if each_user else {}))
    rows = project.candidates(spec).to_dict("records")
    rows += [{**rows[place], "event_id": f"{place:032x}"} for place in (0, 70, 140)]  # a user, item and time again
    rows += [{**rows[-place], "event_id": rows[place]["event_id"]} for place in (5, 60)]  # another user's event id
    for place, (column, value) in {
        11: ("user_id", None),
        22: ("user_id", None),
        33: ("user_id", "nobody"),
        44: ("event_id", None),
        55: ("source_item_id", "nothing"),
        66: ("source_event_timestamp", pd.Timestamp("1999-01-01", tz="UTC")),
        77: ("source_event_timestamp", None),
        88: ("item_id", "unseen"),
        99: ("weight", np.float32(2)),
    }.items():
        rows[place] = {**rows[place], column: value}
    project.write(spec, pd.DataFrame(rows), parts=4)
    folder = run_folder(project.settings.home, spec.run_id)
    found, groups, ranges, files_of = [], [], [], UserPartitions.iter_files

    def watched(self):
        ranges.append(0)
        for file in files_of(self):
            ranges[-1] += 1
            yield file

    monkeypatch.setattr(UserPartitions, "iter_files", watched)
    for heap, batch in ((500_000, 500_000), (20, 16)):
        monkeypatch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", heap)
        monkeypatch.setattr("scalr_prod.quality.audit._BATCH", batch)
        (folder / "gate.json").unlink(missing_ok=True)
        validate_run(project.settings, spec.run_id)
        report = json.loads((folder / "gate.json").read_text())["report"]
        quarantine = project.lake.read(Table.SYNTHETIC_QUARANTINE).to_pandas()
        quarantine = quarantine.sort_values(list(quarantine.columns), ignore_index=True)
        (accepted,) = (folder / "accepted").glob("*.parquet")
        groups.append(pq.read_metadata(accepted).num_row_groups)
        found.append(({**report, "docs": "", "files": []}, quarantine.to_json(), pq.read_table(accepted)))
    assert ranges[0] == groups[0] == 1
    assert min(ranges[1], groups[1]) > 5
    assert found[0] == found[1]
    columns = [found[1][2][name].to_pylist() for name in ("user_id", "event_timestamp", "item_id")]
    assert (keys := list(zip(*columns, strict=True))) == sorted(keys), "piece by piece as well"
    assert 14 <= found[0][0]["quarantined"] <= 16
    assert {"event_id_is_unique", "user_item_time_is_unique", "user_id_is_present"} < set(
        ",".join(quarantine["reason"]).replace(" ", "").split(",")
    )
