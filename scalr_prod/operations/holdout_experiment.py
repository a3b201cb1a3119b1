# SPDX-License-Identifier: Apache-2.0
"""Online holdout experiment: assignment of users to sides, and the effect of synthetic events on an outcome with always-valid intervals."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.atomic_io import atomic_path
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import BadValue, ColumnNotFound, EvaluationError, SettingsError
from scalr_prod.generation import SEGMENTS, apply_policy, describe_harmed_segments, record_harmed_segments
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.operations import always_valid
from scalr_prod.schemas import EVENT_TIMESTAMP, USER_ID, Table
from scalr_prod.workspace import Canary, Holdout, open_duckdb, quote_literal, staging_folder, timestamp_literal

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ledger import Publication


logger = logging.getLogger(__name__)

_VALUE_COLUMN: Final = "value"
_PRE_VALUE_COLUMN: Final = "pre_value"
#: Minimum number of users per side for a reliable interval.
MIN_USERS: Final = 20
#: p-value of the test for a sample ratio mismatch below which the effect is not trusted.
_MIN_SRM_P: Final = 0.001


@dataclass(frozen=True)
class Effect:
    """Difference in mean outcome between users with synthetic events and held-out users.

    For a canary: the difference between canary users and users for whom runs are published later; the latter count as held out here.

    Attributes:
        method: ``difference_in_means``, or ``cuped`` with pre-experiment values.
        users_treated: Users with an outcome who are not held out.
        users_held_out: Users with an outcome who are held out.
        mean_treated: Mean outcome of treated users.
        mean_held_out: Mean outcome of held-out users.
        effect: The difference; with ``cuped``, after subtracting what the pre-experiment values explain.
        low: Lower end of the always-valid 95 % interval (`always_valid`): it may be read as often as one likes.
        high: Upper end of the interval.
        fixed_low: Lower end of the 95 % interval for a single reading at a time fixed beforehand (Welch's t).
        fixed_high: Upper end of that interval.
        relative_pct: The effect in per cent of the held-out users' mean; None if that mean is 0.
        variance_removed: Share of the outcomes' variance explained by pre-experiment values, 0 to 1.
        srm_p: p-value of a test for a sample ratio mismatch (SRM): the binomial probability of sides at least as uneven as these, if having
            an outcome does not depend on the side.
    """

    method: str
    users_treated: int
    users_held_out: int
    mean_treated: float
    mean_held_out: float
    effect: float
    low: float
    high: float
    fixed_low: float
    fixed_high: float
    relative_pct: float | None
    variance_removed: float
    srm_p: float


@dataclass(frozen=True)
class ExperimentReport(Jsonable):
    """Sizes of the experiment's sides, and measured effects.

    Attributes:
        holdout: ``[experiment] holdout``.
        canary: ``[experiment] canary``.
        users_treated: Users of the source domains who are not held out.
        users_held_out: Users of the source domains who are held out.
        users_canary: Users for whom runs are published first; they count as treated, too.
        synthetic_events_of_held_out: Rows of held-out users in the feature view, published before they were held out.
        runs_of_other_keys: Runs planned with another key, under which other users were held out.
        out: The file with every user's side; None if none was requested.
        start: ``[experiment] start``, or when a run was first published under the current key, or None if not yet.
        days: Days of outcomes, from the start; None without outcomes.
        effect: None without outcomes, or if nobody is held out.
        effect_by_segment: The effect for users who were cold, sparse or dense at the start, for segments with enough users on both sides.
        harmed_segments: One sentence per segment that the current experiment found to be harmed, now or before.
        canary_effect: Canary users against users who are neither in the canary nor held out. None without outcomes, or without a
            canary.
    """

    holdout: float
    canary: float
    users_treated: int
    users_held_out: int
    users_canary: int
    synthetic_events_of_held_out: int
    runs_of_other_keys: list[str]
    out: str | None = None
    start: datetime | None = None
    days: float | None = None
    effect: Effect | None = None
    effect_by_segment: dict[str, Effect] = field(default_factory=dict)
    harmed_segments: list[str] = field(default_factory=list)
    canary_effect: Effect | None = None


def analyze_experiment(
    settings: Settings, *, outcomes: str | None = None, until: datetime | None = None, out: Path | None = None
) -> ExperimentReport:
    """Report who is held out and who is in the canary; with outcomes, estimate the effect.

    Segments whose always-valid interval lies below 0 are recorded for later runs (`scalr_prod.generation.harmed_segments`).

    Args:
        settings: ``[experiment]``.
        outcomes: Path or URL of a table with ``user_id``, ``value`` and optionally ``pre_value``, one row per user; users without an
            outcome have 0. Parquet, CSV, JSON lines, a Delta or Iceberg table.
        until: Time until which the outcomes were counted; default: now.
        out: Write ``user_id`` and ``side`` (``treated``, ``held_out``, ``canary``) of every user of the source domains: ``.parquet`` or
            ``.csv``.

    Raises:
        SettingsError: Nobody is held out, and there is no canary.
        TableNotFound: Nothing has been ingested yet.
        InputError: The outcomes cannot be read, lack a column, or contain a user twice.
        EvaluationError: A side has too few users; ``until`` is not after the start; the policy file is not valid; or the output file has
            another suffix, or cannot be written.
    """
    holdout, canary = Holdout.from_settings(settings), Canary.from_settings(settings)
    if holdout is None and canary is None:
        raise SettingsError(
            "nobody is held out", where="[experiment] holdout", next_step="set the share of users: [experiment] holdout = 0.05"
        )
    if out is not None and out.suffix not in {".parquet", ".csv"}:
        raise EvaluationError(
            f"unsupported file type '{out.suffix}'", where=str(out), next_step="name a file that ends in .parquet or .csv"
        )
    lake, salt = Lake.open(settings), (holdout or canary).salt  # type: ignore[union-attr]  # one of them is set
    with Ledger.open(settings) as ledger:
        planned = {run.run_id: Holdout.from_run(run.spec.settings) for run in ledger.runs.find()}
        runs = {run for run, held in planned.items() if held is not None and held.salt == salt}
        start = settings.experiment.start or _first_publication(ledger.publications.find(), runs, salt)
    days = None if outcomes is None else _days(start, until)
    with staging_folder(settings, "experiment") as folder, open_duckdb(settings, folder) as db:
        db.register("events", lake.dataset(Table.SOURCE_EVENTS))
        side = _side_sql(holdout, canary)
        db.execute(f"CREATE TEMP TABLE sides AS SELECT {USER_ID}, {side} AS side FROM (SELECT DISTINCT {USER_ID} FROM events)")
        counts = dict(db.sql("SELECT side, count(*) FROM sides GROUP BY side").fetchall())
        synthetic = 0
        if lake.exists(Table.SYNTHETIC_TARGET_EVENTS):
            db.register("synthetic", lake.dataset(Table.SYNTHETIC_TARGET_EVENTS))
            synthetic = db.sql(f"SELECT count(*) FROM synthetic WHERE {side} = 'held_out'").fetchall()[0][0]
        effects = _Effects()
        if outcomes is not None and days is not None:
            rows = _read_outcomes(settings, outcomes)
            db.register("target", lake.dataset(Table.TARGET_EVENTS))
            _warn_about_unknown_users(db, rows, outcomes)
            db.register("outcomes", rows)
            _ensure_distinct_users(db, outcomes)
            sparse_below = apply_policy(settings)[0].downstream.sparse_below
            effects = _estimate_effects(db, holdout, canary, segment_sql(start, sparse_below), days)
        if out is not None:
            _write_sides(db, out)
    # Nothing is concluded from outcomes before any publication, nor from a table whose users depend on the experiment.
    if start is not None and effects.overall is not None and effects.overall.srm_p >= _MIN_SRM_P:
        record_harmed_segments(
            settings,
            {name: _describe_harm(name, found, days or 0) for name, found in effects.by_segment.items() if found.high < 0},
        )
    return ExperimentReport(
        holdout=holdout.share if holdout else 0.0,
        canary=canary.share if canary else 0.0,
        users_treated=counts.get("treated", 0) + counts.get("canary", 0),
        users_held_out=counts.get("held_out", 0),
        users_canary=counts.get("canary", 0),
        synthetic_events_of_held_out=int(synthetic),
        runs_of_other_keys=[run for run, held in planned.items() if held is not None and held.salt != salt],
        out=None if out is None else str(out),
        start=start,
        days=days,
        effect=effects.overall,
        effect_by_segment=effects.by_segment,
        harmed_segments=describe_harmed_segments(settings),
        canary_effect=effects.canary,
    )


def _describe_harm(segment: str, effect: Effect, days: float) -> str:
    return (
        f"synthetic events lowered the outcome of {segment} users by {-effect.effect:.3g} per user over {days:.0f} days "
        f"(95 %: {-effect.high:.3g} to {-effect.low:.3g})"
    )


def _first_publication(publications: list[Publication], runs: set[str], salt: str) -> datetime | None:
    """Return when one of some runs, or a run in a canary of the current key, was first published, or None if never."""
    for_experiment = (found for found in publications if found.run_id in runs or (found.canary or {}).get("salt") == salt)
    return min((found.published_at.astimezone(UTC) for found in for_experiment if found.published_at is not None), default=None)


def _days(start: datetime | None, until: datetime | None) -> float:
    """Return the days from the experiment's start, at least one; without a start, one.

    Raises:
        EvaluationError: ``until`` is not after the start.
    """
    if start is None:
        logger.warning(
            "no run was published under this holdout, and [experiment] start is not set: intervals are as wide as on the first day"
        )
        return 1.0
    days = ((until or datetime.now(UTC)) - start).total_seconds() / 86_400
    if days <= 0:
        raise EvaluationError(
            f"outcomes until {until.isoformat() if until else 'now'} are from before the experiment's start, {start.isoformat()}",
            where="[experiment] start",
            next_step="count outcomes from the start on, or correct [experiment] start",
        )
    return max(days, 1.0)


def estimate_effect(
    outcome: npt.NDArray[np.float64],
    held_out: npt.NDArray[np.bool_],
    expected_share: float,
    *,
    days: float = 1.0,
    pre_value: npt.NDArray[np.float64] | None = None,
) -> Effect:
    """Estimate the treatment effect: treated minus held-out users.

    CUPED (Deng, Xu, Kohavi, Walker 2013) subtracts the regression of the outcome on the pre-experiment value, with one slope for both
    sides. Unknown pre-experiment values (NaN) are replaced by the mean of the known ones.

    Args:
        outcome: Outcomes, float64 [N].
        held_out: Whether each user is held out, bool [N].
        expected_share: Expected share of held-out users.
        days: Days that outcomes were counted for.
        pre_value: Pre-experiment values, float64 [N]; None without them.

    Raises:
        EvaluationError: A side has too few users.
    """
    from scipy import stats

    if min(held_out.sum(), (~held_out).sum()) < MIN_USERS:
        raise EvaluationError(
            f"{int(held_out.sum())} users without synthetic events and {int((~held_out).sum())} with them have an outcome; "
            f"{MIN_USERS} of each are needed",
            where="outcomes",
            next_step="give an outcome for every user, 0 if there was none, or hold out a larger share; widen a canary",
        )
    adjusted, removed = outcome, 0.0
    if pre_value is not None:
        known = np.isfinite(pre_value)
        x = np.where(known, pre_value, pre_value[known].mean() if known.any() else 0.0)
        within_x, within_y = (np.where(held_out, a - a[held_out].mean(), a - a[~held_out].mean()) for a in (x, outcome))
        spread = float(within_x @ within_x)
        slope = float(within_x @ within_y) / spread if spread else 0.0
        adjusted = outcome - slope * (x - x.mean())
        total = float(within_y @ within_y)
        removed = slope * slope * spread / total if total else 0.0
    effect = float(adjusted[~held_out].mean() - adjusted[held_out].mean())
    sides = adjusted[~held_out], adjusted[held_out]
    half, fixed = always_valid.half_width(*sides, days), _welch_half_width(*sides)
    base = float(outcome[held_out].mean())
    split = stats.binomtest(int(held_out.sum()), len(held_out), expected_share)
    return Effect(
        method="difference_in_means" if pre_value is None else "cuped",
        users_treated=int((~held_out).sum()),
        users_held_out=int(held_out.sum()),
        mean_treated=float(outcome[~held_out].mean()),
        mean_held_out=base,
        effect=effect,
        low=effect - half,
        high=effect + half,
        fixed_low=effect - fixed,
        fixed_high=effect + fixed,
        relative_pct=100 * effect / base if base else None,
        variance_removed=float(removed),
        srm_p=float(split.pvalue),
    )


def _welch_half_width(treated: npt.NDArray[np.float64], held_out: npt.NDArray[np.float64]) -> float:
    """Return half the width of the 95 % interval of a difference in means (Welch's t); 0 if nothing varies."""
    from scipy import stats

    if not (np.ptp(treated) or np.ptp(held_out)):
        return 0.0
    interval = stats.ttest_ind(treated, held_out, equal_var=False).confidence_interval(0.95)
    return float(interval.high - interval.low) / 2


def _side_sql(holdout: Holdout | None, canary: Canary | None) -> str:
    """Return the DuckDB expression of a user's side: ``held_out``, ``canary`` or ``treated``."""
    is_held_out, is_canary = (group.membership_sql(USER_ID) if group else "false" for group in (holdout, canary))
    return f"(CASE WHEN {is_held_out} THEN 'held_out' WHEN {is_canary} THEN 'canary' ELSE 'treated' END)"


def _warn_about_unknown_users(db: Any, rows: pa.Table, origin: str) -> None:
    """Warn about users who are in no log: they were never treated, or the file uses other ids."""
    db.register("outcome_users", rows)
    unknown, example = db.sql(
        f"SELECT count(*), min({USER_ID}) FROM outcome_users WHERE {USER_ID} NOT IN "
        f"(SELECT {USER_ID}::VARCHAR FROM events UNION SELECT {USER_ID}::VARCHAR FROM target)"
    ).fetchall()[0]
    if unknown:
        logger.warning(
            "%s: %d of %d users (for example '%s') are in no log and were never treated; use the ids of the target log",
            *(origin, unknown, len(rows), example),
        )


def segment_sql(start: datetime | None, sparse_below: int) -> str:
    """Return the DuckDB query of the segment of each user of the view ``target`` with events before the start; all others are cold.

    Args:
        start: Only earlier events count, since later ones may be an effect of the experiment; None: all.
        sparse_below: Number of real target events below which a user counts as sparse.
    """
    _, sparse, dense = SEGMENTS
    earlier = "" if start is None else f"WHERE {EVENT_TIMESTAMP} < {timestamp_literal(start)}"
    return (
        f"SELECT {USER_ID}::VARCHAR AS {USER_ID}, CASE WHEN count(*) < {sparse_below} THEN '{sparse}' ELSE '{dense}' END AS segment "
        f"FROM target {earlier} GROUP BY {USER_ID}"
    )


def _ensure_distinct_users(db: Any, origin: str) -> None:
    """Check that the outcomes have one row per user.

    Raises:
        BadValue: A user occurs twice.
    """
    duplicates = db.sql(
        f"SELECT {USER_ID} FROM outcomes GROUP BY {USER_ID} HAVING count(*) > 1 ORDER BY {USER_ID} LIMIT 1"
    ).fetchall()
    if duplicates:
        raise BadValue(
            f"user {duplicates[0][0]} occurs more than once",
            where=f"{origin}, column '{USER_ID}'",
            next_step="aggregate the outcomes to one row per user",
        )


@dataclass(frozen=True)
class _Effects:
    """Treatment effects for all users and by segment, and the effect of being in the canary."""

    overall: Effect | None = None
    by_segment: dict[str, Effect] = field(default_factory=dict)
    canary: Effect | None = None


def _estimate_effects(db: Any, holdout: Holdout | None, canary: Canary | None, segments: str, days: float) -> _Effects:
    """Estimate the effects from the tables ``outcomes`` and ``target``."""
    query = (
        f"SELECT {_side_sql(holdout, canary)} AS side, coalesce(segment, '{SEGMENTS[0]}') AS segment, {_VALUE_COLUMN}, {_PRE_VALUE_COLUMN} "
        f"FROM outcomes LEFT JOIN ({segments}) USING ({USER_ID}) ORDER BY {USER_ID}"
    )
    columns = db.sql(query).fetchnumpy()
    side, segment = (np.asarray(columns[name]).astype(str) for name in ("side", "segment"))
    value, before = np.asarray(columns[_VALUE_COLUMN]), np.ma.filled(columns[_PRE_VALUE_COLUMN].astype(np.float64), np.nan)
    pre_value = before if np.isfinite(before).any() else None
    held_out = side == "held_out"

    def estimate(users: npt.NDArray[np.bool_], untreated: npt.NDArray[np.bool_], share: float) -> Effect:
        known = None if pre_value is None else pre_value[users]
        return estimate_effect(value[users], untreated[users], share, days=days, pre_value=known)

    overall, by_segment, in_canary = None, {}, None
    if holdout is not None:
        overall = _warn_about_uneven_split(estimate(np.ones(len(side), dtype=bool), held_out, holdout.share), holdout.share)
        masks = {name: segment == name for name in SEGMENTS}
        enough = [name for name, mask in masks.items() if min((mask & held_out).sum(), (mask & ~held_out).sum()) >= MIN_USERS]
        by_segment = {name: estimate(masks[name], held_out, holdout.share) for name in enough}
    if canary is not None and overall is not None and (side == "canary").sum() < MIN_USERS:
        logger.warning("fewer than %d users of the canary have an outcome: its effect is not estimated", MIN_USERS)
    elif canary is not None:
        share = 1 - canary.share / (1 - (holdout.share if holdout else 0.0))
        in_canary = _warn_about_uneven_split(estimate(~held_out, side == "treated", share), share)
    return _Effects(overall, by_segment, in_canary)


def _warn_about_uneven_split(effect: Effect, share: float) -> Effect:
    """Warn about a sample ratio mismatch; return the effect."""
    if effect.srm_p < _MIN_SRM_P:
        logger.warning(
            "sample ratio mismatch: of %d users with an outcome, %d are held out, but %.0f were expected. Which users are in the table "
            "depends on the experiment, so the effect is biased; give every user a row, 0 for no outcome",
            effect.users_treated + effect.users_held_out,
            effect.users_held_out,
            share * (effect.users_treated + effect.users_held_out),
        )
    return effect


def _read_outcomes(settings: Settings, location: str) -> pa.Table:
    """Read the outcomes: ``user_id`` as text, ``value`` and ``pre_value`` (null if unknown) as float64."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from scalr_prod.ingest import CellOrigin, ColumnSelection, IdParser, first_true_index, parse_numbers, read_path

    schema = pa.schema([(USER_ID, pa.string()), (_VALUE_COLUMN, pa.float64()), (_PRE_VALUE_COLUMN, pa.float64())])
    users, batches = IdParser(), []
    try:
        for batch in read_path(
            settings, location, ColumnSelection((USER_ID, _VALUE_COLUMN), "experiment", (_PRE_VALUE_COLUMN,))
        ):
            ids, values, before = (
                CellOrigin(batch.origin, name, batch.row) for name in (USER_ID, _VALUE_COLUMN, _PRE_VALUE_COLUMN)
            )
            user = users.parse(batch.rows.column(USER_ID), ids, untyped=batch.untyped).cast(pa.string())
            value = parse_numbers(batch.rows.column(_VALUE_COLUMN), values)
            if (at := first_true_index(pc.invert(pc.fill_null(pc.is_finite(value), fill_value=False)))) is not None:
                raise values.bad_value("no finite number", at=at, next_step="give every user an outcome: 0 if there was none")
            pre_value = pa.nulls(batch.rows.num_rows, pa.float64())
            if _PRE_VALUE_COLUMN in batch.rows.schema.names:
                pre_value = parse_numbers(batch.rows.column(_PRE_VALUE_COLUMN), before)
                pre_value = pc.if_else(pc.is_finite(pre_value), pre_value, None)
            batches.append(
                pa.RecordBatch.from_arrays([user, value.cast(pa.float64()), pre_value.cast(pa.float64())], schema=schema)
            )
    except ColumnNotFound as error:
        error.next_step = f"give the columns {USER_ID}, {_VALUE_COLUMN} and optionally {_PRE_VALUE_COLUMN}"
        raise
    users.ensure_no_nulls()
    return pa.Table.from_batches(batches, schema)


def _write_sides(db: Any, out: Path) -> None:
    """Write every user's side atomically.

    Raises:
        EvaluationError: The file cannot be written.
    """
    import duckdb

    file_format = "PARQUET" if out.suffix == ".parquet" else "CSV, HEADER"
    try:
        with atomic_path(out) as unfinished:
            sides = f"SELECT {USER_ID}, side FROM sides ORDER BY {USER_ID}"
            db.execute(f"COPY ({sides}) TO {quote_literal(str(unfinished))} (FORMAT {file_format})")
    except (OSError, duckdb.IOException) as error:
        raise EvaluationError(f"cannot be written: {error}", where=str(out), next_step="choose a writable folder") from error
