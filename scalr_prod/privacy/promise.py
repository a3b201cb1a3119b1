# SPDX-License-Identifier: Apache-2.0
"""What readers may conclude from measured attacks."""

from __future__ import annotations

from typing import Final

#: Of all figures of this package.
PROMISE: Final = (
    "These attacks were measured and succeeded as often as shown. Stronger ones may exist: no differential privacy (ε) is claimed, and "
    "published rows are not anonymous. A user's rows follow from the user's source history."
)
