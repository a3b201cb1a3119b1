# SPDX-License-Identifier: Apache-2.0
"""The Delta offline store of a project's feature_store.yaml: `knowledge_time: created`, the lake's tables, this package's errors."""

from __future__ import annotations

import getpass
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, StrictStr

from feast_delta import DeltaOfflineStore
from feast_delta import DeltaOfflineStoreConfig as StoreConfig
from feast_delta.columns import KnowledgeTime  # noqa: TC001 - pydantic reads it at run time
from feast_delta.errors import TableNotWritable, WriteFailed
from feast_delta.writes import table_address
from scalr_prod.core.file_modes import make_private_folder
from scalr_prod.core.store_errors import translate_store_errors
from scalr_prod.errors import CommitFailed, FeatureStoreError, LakeError
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.workspace import is_home, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from deltalake import DeltaTable

    from feast_delta.writes import TableWriter
    from scalr_prod.core.delta_log import FilePart


__all__ = ["DeltaOfflineStore", "DeltaOfflineStoreConfig"]


class DeltaOfflineStoreConfig(StoreConfig):
    """The ``offline_store`` section of the project's feature_store.yaml."""

    type: StrictStr = "scalr_prod.features.offline_store.DeltaOfflineStore"
    #: Root of the project's lake; its tables are writable.
    lake: str | None = None
    #: Full paths or URLs of other writable Delta tables.
    writable: list[str] = Field(default_factory=list)
    #: A row is known from its creation time on, unless a tag of its view or source says otherwise.
    knowledge_time: KnowledgeTime = "created"

    @contextmanager
    def spill_folder(self) -> Iterator[Path]:
        """Create a folder for rows that do not fit in memory, remove it afterwards, and remove those that killed processes left.

        Raises:
            LakeError: Another user has taken the name of this user's folder there, or it cannot be created.
        """
        root = Path(self.spill or tempfile.gettempdir())
        if not is_home(root.parent):  # a shared folder: use a subfolder that no other user can enter
            root /= f"scalr-feast-{getpass.getuser()}"
            try:
                make_private_folder(root)
            except OSError as error:
                raise LakeError(
                    f"rows cannot be spilled there: {error}",
                    where=str(root),
                    next_step="name a folder of your own: spill in offline_store of feature_store.yaml, or TMPDIR",
                ) from error
        with temporary_folder(root, "feast-") as folder:
            yield folder

    def table_writer(self, path: str) -> TableWriter:
        """Return the access to a table of the lake, or to one that ``writable`` names.

        Raises:
            FeatureStoreError: It is neither.
        """
        if self.lake is not None:
            lake, address = Lake(self.lake, self.storage_options), table_address(path)
            own = next((table for table in Table if table_address(lake.uri(table)) == address), None)
            if own is not None:
                return LakeTableWriter(lake, own)
        try:
            return super().table_writer(path)
        except TableNotWritable as error:
            raise FeatureStoreError(
                "the table is not writable: only the lake's tables are, and those that the settings name",
                where=path,
                next_step="add its full path or URL to [feast] writable in scalr.toml, then run: scalr histories",
            ) from error

    def pinned_version(self, path: str) -> int | None:
        """Return the Delta version of a table to read: by its full path or, for the lake's tables, by name."""
        root, _, name = path.rstrip("/").rpartition("/")
        own = self.lake is None or root == self.lake.rstrip("/")
        return self.versions.get(path, self.versions.get(name) if own else None)

    def files_to_read(self, path: str) -> FilePart | None:
        """Return the part of a table's files to read: by its full path or, for the lake's tables, by name."""
        root, _, name = path.rstrip("/").rpartition("/")
        own = self.lake is None or root == self.lake.rstrip("/")
        return self.files.get(path, self.files.get(name) if own else None)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise the store's errors as those of this package."""
        with translate_store_errors():
            yield


class LakeTableWriter:
    """Access of the offline store to a table of the lake.

    Args:
        lake: The lake.
        table: Which table.
    """

    def __init__(self, lake: Lake, table: Table) -> None:
        self.lake, self.table = lake, table

    def open_table(self) -> DeltaTable:
        """Open the table at its latest version."""
        return self.lake.open_table(self.table)

    def append(self, rows: pa.Table, *, key: str, version: int) -> None:
        """Append rows once per key, only on top of a version.

        Raises:
            WriteFailed: Nothing was written.
        """
        try:
            self.lake.append(self.table, rows, key=key, expected_version=version)
        except CommitFailed as error:
            raise WriteFailed(error.found, where=error.where, next_step=error.next_step) from error
