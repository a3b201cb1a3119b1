# SPDX-License-Identifier: Apache-2.0
"""Settings of the offline store: the ``offline_store`` section of feature_store.yaml."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic reads it at run time
from typing import Any

from feast.repo_config import FeastConfigBaseModel
from pydantic import Field, StrictStr

__all__ = ["DeltaOfflineStoreConfig"]


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """The ``offline_store`` section of feature_store.yaml."""

    type: StrictStr = "scalr_prod.features.offline_store.DeltaOfflineStore"
    #: Access to an object store, as the deltalake package takes it. It also reads AWS_*, AZURE_* and GOOGLE_* by itself.
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False)
    #: Memory limit of DuckDB before it spills.
    memory_mb: int = Field(default=1024, ge=64)
    #: Default: all cores, up to eight.
    threads: int | None = Field(default=None, ge=1)
    #: Spill folder; default: the system's temporary folder.
    spill: str | None = None
    #: Root of the project's lake; its tables are writable.
    lake: str | None = None
    #: Full paths or URLs of other writable Delta tables.
    writable: list[str] = Field(default_factory=list)
    #: Read only rows known by this time (created <= known_by). Default: by each spine row's own time.
    known_by: datetime | None = None
    #: Table → Delta version to read; the key is a lake table's name or any table's full path. Default: the latest version.
    versions: dict[str, int] = Field(default_factory=dict)
    #: Table's full path → keys of the entities whose latest rows are pulled. Tables that are not listed: all entities.
    entities: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)
    #: An open DuckDB connection whose database runs the retrievals, see `session.open_cursor`. Default: one connection each.
    within: Any = Field(default=None, repr=False, exclude=True)
