# SPDX-License-Identifier: Apache-2.0
"""Online holdout experiment: assignment of users to sides, and the effect of synthetic events on an outcome with an interval."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.atomic_io import atomic_path
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import BadValue, ColumnNotFound, EvaluationError, SettingsError
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.schemas import USER_ID, Table
from scalr_prod.workspace import Canary, Holdout, open_duckdb, staging_folder

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec


logger = logging.getLogger(__name__)

_VALUE_COLUMN: Final = "value"
_PRE_VALUE_COLUMN: Final = "pre_value"
#: Least users per side for a reliable interval.
_MIN_USERS: Final = 20
#: Below this probability, the split of the outcome's users does not match the experiment.
_MIN_SPLIT_P: Final = 0.001


@dataclass(frozen=True)
class Effect:
    """Difference in mean outcome between users with synthetic events and held-out users.

    For a canary: between its users and the users that runs are published for later, who count as held out here.

    Attributes:
        method: ``difference_in_means``, or ``cuped`` with pre-experiment values.
        users_treated: Users with an outcome who are not held out.
        users_held_out: Users with an outcome who are held out.
        mean_treated: Mean outcome of treated users.
        mean_held_out: Mean outcome of held-out users.
        effect: The difference; with ``cuped``, after subtracting what the pre-experiment values explain.
        low: Lower end of the 95 % interval (Welch's t).
        high: Upper end of the interval.
        relative_pct: The effect in per cent of the held-out users' mean; None if that mean is 0.
        variance_removed: Share of the outcomes' variance explained by pre-experiment values, 0 to 1.
        split_p: Binomial p-value of the split of the users, assuming that having an outcome does not depend on the side.
    """

    method: str
    users_treated: int
    users_held_out: int
    mean_treated: float
    mean_held_out: float
    effect: float
    low: float
    high: float
    relative_pct: float | None
    variance_removed: float
    split_p: float


@dataclass(frozen=True)
class ExperimentReport(Jsonable):
    """Sizes of the experiment's sides, and measured effects.

    Attributes:
        holdout: ``[experiment] holdout``.
        canary: ``[experiment] canary``.
        users_treated: Users of the source domains who are not held out.
        users_held_out: Users of the source domains who are held out.
        users_canary: Users that runs are published for first; they count as treated, too.
        synthetic_events_of_held_out: Rows of held-out users in the feature view, published before they were held out.
        runs_of_other_keys: Runs planned with another key, under which other users were held out.
        out: The file with every user's side; None if none was requested.
        effect: None without outcomes, or if nobody is held out.
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
    effect: Effect | None = None
    canary_effect: Effect | None = None


def analyze_experiment(settings: Settings, *, outcomes: str | None = None, out: Path | None = None) -> ExperimentReport:
    """Report who is held out and who is in the canary; with outcomes, estimate the effect.

    Args:
        settings: ``[experiment]``.
        outcomes: Path or URL of a table with ``user_id``, ``value`` and optionally ``pre_value``, one row per user; users without an
            outcome have 0. Parquet, CSV, JSON lines, a Delta or Iceberg table.
        out: Write ``user_id`` and ``side`` (``treated``, ``held_out``, ``canary``) of every user of the source domains: ``.parquet`` or
            ``.csv``.

    Raises:
        SettingsError: Nobody is held out, and there is no canary.
        TableNotFound: Nothing has been ingested yet.
        InputError: The outcomes cannot be read, lack a column, or contain a user twice.
        EvaluationError: A side has too few users; or the output file has another suffix, or cannot be written.
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
    lake = Lake.open(settings)
    with staging_folder(settings, "experiment") as folder, open_duckdb(settings, folder) as db:
        db.register("events", lake.dataset(Table.SOURCE_EVENTS))
        side = _side_sql(holdout, canary)
        db.execute(f"CREATE TEMP TABLE sides AS SELECT {USER_ID}, {side} AS side FROM (SELECT DISTINCT {USER_ID} FROM events)")
        counts = dict(db.sql("SELECT side, count(*) FROM sides GROUP BY side").fetchall())
        synthetic = 0
        if lake.exists(Table.SYNTHETIC_TARGET_EVENTS):
            db.register("synthetic", lake.dataset(Table.SYNTHETIC_TARGET_EVENTS))
            synthetic = db.sql(f"SELECT count(*) FROM synthetic WHERE {side} = 'held_out'").fetchall()[0][0]
        effect = canary_effect = None
        if outcomes is not None:
            rows = _read_outcomes(settings, outcomes)
            db.register("target", lake.dataset(Table.TARGET_EVENTS))
            _warn_about_unknown_users(db, rows, outcomes)
            effect, canary_effect = _estimate_effects(db, holdout, canary, rows, outcomes)
        if out is not None:
            _write_sides(db, out)
    with Ledger.open(settings) as ledger:
        specs = [run.spec for run in ledger.runs.find()]
    return ExperimentReport(
        holdout=holdout.share if holdout else 0.0,
        canary=canary.share if canary else 0.0,
        users_treated=counts.get("treated", 0) + counts.get("canary", 0),
        users_held_out=counts.get("held_out", 0),
        users_canary=counts.get("canary", 0),
        synthetic_events_of_held_out=int(synthetic),
        runs_of_other_keys=_runs_of_other_keys(specs, (holdout or canary).salt),  # type: ignore[union-attr]  # one of them is set
        out=None if out is None else str(out),
        effect=effect,
        canary_effect=canary_effect,
    )


def estimate_effect(
    outcome: npt.NDArray[np.float64],
    held_out: npt.NDArray[np.bool_],
    expected_share: float,
    *,
    pre_value: npt.NDArray[np.float64] | None = None,
) -> Effect:
    """Estimate the effect of not being held out.

    CUPED (Deng, Xu, Kohavi, Walker 2013) subtracts the regression of the outcome on the pre-experiment value, with one slope for both
    sides. Unknown pre-experiment values (NaN) are replaced by the mean of the known ones.

    Args:
        outcome: Outcomes, float64 [N].
        held_out: Whether each user is held out, bool [N].
        expected_share: Expected share of held-out users.
        pre_value: Pre-experiment values, float64 [N]; None without them.

    Raises:
        EvaluationError: A side has too few users.
    """
    from scipy import stats

    if min(held_out.sum(), (~held_out).sum()) < _MIN_USERS:
        raise EvaluationError(
            f"{int(held_out.sum())} held-out users and {int((~held_out).sum())} others have an outcome; {_MIN_USERS} of each are needed",
            where="outcomes",
            next_step="give an outcome for every user, 0 if there was none, or hold out a larger share",
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
    half = _welch_half_width(adjusted[~held_out], adjusted[held_out])
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
        relative_pct=100 * effect / base if base else None,
        variance_removed=float(removed),
        split_p=float(split.pvalue),
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


def _estimate_effects(
    db: Any, holdout: Holdout | None, canary: Canary | None, rows: pa.Table, origin: str
) -> tuple[Effect | None, Effect | None]:
    """Estimate the effect of not being held out, and of being in the canary."""
    db.register("outcomes", rows)
    duplicates = db.sql(
        f"SELECT {USER_ID} FROM outcomes GROUP BY {USER_ID} HAVING count(*) > 1 ORDER BY {USER_ID} LIMIT 1"
    ).fetchall()
    if duplicates:
        raise BadValue(
            f"user {duplicates[0][0]} occurs more than once",
            where=f"{origin}, column '{USER_ID}'",
            next_step="aggregate the outcomes to one row per user",
        )
    query = (
        f"SELECT {_side_sql(holdout, canary)} AS side, {_VALUE_COLUMN}, {_PRE_VALUE_COLUMN} FROM outcomes ORDER BY {USER_ID}"
    )
    columns = db.sql(query).fetchnumpy()
    side, value = np.asarray(columns["side"]).astype(str), np.asarray(columns[_VALUE_COLUMN])
    before = np.ma.filled(columns[_PRE_VALUE_COLUMN].astype(np.float64), np.nan)
    known = None if rows[_PRE_VALUE_COLUMN].null_count == rows.num_rows else before

    def estimate(users: npt.NDArray[np.bool_], untreated: npt.NDArray[np.bool_], share: float) -> Effect:
        return _warn_about_uneven_split(
            estimate_effect(value[users], untreated[users], share, pre_value=None if known is None else known[users]), share
        )

    effect = estimate(np.ones(len(side), dtype=bool), side == "held_out", holdout.share) if holdout else None
    if canary is None:
        return effect, None
    expected_share = 1 - canary.share / (1 - (holdout.share if holdout else 0.0))
    return effect, estimate(side != "held_out", side == "treated", expected_share)


def _warn_about_uneven_split(effect: Effect, share: float) -> Effect:
    """Warn if the split of the users does not match the experiment; return the effect."""
    if effect.split_p < _MIN_SPLIT_P:
        logger.warning(
            "of %d users with an outcome, %d have no synthetic events, but %.0f were expected: which users are in the table depends on "
            "the experiment, so the effect cannot be trusted",
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
            path = str(unfinished).replace("'", "''")
            db.execute(f"COPY (SELECT {USER_ID}, side FROM sides ORDER BY {USER_ID}) TO '{path}' (FORMAT {file_format})")
    except (OSError, duckdb.IOException) as error:
        raise EvaluationError(f"cannot be written: {error}", where=str(out), next_step="choose a writable folder") from error


def _runs_of_other_keys(specs: list[RunSpec], salt: str) -> list[str]:
    planned = ((spec.run_id, Holdout.from_run(spec.settings)) for spec in specs)
    return [run_id for run_id, holdout in planned if holdout is not None and holdout.salt != salt]
