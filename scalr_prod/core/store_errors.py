# SPDX-License-Identifier: Apache-2.0
"""Errors of the Delta offline store in this package's terms."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from feast_delta.errors import DataFileDamaged, DataFileMissing, DeltaStoreError, SpillError, TableMissing, WriteFailed
from scalr_prod.errors import CommitFailed, FeatureStoreError, LakeError, ScalrError

if TYPE_CHECKING:
    from collections.abc import Iterator


#: What to do about a lost or damaged file of a table.
REBUILD: Final = (
    "restore it from a copy; without one, run: scalr run, which builds histories again; "
    "of any other table, move the folder away first"
)
#: Error of the store → error of this package, and its next step if another one than the store's.
_TRANSLATED: Final[dict[type[DeltaStoreError], tuple[type[ScalrError], str | None]]] = {
    DataFileDamaged: (LakeError, REBUILD),
    DataFileMissing: (LakeError, REBUILD),
    SpillError: (LakeError, None),
    TableMissing: (FeatureStoreError, "run: scalr ingest, then: scalr histories"),
    WriteFailed: (CommitFailed, None),
}


@contextmanager
def translate_store_errors() -> Iterator[None]:
    """Raise the store's errors as those of this package."""
    try:
        yield
    except DeltaStoreError as error:
        raise translated(error) from error


def translated(error: DeltaStoreError) -> ScalrError:
    """Return an error of the store as one of this package: `FeatureStoreError`, or a more specific one."""
    kind, next_step = _TRANSLATED.get(type(error), (FeatureStoreError, None))
    return kind(error.found, where=error.where, next_step=next_step or error.next_step)
