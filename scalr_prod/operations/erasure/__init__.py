# SPDX-License-Identifier: Apache-2.0
"""Erasure of users, and of target items, from everything a project stores: current and old table versions, runs, training sets, reports.

Erased ids are put on a suppression list, so that logs and runs do not bring them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.operations.erasure.erasure_report import ErasureReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.config import Settings

__all__ = ["ErasureReport", "erase_items", "erase_users"]


def erase_users(settings: Settings, users: Sequence[int | str]) -> ErasureReport:
    """Erase users from everything that the project stores, and keep logs and runs from bringing them back.

    Repeat an interrupted call to finish it. Users who were erased before are searched for again.

    Args:
        settings: The project's settings.
        users: Their ids as in the event log.

    Raises:
        ForgettingError: No user is named; an id is not of the lake's type; or another process is erasing.
        LeaseHeld: A run is active, or was started meanwhile. What was erased so far stays erased.
        CommitFailed: A commit to the lake failed; safe to repeat.
        FeatureStoreError: The online store is unreachable; safe to repeat.
    """
    from scalr_prod.operations.erasure.orchestrate import erase_ids

    return erase_ids(settings, users, "user")


def erase_items(settings: Settings, items: Sequence[int | str]) -> ErasureReport:
    """Erase items of the target domain from everything that the project stores, and keep them from coming back.

    Histories and statistics are rebuilt without their events. Everything else that depends on them becomes stale, as after a correction
    of events, and the next run rebuilds it. Until then, translators that know the items are prevented from proposing them.

    Args:
        settings: The project's settings.
        items: Their ids as in the target log.

    Raises:
        ForgettingError: As for `erase_users`.
        LeaseHeld: Likewise.
        CommitFailed: Likewise.
        FeatureStoreError: Likewise.
    """
    from scalr_prod.operations.erasure.orchestrate import erase_ids

    return erase_ids(settings, items, "item")
