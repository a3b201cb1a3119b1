# SPDX-License-Identifier: Apache-2.0
"""Whether each stage's output exists: for status and dry runs; a stage itself decides what to skip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.errors import ScalrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scalr_prod.config import Settings


def has_serving_environment(settings: Settings) -> bool:
    """Whether Triton could be started."""
    from scalr_prod.serving import require_environment

    try:
        require_environment(settings)
    except ScalrError:
        return False
    return True


def has_external_features(settings: Settings) -> bool:
    """Whether the features that the training set is to have are there."""
    if not settings.training_set.features:
        return True
    from scalr_prod.features import check_external_features

    try:
        check_external_features(settings)
    except ScalrError:
        return False
    return True


def has_events(settings: Settings) -> bool:
    """Whether events of both domains were ingested into the lake of these settings."""
    from scalr_prod.lake import open_project_lake
    from scalr_prod.schemas import Table

    lake = open_project_lake(settings)
    return all(lake.exists(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS))


def has_current_histories(settings: Settings) -> bool:
    """Whether the histories are up to date with the ingested events."""
    from scalr_prod.histories import are_histories_current

    return are_histories_current(settings)


def has_feature_repository(settings: Settings) -> bool:
    """Whether there is a feature repository."""
    return (settings.feast_repo / "feature_store.yaml").is_file()


def has_translator(settings: Settings) -> bool:
    """Whether there is a translator version."""
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return bool(ledger.models.find())


def has_run_past(*states: str) -> Callable[[Settings], bool]:
    """Whether the latest run is past these states."""

    def done(settings: Settings) -> bool:
        from scalr_prod.ledger import Ledger

        with Ledger.open(settings) as ledger:
            latest = ledger.runs.find(limit=1)
        return bool(latest) and latest[0].state.value not in states

    return done


def has_training_set(settings: Settings) -> bool:
    """Whether a version of the training set that these settings name is there."""
    from scalr_prod.training_set import list_versions

    return bool(list_versions(settings.home / "datasets" / settings.training_set.name))


def always_done(_: Settings) -> bool:
    """A stage that leaves nothing behind."""
    return True
