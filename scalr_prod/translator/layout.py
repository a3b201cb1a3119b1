# SPDX-License-Identifier: Apache-2.0
"""Calibration tables: which member weighs what, stored by name in both directions.

Rows are members (the mixture, or one estimator alone), columns are weights (of estimators, of popularity's features, of features
and tastes). A version stores both lists of names, so that it still loads where there are more estimators than when it was trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scalr_prod.translator.estimators import SCORED, popularity, scored_of
from scalr_prod.translator.tastes import TASTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    import torch

__all__ = ["OURS", "Layout", "tilts"]

#: Rows of a version that does not name them. Versions of these rows never do, so that they are the same bytes as they always were.
_UNNAMED_ROWS: Final = ("mixture", "popularity", "frequency", "topics", "linear", "factorisation", "sequential")


def tilts(taste: str) -> tuple[str, ...]:
    """Columns of one taste: d of each feature."""
    return tuple(f"{feature}_by_{taste}" for feature in popularity.FEATURES)


@dataclass(frozen=True)
class Layout:
    """Names of a table's rows and columns.

    Attributes:
        members: Rows.
        weights: Columns: c of each estimator, b of each feature, d of each feature and taste.
    """

    members: tuple[str, ...]
    weights: tuple[str, ...]

    @classmethod
    def of(cls, estimators: Sequence[str]) -> Self:
        """Of a translator of these estimators: ours have a row and a column always, others where they are named."""
        scored = scored_of((*SCORED, *estimators))
        tilted = (name for taste in TASTES for name in tilts(taste))
        return cls(("mixture", "popularity", *scored), (*scored, *popularity.FEATURES, *tilted))

    @classmethod
    def stored(cls, metadata: Mapping[str, str]) -> Self:
        """Of a version, by what its weights' file says of itself."""
        members = json.loads(metadata["members"]) if "members" in metadata else _UNNAMED_ROWS
        return cls(tuple(members), tuple(json.loads(metadata["weights"])))

    def described(self) -> dict[str, str]:
        """What the weights' file says of it; see `stored`."""
        rows = {} if self.members == _UNNAMED_ROWS else {"members": json.dumps(self.members)}
        return rows | {"weights": json.dumps(self.weights)}

    def by_name(self, table: torch.Tensor, known: Layout) -> dict[str, dict[str, float]]:
        """A table, float32 [members, weights], as member → weight name → weight; what it has no row or column for weighs nothing.

        Args:
            table: Of this layout.
            known: Names to give.

        Raises:
            ValueError: A column is not known: another package wrote it; or the table is of another shape.
        """
        unknown = set(self.weights) - set(known.weights)
        if unknown:
            raise ValueError(
                f"its calibration weighs {', '.join(sorted(unknown))}, which this version of the package does not know"
            )
        nothing = dict.fromkeys(known.weights, 0.0)
        rows = zip(self.members, table.tolist(), strict=True)
        found = {member: nothing | dict(zip(self.weights, row, strict=True)) for member, row in rows}
        return {member: found.get(member, nothing) for member in known.members}


#: Of our own estimators.
OURS: Final = Layout.of(())
