"""An object store has to refuse a second commit of one version: what ignores ``If-None-Match`` loses commits."""

from __future__ import annotations

import pyarrow as pa
import pytest
from support.object_store import BUCKET, running_store

from scalr_prod.errors import LakeError
from scalr_prod.lake import Lake, check_exclusive_commits
from scalr_prod.schemas import Table

#: Starts a store of its own; whether it honours conditional puts decides in the others too.
long = pytest.mark.long


def test_a_store_that_honours_conditional_put_passes_and_nothing_is_left_there():
    with running_store(honours_conditions=True) as store:
        store.put("lake/source_events/theirs.parquet")
        check_exclusive_commits(Lake(f"s3://{BUCKET}/lake", store.options))
        assert store.keys() == ["lake/source_events/theirs.parquet"]


def test_a_store_that_ignores_conditional_put_is_refused():
    with running_store(honours_conditions=False) as store:
        with pytest.raises(LakeError, match="If-None-Match") as caught:
            check_exclusive_commits(Lake(f"s3://{BUCKET}/lake", store.options))
        assert store.keys() == []
    assert caught.value.where == f"s3://{BUCKET}/lake"
    assert "docs/guides/lake.md" in caught.value.next_step


@long
def test_no_table_is_created_in_a_store_that_ignores_conditional_put():
    schema = pa.schema([("x", pa.int64())])
    with running_store(honours_conditions=False) as store:
        with pytest.raises(LakeError, match="If-None-Match"):
            Lake(f"s3://{BUCKET}/lake", store.options).create(Table.SOURCE_EVENTS, schema)
        assert store.keys() == []


@long
def test_a_store_that_passed_is_not_checked_again():
    with running_store(honours_conditions=True) as store:
        check_exclusive_commits(Lake(f"s3://{BUCKET}/lake", store.options))
        store.ignore_conditions()
        check_exclusive_commits(Lake(f"s3://{BUCKET}/lake/", store.options))
        with pytest.raises(LakeError, match="If-None-Match"):
            check_exclusive_commits(Lake(f"s3://{BUCKET}/other", store.options))


def test_a_store_that_cannot_be_written_to_is_told():
    with running_store(honours_conditions=True) as store:
        options = store.options
    with pytest.raises(LakeError, match="cannot be written") as caught:
        check_exclusive_commits(Lake(f"s3://{BUCKET}/lake", options | {"AWS_MAX_RETRIES": "0", "max_retries": "0"}))
    assert "storage_options" in caught.value.next_step


def test_a_local_lake_is_not_probed(tmp_path):
    check_exclusive_commits(Lake(str(tmp_path / "lake")))
    assert not (tmp_path / "lake").exists()
