# SPDX-License-Identifier: Apache-2.0
"""Evaluation policy: the sampling settings and λ by user segment that later runs apply.

`scalr evaluate` writes it. `scalr run`, `scalr generate` and `scalr dataset build` apply it if it was measured under the settings that
they run with. A value set in scalr.toml or in the environment takes precedence. λ = 0 for a segment that the experiment found to be harmed
comes last (`harmed_segments`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.atomic_io import write_text
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import EvaluationError
from scalr_prod.generation.harmed_segments import (
    describe_harmed_segments,
    drop_harmed_segments,
    harmed_segments_path,
)
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)

#: User segments by number of real target events: none, few, more. The index in this tuple is the segment number used everywhere.
SEGMENTS: Final = ("cold", "sparse", "dense")


@dataclass(frozen=True)
class Policy(Jsonable):
    """The result of an evaluation, expressed as settings.

    Attributes:
        model: Model family that it was chosen with.
        best_baseline: Baseline that real+scalr was compared with.
        helps: False if all segment weights are 0; training sets then hold no synthetic rows.
        volume: Events per context.
        temperature: Sampling temperature.
        min_lift: Threshold of the confidence filter.
        align: Whether popularity buckets are aligned.
        segment_weights: λ of cold, sparse and dense users: total weight of synthetic rows, as a share of the real rows'. The file's
            key is ``weights``.
        sparse_below: Number of real target events below which a user counts as sparse.
        settings: Digest of the settings that it was measured under.
        logs: Digest of the logs that it was measured on.
        report: Folder of the evaluation report.
        bar: ``harm_probability`` of real+scalr on validation, ``max_harm_probability``, the highest that is accepted, and ``p_value``.
            None if no λ > 0 was better; other keys in policies of earlier versions.
    """

    model: str
    best_baseline: str
    helps: bool
    volume: int
    temperature: float
    min_lift: float
    align: bool
    segment_weights: tuple[float, float, float]
    sparse_below: int
    settings: str
    logs: str
    report: str
    bar: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with λ by segment."""
        values = super().to_json()
        del values["segment_weights"]
        return values | {"weights": dict(zip(SEGMENTS, self.segment_weights, strict=True))}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a policy from a file.

        Raises:
            EvaluationError: The file is not a valid policy.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            weights = found.pop("weights")
            cold, sparse, dense = (float(weights[segment]) for segment in SEGMENTS)
            return cls(**found, segment_weights=(cold, sparse, dense))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EvaluationError(
                f"not a valid policy: {error}", where=str(path), next_step="run scalr evaluate again, or delete the file"
            ) from error

    def write(self, *paths: Path) -> None:
        """Write the policy to each path atomically."""
        for path in paths:
            write_text(path, json.dumps(self.to_json(), indent=1) + "\n")


@dataclass(frozen=True)
class PolicyStatus(Jsonable):
    """Whether a policy was applied, and what it changed.

    Attributes:
        path: The policy file.
        is_applied: False if it was measured under other settings.
        reason: One sentence.
        applied: Settings that it set, as ``section.key``.
        overridden: Settings that it left alone because scalr.toml or the environment sets them.
    """

    path: str
    is_applied: bool
    reason: str
    applied: dict[str, Any]
    overridden: list[str]


def policy_path(settings: Settings) -> Path:
    """Return the path of the current policy."""
    return settings.home / "evaluations" / "policy.json"


def apply_policy(settings: Settings) -> tuple[Settings, PolicyStatus | None]:
    """Apply the project's policy to the settings, log it, and return what it changed; without a policy return the settings unchanged.

    Then apply what the experiment found, see `harmed_segments`.

    Raises:
        EvaluationError: The file is not a valid policy.
    """
    found, status = _with_policy(settings)
    if status is not None and not status.is_applied:
        logger.warning("policy %s not applied: %s", status.path, status.reason)
    elif status is not None:
        logger.info(
            "policy %s applied (%s): %s%s",
            status.path,
            status.reason,
            ", ".join(f"{key} = {value}" for key, value in status.applied.items()) or "nothing",
            f"; set elsewhere and kept: {', '.join(status.overridden)}" if status.overridden else "",
        )
    for sentence in describe_harmed_segments(settings):
        logger.warning("%s", sentence)
    return drop_harmed_segments(found), status


