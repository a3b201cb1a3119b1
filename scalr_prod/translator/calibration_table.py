# SPDX-License-Identifier: Apache-2.0
"""Layout of calibration tables: the names of their rows and columns.

Rows are components (the mixture, or one estimator alone), columns are weights (of estimators, of popularity's features, of features
and traits). A version stores both lists of names, so that it still loads when estimators were added later.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scalr_prod.translator.data.history_traits import TRAITS
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS, popularity, scored_estimators

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    import torch


#: Rows of a version that does not store them. Versions with these rows never do, so that their bytes stay the same.
_UNNAMED_ROWS: Final = ("mixture", "popularity", "frequency", "topics", "linear", "factorisation", "sequential")


def trait_columns(trait: str) -> tuple[str, ...]:
    """Return the columns of one trait: weight d of each feature."""
    return tuple(f"{feature}_by_{trait}" for feature in popularity.FEATURES)


@dataclass(frozen=True)
class CalibrationLayout:
    """Names of a table's rows and columns.

    Attributes:
        components: Rows.
        weights: Columns: c of each estimator, b of each feature, d of each feature and trait.
    """

    components: tuple[str, ...]
    weights: tuple[str, ...]

    @classmethod
    def from_estimators(cls, estimators: Sequence[str]) -> Self:
        """Return the layout for these estimators: built-in ones always have a row and a column, others if they are named."""
        scored = scored_estimators((*BUILTIN_ESTIMATORS, *estimators))
        tilted = (name for trait in TRAITS for name in trait_columns(trait))
        return cls(("mixture", "popularity", *scored), (*scored, *popularity.FEATURES, *tilted))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Return the layout that a weights' file stores in its metadata."""
        components = json.loads(metadata["members"]) if "members" in metadata else _UNNAMED_ROWS
        return cls(tuple(components), tuple(json.loads(metadata["weights"])))

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata to store in the weights' file; see `from_metadata`."""
        rows = {} if self.components == _UNNAMED_ROWS else {"members": json.dumps(self.components)}
        return rows | {"weights": json.dumps(self.weights)}

    def weights_by_name(self, table: torch.Tensor, layout: CalibrationLayout) -> dict[str, dict[str, float]]:
        """Return a table, float32 [components, weights], as component → weight name → weight; missing rows and columns weigh 0.

        Args:
            table: A table of this layout.
            layout: Layout whose names are returned.

        Raises:
            ValueError: A column is unknown, because another package wrote it; or the table has another shape.
        """
        unknown = set(self.weights) - set(layout.weights)
        if unknown:
            raise ValueError(
                f"its calibration weighs {', '.join(sorted(unknown))}, which this version of the package does not know"
            )
        zeros = dict.fromkeys(layout.weights, 0.0)
        rows = zip(self.components, table.tolist(), strict=True)
        by_component = {component: zeros | dict(zip(self.weights, row, strict=True)) for component, row in rows}
        return {component: by_component.get(component, zeros) for component in layout.components}


#: Layout of the built-in estimators.
BUILTIN_LAYOUT: Final = CalibrationLayout.from_estimators(())
