# SPDX-License-Identifier: Apache-2.0
"""Whether what a stage makes is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.errors import ScalrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scalr_prod.settings import Settings


def served(settings: Settings) -> bool:
    """Whether Triton could be started."""
    from scalr_prod.serving import require_environment

    try:
        require_environment(settings)
    except ScalrError:
        return False
    return True


def own_features(settings: Settings) -> bool:
    """Whether the features that the training set is to have are there."""
    if not settings.training_set.features:
        return True
    from scalr_prod.feast_store import check_own_features

    try:
        check_own_features(settings)
    except ScalrError:
        return False
    return True


def ingested(settings: Settings) -> bool:
    """Whether there are events of both domains, which are those of the settings."""
    from scalr_prod.binding import open_own
    from scalr_prod.contracts import Table

    lake = open_own(settings)
    return all(lake.exists(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS))


def built(settings: Settings) -> bool:
    """Whether histories are those of the events that there are."""
    from scalr_prod.histories import histories_built

    return histories_built(settings)


def applied(settings: Settings) -> bool:
    """Whether there is a feature repository."""
    return (settings.feast_repo / "feature_store.yaml").is_file()


def trained(settings: Settings) -> bool:
    """Whether there is a translator version."""
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return bool(ledger.model_versions())


def reached(*left_behind: str) -> Callable[[Settings], bool]:
    """Whether the latest run is past these states."""

    def done(settings: Settings) -> bool:
        from scalr_prod.ledger import Ledger

        with Ledger.open(settings) as ledger:
            latest = ledger.runs(limit=1)
        return bool(latest) and latest[0].state.value not in left_behind

    return done


def data_set(settings: Settings) -> bool:
    """Whether there is a training set."""
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return bool(ledger.datasets())


def always(_: Settings) -> bool:
    """A stage that leaves nothing behind."""
    return True
