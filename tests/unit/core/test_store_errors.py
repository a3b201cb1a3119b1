"""Errors of the Delta offline store arrive as errors of the package, with what to do next in its terms."""

from __future__ import annotations

import pytest

from feast_delta import errors as store_errors
from scalr_prod.core.store_errors import translate_store_errors
from scalr_prod.errors import CommitFailed, FeatureStoreError, LakeError

KINDS = {
    "DataFileDamaged": (LakeError, "scalr run"),
    "DataFileMissing": (LakeError, "scalr run"),
    "DeltaStoreError": (FeatureStoreError, "do that"),
    "SpillError": (LakeError, "do that"),
    "TableMissing": (FeatureStoreError, "scalr ingest"),
    "TableNotWritable": (FeatureStoreError, "do that"),
    "WriteFailed": (CommitFailed, "do that"),
}


def test_every_error_is_listed():
    assert set(KINDS) == set(store_errors.__all__)


@pytest.mark.parametrize("name", store_errors.__all__)
def test_an_error_keeps_what_was_found_and_where(name):
    kind, next_step = KINDS[name]
    raised = getattr(store_errors, name)("it is broken", where="here", next_step="do that")
    with pytest.raises(kind, match="it is broken") as caught, translate_store_errors():
        raise raised
    assert type(caught.value) is kind
    assert caught.value.__cause__ is raised
    assert caught.value.where == "here"
    assert next_step in caught.value.next_step


def test_other_errors_pass():
    with pytest.raises(KeyError), translate_store_errors():
        raise KeyError("of another kind")
