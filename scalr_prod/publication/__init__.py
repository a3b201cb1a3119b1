# SPDX-License-Identifier: Apache-2.0
"""Publication: accepted rows of a run become rows of the feature view, exactly once, and can be rolled back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.publication.canary import CanaryReport, widen_canaries, withdraw_canaries
    from scalr_prod.publication.commit import PublicationReport, publish
    from scalr_prod.publication.provenance import (
        delete_provenance,
        has_source_columns,
        runs_in_view,
        runs_with_provenance,
        separate_provenance,
    )
    from scalr_prod.publication.regions import REWRITE_SCAN_OPTIONS
    from scalr_prod.publication.rollback import restore_source_versions, rollback_run
    from scalr_prod.publication.toggle import ToggleReport, disable_publication, enable_publication, publication_state

__all__ = [
    "REWRITE_SCAN_OPTIONS",
    "CanaryReport",
    "PublicationReport",
    "ToggleReport",
    "delete_provenance",
    "disable_publication",
    "enable_publication",
    "has_source_columns",
    "publication_state",
    "publish",
    "restore_source_versions",
    "rollback_run",
    "runs_in_view",
    "runs_with_provenance",
    "separate_provenance",
    "widen_canaries",
    "withdraw_canaries",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CanaryReport": "canary",
        "PublicationReport": "commit",
        "REWRITE_SCAN_OPTIONS": "regions",
        "ToggleReport": "toggle",
        "delete_provenance": "provenance",
        "disable_publication": "toggle",
        "enable_publication": "toggle",
        "has_source_columns": "provenance",
        "publication_state": "toggle",
        "publish": "commit",
        "restore_source_versions": "rollback",
        "rollback_run": "rollback",
        "runs_in_view": "provenance",
        "runs_with_provenance": "provenance",
        "separate_provenance": "provenance",
        "widen_canaries": "canary",
        "withdraw_canaries": "canary",
    },
)