def policy_status(settings: Settings) -> PolicyStatus | None:
    """Return whether runs apply the project's policy, and what it changes; None without a policy.

    Raises:
        EvaluationError: The file is not a valid policy.
    """
    return _with_policy(settings)[1]


def why_not_generated(settings: Settings) -> str | None:
    """Return why a run generates no events: λ is 0 for all users, so no training set would have any. None if some λ is above 0.

    Raises:
        EvaluationError: The policy file is not a valid policy.
    """
    found, _ = _with_policy(settings)
    options = found.training_set
    if any(drop_harmed_segments(found).training_set.resolved_segment_weights):
        return None
    if any(options.resolved_segment_weights):
        where = f"the experiment's result at {harmed_segments_path(settings)}"
    elif options.synthetic_weight == 0:
        where = "[training_set] synthetic_weight"
    elif "training_set.segment_weights" in settings.explicit_keys:
        where = "[training_set] segment_weights"
    else:
        where = f"the policy at {policy_path(settings)}"
    return f"λ is 0 for all users (set by {where}), so no events are generated or published, and training sets contain real events only"


def _with_policy(settings: Settings) -> tuple[Settings, PolicyStatus | None]:
    path = policy_path(settings)
    if not path.exists():
        return settings, None
    policy = Policy.read(path)
    if policy.settings != settings_digest(settings):
        reason = (
            "it was measured under other domains, translator or contexts, or by an earlier version: run scalr evaluate again"
        )
        return settings, PolicyStatus(str(path), is_applied=False, reason=reason, applied={}, overridden=[])
    proposed: dict[str, dict[str, Any]] = {
        "generation": {
            "events_per_source_event": policy.volume,
            "temperature": policy.temperature,
            "min_lift": policy.min_lift,
            "align": policy.align,
        },
        "training_set": {"segment_weights": policy.segment_weights},
        "downstream": {"sparse_below": policy.sparse_below},
    }
    named = set(settings.explicit_keys)
    if "training_set.synthetic_weight" in named:
        named.add("training_set.segment_weights")
    unset = {
        section: {key: value for key, value in values.items() if f"{section}.{key}" not in named}
        for section, values in proposed.items()
    }
    changed = {section: getattr(settings, section).model_copy(update=values) for section, values in unset.items()}
    applied = {f"{section}.{key}": value for section, values in unset.items() for key, value in values.items()}
    overridden = [name for section, values in proposed.items() for key in values if (name := f"{section}.{key}") in named]
    reason = "as measured" if policy.logs == logs_digest(settings) else "the logs have changed since it was measured"
    if settings.generation.mode == "causal":
        reason = f"{reason}; evaluations measure backfills, and this project's windows are causal"
    return settings.model_copy(update=changed), PolicyStatus(
        str(path), is_applied=True, reason=reason, applied=applied, overridden=overridden
    )


def settings_digest(settings: Settings) -> str:
    """Return the digest of the settings that an evaluation depends on and that a policy does not set."""
    from scalr_prod.translator import target_weighting

    domains: dict[str, Any] = {"source": _DOMAIN_KEYS, "target": _DOMAIN_KEYS}
    if settings.domains.sources:
        domains = {"sources": dict.fromkeys(settings.domains.sources, _DOMAIN_KEYS), "target": _DOMAIN_KEYS}
    parts = [
        _WEIGHT_MEANING,
        settings.domains.model_dump(mode="json", include=domains, exclude_none=True),
        settings.histories.model_dump(mode="json"),
        settings.translator.recipe(),
        settings.generation.model_dump(mode="json", include={"contexts", "exclude_consumed", "shortlist"}, exclude_none=True),
    ]
    if settings.training_set.popularity_discount:
        parts.append({"popularity_discount": settings.training_set.popularity_discount})
    if (weighting := target_weighting(settings)).columns:
        parts.append(asdict(weighting))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def logs_digest(settings: Settings) -> str:
    """Return the digest of the lake's versions of both logs."""
    lake = Lake.open(settings)
    versions = [lake.version(table) if lake.exists(table) else None for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)]
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:16]


_DOMAIN_KEYS: Final = {"name", "events", "query", "columns"}
#: What λ means. Policies of versions in which it was a factor on each row are not applied.
_WEIGHT_MEANING: Final = "share of the real weight"
