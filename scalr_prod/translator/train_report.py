# SPDX-License-Identifier: Apache-2.0
"""Report of a training. Needs no torch: a run that keeps its version makes one, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from scalr_prod.translator.registry import TranslatorVersion


@dataclass(frozen=True)
class TrainReport(Jsonable):
    """Result of `train`.

    Attributes:
        version: Number of the version.
        path: Folder of the version.
        sha256: Checksum of the weights' file.
        trained_until: End of the training data, exclusive (ISO 8601, UTC).
        reused: Whether an existing version was returned.
        seconds: Wall-clock time.
        metrics: Metrics of the manifest: user group → component → metric.
        vocabulary: Domain → fields of `VocabularyCoverage`.
        recommended_events: Target events that training left out because a recommendation led to them; None: the log does not mark them.
        kept: Why `scalr run` kept the version and trained none, or None if it was trained, or its inputs are the same.
    """

    version: int
    path: str
    sha256: str
    trained_until: str
    reused: bool
    seconds: float
    metrics: dict[str, Any] = field(repr=False)
    vocabulary: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)
    recommended_events: int | None = None
    kept: str | None = None

    @classmethod
    def from_version(cls, version: TranslatorVersion, *, reused: bool, seconds: float = 0.0, kept: str | None = None) -> Self:
        """Report on a version."""
        return cls(
            version=version.version,
            path=str(version.path),
            sha256=version.sha256,
            trained_until=version.trained_until.isoformat(),
            reused=reused,
            seconds=seconds,
            metrics=version.manifest["metrics"],
            vocabulary=version.manifest.get("vocabulary", {}),  # former packages did not count
            recommended_events=version.manifest.get("recommended_events"),
            kept=kept,
        )
