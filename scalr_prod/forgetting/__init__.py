# SPDX-License-Identifier: Apache-2.0
"""A person leaves the project: every table and its former versions, runs, training sets, online store, reports; and does not come back.

An item of the target domain leaves it in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.forgetting.report import ForgetReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.settings import Settings

__all__ = ["ForgetReport", "forget", "forget_items"]


def forget(settings: Settings, users: Sequence[int | str]) -> ForgetReport:
    """Remove users from everything that the project keeps, and keep logs and runs from bringing them back.

    A call that was cut off is taken up by the same call. Users who were forgotten before are looked for again.

    Args:
        settings: The project's settings.
        users: Their ids, as the log has them.

    Raises:
        ForgettingError: No user is named; an id is not of the lake's type; or another process is at it.
        LeaseHeld: A run is at work, or was begun meanwhile. What was done so far stays done.
        CommitFailed: The lake refused; safe to repeat.
        FeatureStoreError: The online store cannot be reached; safe to repeat.
    """
    from scalr_prod.forgetting.work import forget_ids

    return forget_ids(settings, users, "user")


def forget_items(settings: Settings, items: Sequence[int | str]) -> ForgetReport:
    """Remove items of the target domain from all that the project keeps, and keep logs, runs and translators from bringing them back.

    Histories and statistics are built anew without their events. What else was made from those is stale, as after a replacement of events:
    the next run makes it anew. Until then, a translator that knows the items is not let propose them.

    Args:
        settings: The project's settings.
        items: Their ids, as the target log has them.

    Raises:
        ForgettingError: As for `forget`.
        LeaseHeld: Likewise.
        CommitFailed: Likewise.
        FeatureStoreError: Likewise.
    """
    from scalr_prod.forgetting.work import forget_ids

    return forget_ids(settings, items, "item")
