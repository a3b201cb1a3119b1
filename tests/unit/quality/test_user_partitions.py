"""The gate judges users partition by partition: verdict and accepted rows are those of one look at all of them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_project import GATE_TARGET, QUARANTINE, Handmade

from scalr_prod.ledger import run_folder
from scalr_prod.quality import audit_tasks, candidate_files, partition_audit, validate_run
from scalr_prod.schemas import Table


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path, target=GATE_TARGET, items=[*(f"t{i}" for i in range(10)), "late", "unseen"])


def test_a_partition_reads_only_the_row_groups_with_its_users(project, monkeypatch):
    """If each partition read all rows of a run, their number would grow with the square of the run."""
    spec = project.run()
    rows = project.candidates(spec).sort_values("user_id", ignore_index=True)
    parts = 8
    project.write(
        spec, rows.iloc[np.arange(len(rows)).reshape(parts, -1).T.ravel()], parts=parts
    )  # consecutive users in a file
    monkeypatch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", 50)
    reads, create_view = [], candidate_files.CandidateFiles.create_view

    def counted(self, connection, name, groups, columns):
        reads.append((len(columns), len(groups)))
        create_view(self, connection, name, groups, columns)

    monkeypatch.setattr(candidate_files.CandidateFiles, "create_view", counted)
    assert validate_run(project.settings, spec.run_id).rows == len(rows)
    ids, groups = ([read for columns, read in reads if (columns > 3) is whole] for whole in (False, True))
    assert sum(ids) == parts
    assert len(groups) > 4
    assert parts <= sum(groups) <= parts + 2 * len(groups)


@pytest.mark.long
@pytest.mark.parametrize("each_user", [False, True])
def test_a_run_judged_by_partitions_gets_the_verdict_that_it_gets_at_once(project, monkeypatch, each_user):
    project.configure(QUARANTINE.replace("0.2", "0.9"))
    spec = project.run(**({"contexts": "users"} if each_user else {}))
    project.write(spec, project.faulty_candidates(spec), parts=4)
    folder = run_folder(project.settings.home, spec.run_id)
    found, files = [], []
    for partition, batch, task in ((500_000, 500_000, 500_000), (20, 16, 30)):
        monkeypatch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", partition)
        monkeypatch.setattr(partition_audit, "_BATCH", batch)
        monkeypatch.setattr(audit_tasks, "_TASK_ROWS", task)
        (folder / "gate.json").unlink(missing_ok=True)
        validate_run(project.settings, spec.run_id)
        report = json.loads((folder / "gate.json").read_text())["report"]
        quarantine = project.lake.read(Table.SYNTHETIC_QUARANTINE).to_pylist()
        accepted = sorted((folder / "accepted").glob("*.parquet"))
        files.append(len(accepted))
        assert [file["path"] for file in report["files"]] == [f"accepted/{path.name}" for path in accepted]
        rows = pa.concat_tables(map(pq.read_table, accepted))
        found.append(({**report, "docs": "", "files": []}, quarantine, rows))
    assert files[0] == 1
    assert files[1] > 5
    assert found[0] == found[1]
    columns = [found[1][2][name].to_pylist() for name in ("user_id", "event_timestamp", "item_id")]
    assert (keys := list(zip(*columns, strict=True))) == sorted(keys), "file by file as well"
    assert 14 <= found[0][0]["quarantined"] <= 16
    reasons = {rule for row in quarantine for rule in row["reason"].split(", ")}
    assert {"event_id_is_unique", "user_item_time_is_unique", "user_id_is_present"} < reasons
