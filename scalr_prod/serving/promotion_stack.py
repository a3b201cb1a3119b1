# SPDX-License-Identifier: Apache-2.0
"""Promotion stack: which versions were promoted, from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scalr_prod.ledger import Ledger

if TYPE_CHECKING:
    from scalr_prod.config import Settings


#: Causes in the ledger.
PROMOTE_CAUSE: Final = "scalr translator promote"
ROLLBACK_CAUSE: Final = "scalr translator rollback"


def served_version(settings: Settings) -> int | None:
    """Return the promoted version; None if none was promoted."""
    with Ledger.open(settings) as ledger:
        return ledger.models.promoted_version()


def promoted_versions(settings: Settings) -> list[int]:
    """Return the promoted versions that were not rolled back; the served one is last."""
    chain: list[int] = []
    with Ledger.open(settings) as ledger:
        for promotion in ledger.models.promotions():
            if promotion.cause == ROLLBACK_CAUSE and len(chain) > 1:
                chain.pop()
            else:
                chain.append(promotion.version)
    return chain


def versions_in_use(settings: Settings) -> set[int]:
    """Return the served version, the one before it, and the versions that active runs are pinned to."""
    with Ledger.open(settings) as ledger:
        working = {ledger.runs.get(run_id).spec.translator_version for run_id in ledger.leases.active()}
    return {*promoted_versions(settings)[-2:], *working}
