# SPDX-License-Identifier: Apache-2.0
"""Publication toggle: make the feature view read as empty at once, and restore it unchanged.

Each is one commit of the view's table, whose log holds the state: while publication is off, a reader that opens the table by any means,
such as Spark or DuckDB, finds no rows.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.delta_log import row_count
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import PublicationError
from scalr_prod.lake import open_project_lake, retry_on_new_version
from scalr_prod.ledger import Ledger, RunState
from scalr_prod.publication.canary import list_canaries
from scalr_prod.publication.commit import update_online_store
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake


logger = logging.getLogger(__name__)

_VIEW: Final = Table.SYNTHETIC_TARGET_EVENTS


@dataclass(frozen=True)
class ToggleReport(Jsonable):
    """Describe whether publication is enabled.

    Attributes:
        publication: ``enabled`` or ``disabled``.
        changed: Whether this call changed it.
        since: When it was disabled (UTC); None if it is enabled.
        rows: Rows in the view; while disabled, the hidden rows. None if there is no view yet or the files are gone.
        delta_version: The view's Delta version.
        waiting: Validated runs that are not published.
        online: Whether this call updated the online store.
        canary: Canary publications, see `scalr_prod.publication.canary.list_canaries`.
    """

    publication: str
    changed: bool
    since: datetime | None
    rows: int | None
    delta_version: int | None
    waiting: list[str]
    online: bool = False
    canary: list[dict[str, Any]] = field(default_factory=list)


def publication_state(settings: Settings) -> ToggleReport:
    """Return whether publication is enabled, and how many rows the view holds or hides."""
    return _report(settings, open_project_lake(settings), changed=False)


def disable_publication(settings: Settings) -> ToggleReport:
    """Make the feature view read as empty, in one commit. Publications and rollbacks are refused until `enable_publication`.

    The view's entities are deleted from the online store at once if ``[publication] online`` is set, else by its next update.

    Raises:
        TableNotFound: There is no view yet.
        CommitFailed: Nothing was written; safe to repeat.
    """
    lake = open_project_lake(settings)
    view = lake.open_table(_VIEW)

    def attempt(version: int) -> bool:
        if lake.hidden_version(_VIEW, opened=view) is not None:
            return False
        return lake.hide_rows(_VIEW, key=_commit_key("disable"), expected_version=version).written

    changed = retry_on_new_version(lake, _VIEW, attempt, opened=view)
    report = _finish(settings, lake, changed=changed)
    if report.rows is None:
        logger.warning("files of the hidden rows are lost: put them back from a copy before scalr publication enable")
    return report


def enable_publication(settings: Settings) -> ToggleReport:
    """Restore the feature view as it was before `disable_publication`: the same files, in one commit.

    Raises:
        TableNotFound: There is no view yet.
        PublicationError: Rows were written to the view while it was off.
        LakeError: Files of the hidden rows are gone.
        CommitFailed: Nothing was written; safe to repeat.
    """
    lake = open_project_lake(settings)
    view = lake.open_table(_VIEW)

    def attempt(version: int) -> bool:
        aside = lake.hidden_version(_VIEW, opened=view)
        if aside is None:
            return False
        if unexpected := lake.dataset(_VIEW, version=version).count_rows():
            raise PublicationError(
                f"{unexpected} rows were written to the view while publication was off; they would be lost",
                where=lake.uri(_VIEW),
                next_step="remove them from the table, then repeat the command: scalr publication enable",
            )
        return lake.restore_rows(_VIEW, aside, key=_commit_key("enable"), expected_version=version).written

    changed = retry_on_new_version(lake, _VIEW, attempt, opened=view)
    return _finish(settings, lake, changed=changed)


def _finish(settings: Settings, lake: Lake, *, changed: bool) -> ToggleReport:
    # A repeated call finishes an interrupted update.
    report = _report(settings, lake, changed=changed, online=update_online_store(settings))
    logger.info("publication is %s; version %s, %s rows", report.publication, report.delta_version, report.rows)
    return report


def _report(settings: Settings, lake: Lake, *, changed: bool, online: bool = False) -> ToggleReport:
    with Ledger.open(settings) as ledger:
        waiting = [run.run_id for run in ledger.runs.find(state=RunState.VALIDATED)]
    if not lake.exists(_VIEW):
        return ToggleReport("enabled", changed, None, None, None, waiting, online)
    canary = list_canaries(settings)
    version = lake.version(_VIEW)
    hidden_version = lake.hidden_version(_VIEW, version=version)
    rows_version = version if hidden_version is None else hidden_version
    rows = row_count(lake.open_table(_VIEW, version=rows_version)) if lake.is_readable(_VIEW, rows_version) else None
    since = None if hidden_version is None else lake.committed_at(_VIEW, hidden_version + 1)
    state = "enabled" if hidden_version is None else "disabled"
    return ToggleReport(state, changed, since, rows, version, waiting, online, canary)


def _commit_key(what: str) -> str:
    # Each change of state needs its own key; the expected version prevents two concurrent changes.
    return f"{what}:{uuid.uuid4().hex}"
