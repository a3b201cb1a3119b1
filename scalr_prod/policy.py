# SPDX-License-Identifier: Apache-2.0
"""What an evaluation decided, for runs to follow: how events are drawn, and how much they weigh for whom.

`scalr evaluate` writes it; `scalr run`, `scalr generate` and `scalr dataset build` follow it as long as it was measured under the settings
that they run with. A setting that scalr.toml or the environment names wins over it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import EVENT_EXTRAS, Table
from scalr_prod.errors import EvaluationError
from scalr_prod.jsonable import Jsonable
from scalr_prod.lake import Lake
from scalr_prod.whole import whole

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from scalr_prod.settings import Settings

__all__ = [
    "SEGMENTS",
    "Followed",
    "Policy",
    "follow_policy",
    "logs_digest",
    "policy_path",
    "settings_digest",
    "why_not_generated",
]

logger = logging.getLogger(__name__)

#: Of users, by their real target events: none, few, more. Their places are the numbers that they have everywhere.
SEGMENTS: Final = ("cold", "sparse", "dense")


@dataclass(frozen=True)
class Policy:
    """A verdict in settings.

    Attributes:
        model: The family that it was chosen with.
        best_baseline: What ours was compared with.
        helps: False: all weights are 0, and a training set holds no synthetic row.
        volume: Events for each context.
        temperature: Of the draw.
        min_lift: The confidence filter.
        align: Alignment of value buckets.
        weights: λ of cold, sparse and dense users.
        sparse_below: Real target events under which a user counts as sparse.
        settings: Digest of the settings that it was measured under.
        logs: Digest of the logs that it was measured on.
        report: The evaluation's report.
        bar: ``p_below``: the p-value below which a gain on validation counted, ``why``, and ``p_value`` of ours. None where nothing was
            ahead, and in a policy of an earlier version.
    """

    model: str
    best_baseline: str
    helps: bool
    volume: int
    temperature: float
    min_lift: float
    align: bool
    weights: tuple[float, float, float]
    sparse_below: int
    settings: str
    logs: str
    report: str
    bar: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; λ by segment."""
        return asdict(self) | {"weights": dict(zip(SEGMENTS, self.weights, strict=True))}

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file.

        Raises:
            EvaluationError: It is no policy.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            cold, sparse, dense = (float(found["weights"][name]) for name in SEGMENTS)
            return cls(**found | {"weights": (cold, sparse, dense)})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EvaluationError(
                f"is no policy: {error}", where=str(path), next_step="run scalr evaluate again, or delete the file"
            ) from error

    def write(self, *paths: Path) -> None:
        """To files, each whole or not at all."""
        for path in paths:
            with whole(path) as unfinished:
                unfinished.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Followed(Jsonable):
    """What became of a policy.

    Attributes:
        path: The file.
        followed: False where it was measured under other settings.
        reason: In one sentence.
        applied: Settings that it gave a value, as ``section.key``.
        overruled: Settings that scalr.toml names, and that it so did not touch.
    """

    path: str
    followed: bool
    reason: str
    applied: dict[str, Any]
    overruled: list[str]


def policy_path(settings: Settings) -> Path:
    """Where the policy in force is."""
    return settings.home / "evaluations" / "policy.json"


def follow_policy(settings: Settings) -> tuple[Settings, Followed | None]:
    """The settings with the home's policy in them, and what became of it; unchanged where there is none. Logs what it did.

    Raises:
        EvaluationError: The file is no policy.
    """
    found, followed = _with_policy(settings)
    if followed is not None and not followed.followed:
        logger.warning("the policy at %s is not followed: %s", followed.path, followed.reason)
    elif followed is not None:
        logger.info(
            "policy of %s followed (%s): %s%s",
            followed.path,
            followed.reason,
            ", ".join(f"{key} = {value}" for key, value in followed.applied.items()) or "nothing",
            f"; named in the settings, and so kept: {', '.join(followed.overruled)}" if followed.overruled else "",
        )
    return found, followed


def why_not_generated(settings: Settings) -> str | None:
    """Return why a run generates no event: λ is 0 for all users, so that no training set would hold one. None: some λ is above 0.

    Raises:
        EvaluationError: The policy's file is no policy.
    """
    found, _ = _with_policy(settings)
    options = found.training_set
    if any(options.lambdas):
        return None
    if options.synthetic_weight == 0:
        where = "[training_set] synthetic_weight"
    elif "training_set.segment_weights" in settings.named:
        where = "[training_set] segment_weights"
    else:
        where = f"the policy at {policy_path(settings)}"
    return f"λ is 0 for all users by {where}: no event is generated or published, and a training set holds real events alone"


def _with_policy(settings: Settings) -> tuple[Settings, Followed | None]:
    path = policy_path(settings)
    if not path.exists():
        return settings, None
    policy = Policy.read(path)
    if policy.settings != settings_digest(settings):
        reason = "it was measured under other domains, translator or contexts: run scalr evaluate again"
        return settings, Followed(str(path), followed=False, reason=reason, applied={}, overruled=[])
    wanted: dict[str, dict[str, Any]] = {
        "generation": {
            "events_per_source_event": policy.volume,
            "temperature": policy.temperature,
            "min_lift": policy.min_lift,
            "align": policy.align,
        },
        "training_set": {"segment_weights": policy.weights},
        "downstream": {"sparse_below": policy.sparse_below},
    }
    named = set(settings.named)
    if "training_set.synthetic_weight" in named:
        named.add("training_set.segment_weights")
    free = {
        section: {key: value for key, value in values.items() if f"{section}.{key}" not in named}
        for section, values in wanted.items()
    }
    changed = {section: getattr(settings, section).model_copy(update=values) for section, values in free.items()}
    applied = {f"{section}.{key}": value for section, values in free.items() for key, value in values.items()}
    overruled = [name for section, values in wanted.items() for key in values if (name := f"{section}.{key}") in named]
    reason = "as measured" if policy.logs == logs_digest(settings) else "the logs have changed since it was measured"
    return settings.model_copy(update=changed), Followed(
        str(path), followed=True, reason=reason, applied=applied, overruled=overruled
    )


def settings_digest(settings: Settings) -> str:
    """Of the settings that a verdict depends on and that a policy does not set."""
    domains: dict[str, Any] = {"source": _DOMAIN, "target": _DOMAIN}
    if settings.domains.sources:
        domains = {"sources": dict.fromkeys(settings.domains.sources, _DOMAIN), "target": _DOMAIN}
    made_of = [
        _without_unmapped(settings.domains.model_dump(mode="json", include=domains)),
        settings.histories.model_dump(mode="json"),
        settings.translator.recipe(),
        settings.generation.model_dump(mode="json", include={"contexts", "exclude_consumed"}),
    ]
    if settings.generation.shortlist is not None:  # it came later: a verdict of before stays one of these settings
        made_of.append(settings.generation.shortlist)
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _without_unmapped(found: Any) -> Any:
    """Without the columns that came with a later version and are not mapped: a verdict of before stays one of these settings."""
    if not isinstance(found, dict):
        return found
    return {key: _without_unmapped(value) for key, value in found.items() if value is not None or key not in EVENT_EXTRAS}


def logs_digest(settings: Settings) -> str:
    """Of the lake's versions of both logs."""
    lake = Lake.open(settings)
    versions = [lake.version(table) if lake.exists(table) else None for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)]
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:16]


_DOMAIN: Final = {"name", "events", "query", "columns"}
