"""What an evaluation came to: by arm and family, with intervals over users, as JSON and as a Parquet table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.downstream.statistics import Comparison, holm, paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from scalr_prod.downstream.scene import Scene
    from scalr_prod.downstream.trial import Outcome

__all__ = ["EvaluationReport", "summarise", "write_report"]

SEGMENTS: Final = ("cold", "sparse", "dense")
BASE: Final = "real"
OURS: Final = "real+scalr"


@dataclass(frozen=True)
class EvaluationReport:
    """All arms.

    Attributes:
        cutoff: ISO 8601, UTC.
        cold_fraction: Share of users whose target history was hidden.
        users: Test users, by segment.
        arms: One row an arm and family; see `summarise`. ``synthetic``: how many synthetic events it has, before λ, and the share of
            the catalogue that they name.
        choices: Family → what validation chose, and the figures it rests on.
        runs: What was published for ``real+scalr``: the draw, the gate's report, fidelity and privacy (see `diagnostics`).
        path: Folder of ``report.json`` and ``arms.parquet``.
        seconds: Wall-clock time.
    """

    cutoff: str
    cold_fraction: float
    users: dict[str, int]
    arms: list[dict[str, Any]]
    choices: dict[str, Any] = field(repr=False)
    runs: list[dict[str, Any]] = field(repr=False)
    path: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))

    def for_people(self) -> dict[str, Any]:
        """What fits on a screen: one line an arm, and λ by family."""
        return {
            "cutoff": self.cutoff,
            "cold_fraction": self.cold_fraction,
            "users": self.users,
            "arms": [_line(row) for row in self.arms],
            "lambda": {family: choice["lambda"] for family, choice in self.choices.items()},
            "helps": {family: "yes" if choice["helps"] else "no: λ is 0" for family, choice in self.choices.items()},
            "path": self.path,
            "seconds": self.seconds,
        }


def summarise(scene: Scene, family: str, outcomes: Mapping[str, Sequence[Outcome]], *, seed: int) -> list[dict[str, Any]]:
    """One row an arm: metrics (means over users and seeds), lift over real events alone, and what ours gains over the arm.

    Args:
        scene: The scene.
        family: The model.
        outcomes: Arm → one outcome a seed.
        seed: Of the resampling.
    """
    segments = scene.segments()[scene.users]
    ndcg = {arm: _over_seeds(found, "ndcg") for arm, found in outcomes.items()}
    lifts = {arm: paired_bootstrap(values, ndcg[BASE], seed=seed) for arm, values in ndcg.items() if arm != BASE}
    adjusted = dict(zip(lifts, holm([found.p_value for found in lifts.values()]), strict=True))
    ahead = {
        arm: paired_bootstrap(ndcg[OURS], values, seed=seed)
        for arm, values in ndcg.items()
        if OURS in ndcg and arm not in {OURS, BASE}
    }
    against = dict(zip(ahead, holm([found.p_value for found in ahead.values()]), strict=True))
    rows = []
    for arm, found in outcomes.items():
        row: dict[str, Any] = {"name": arm, "model": family, "seeds": len(found), "metrics": _metrics(found)}
        if arm in lifts:
            row |= _lift(lifts[arm]) | {"p_holm": adjusted[arm]}
        if arm in ahead:
            row["scalr_over_this"] = _lift(ahead[arm]) | {"p_holm": against[arm]}
        row["slices"] = _slices(found, outcomes[BASE], segments, seed=seed)
        rows.append(row)
    return rows


def write_report(report: EvaluationReport, folder: Path) -> None:
    """``report.json`` and ``arms.parquet``, a row for each arm, family, slice and metric (slice ``synthetic``: of the arm's events)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    flat = []
    for row in report.arms:
        flat += [(row["name"], row["model"], "all", metric, value) for metric, value in row["metrics"].items()]
        flat += [(row["name"], row["model"], "synthetic", key, float(value)) for key, value in row.get("synthetic", {}).items()]
        flat += [
            (row["name"], row["model"], part, metric, float(value))
            for part, figures in row["slices"].items()
            for metric, value in figures.items()
            if isinstance(value, int | float)
        ]
        if "lift_pct" in row:
            low, high = row["ci95"]
            flat += [
                (row["name"], row["model"], "all", metric, value)
                for metric, value in (("lift_pct", row["lift_pct"]), ("lift_low", low), ("lift_high", high))
            ]
    names = ("arm", "model", "slice", "metric", "value")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*flat, strict=True)), strict=True))), folder / "arms.parquet")


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    metrics, slices = row["metrics"], row["slices"]
    return {
        "model": row["model"],
        "arm": row["name"],
        "ndcg": metrics["ndcg"],
        "lift % (95 % CI)": _interval(row),
        "ours over this": _interval(row.get("scalr_over_this", {})),
        **{name: slices.get(name, {}).get("ndcg") for name in SEGMENTS},
        "coverage": metrics["coverage"],
        "NE": metrics.get("ne"),
    }


def _interval(found: Mapping[str, Any]) -> str:
    if "ci95" not in found:
        return ""
    low, high = found["ci95"]
    return f"{found['lift_pct']:+.1f} ({low:+.1f} … {high:+.1f})"


def _over_seeds(found: Sequence[Outcome], metric: str) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.mean([getattr(outcome.ranking, metric) for outcome in found], axis=0)
    return mean


def _metrics(found: Sequence[Outcome]) -> dict[str, float]:
    metrics = {name: float(_over_seeds(found, name).mean()) for name in ("ndcg", "recall", "mrr")}
    for part in ("exposure", "calibration"):
        names = getattr(found[0], part)
        metrics |= {name: float(np.mean([getattr(outcome, part)[name] for outcome in found])) for name in names}
    return metrics


def _slices(
    found: Sequence[Outcome], base: Sequence[Outcome], segments: NDArray[np.int8], *, seed: int
) -> dict[str, dict[str, Any]]:
    slices: dict[str, dict[str, Any]] = {}
    ours, theirs = _over_seeds(found, "ndcg"), _over_seeds(base, "ndcg")
    for number, name in enumerate(SEGMENTS):
        rows = segments == number
        if rows.any():
            slices[name] = {"users": int(rows.sum()), "ndcg": float(ours[rows].mean())}
            if found is not base:
                slices[name] |= _lift(paired_bootstrap(ours[rows], theirs[rows], seed=seed, resamples=1000))
    for name in ("head", "tail"):
        values = _over_seeds(found, name)
        rows = np.isfinite(values)
        if rows.any():
            slices[name] = {"users": int(rows.sum()), "ndcg": float(values[rows].mean())}
    return slices


def _lift(found: Comparison) -> dict[str, Any]:
    return {
        "lift_pct": found.lift_pct,
        "ci95": list(found.ci95),
        "difference": found.difference,
        "difference_ci95": list(found.difference_ci95),
        "p_value": found.p_value,
    }
