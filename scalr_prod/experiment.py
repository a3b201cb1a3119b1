# SPDX-License-Identifier: Apache-2.0
"""What synthetic events do online: who is held out, who comes first, and the effect on an outcome, with an interval."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.contracts import USER_ID, Table
from scalr_prod.duck import open_duckdb, staging_folder
from scalr_prod.errors import BadValue, ColumnNotFound, EvaluationError, SettingsError
from scalr_prod.holdout import Canary, Holdout
from scalr_prod.jsonable import Jsonable
from scalr_prod.lake import Lake
from scalr_prod.whole import whole

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

    from scalr_prod.settings import Settings

__all__ = ["Effect", "ExperimentReport", "effect_of", "experiment"]

logger = logging.getLogger(__name__)

_VALUE: Final = "value"
_BEFORE: Final = "pre_value"
#: Fewer users on a side give no interval that could be trusted.
_FEWEST: Final = 20
#: Below this probability, users of the outcomes are not split as they should be.
_UNLIKELY: Final = 0.001


@dataclass(frozen=True)
class Effect:
    """The mean outcome of users with synthetic events, less that of held-out users.

    Of a canary: that of its users, less that of the users whom runs are published for later; those count as held out here.

    Attributes:
        method: ``difference_in_means``, or ``cuped`` where there is a value of before.
        users_treated: Users of the outcomes that are not held out.
        users_held_out: Those that are.
        mean_treated: Their mean outcome.
        mean_held_out: Likewise.
        effect: The difference; with ``cuped``, of outcomes less what the values of before explain.
        low: Lower end of the 95 % interval (Welch's t).
        high: Its upper end.
        relative_pct: The effect as a share of the held-out users' mean, in per cent; None where that is 0.
        variance_removed: Share of the outcomes' variance that the values of before explain, 0 to 1.
        split_p: Probability of a split as uneven as this one, or more so, if the users of the outcomes were no choice of anybody.
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
    """Who is where, and what came of it.

    Attributes:
        holdout: ``[experiment] holdout``.
        canary: ``[experiment] canary``.
        users_treated: Users of the source domains that are not held out.
        users_held_out: Those that are.
        users_canary: Those for whom runs are published first; they count as treated, too.
        synthetic_events_of_held_out: Rows of the feature view that held-out users have: published before they were held out.
        runs_of_other_keys: Runs that were planned with another key, under which other users were held out.
        out: The file with every user's side; None: none was asked for.
        effect: None where no outcomes were given, or nobody is held out.
        canary_effect: Of canary users against those who are neither in the canary nor held out. None where no outcomes were given, or
            there is no canary.
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


def experiment(settings: Settings, *, outcomes: str | None = None, out: Path | None = None) -> ExperimentReport:
    """Say who is held out, and who is in the canary; with outcomes, measure the effect.

    Args:
        settings: ``[experiment]``.
        outcomes: Path or URL of a table ``user_id``, ``value`` and, where there is one, ``pre_value``: one row a user, users without
            any outcome with 0. Parquet, CSV, JSON lines, a Delta or Iceberg table.
        out: Write ``user_id`` and ``side`` (``treated``, ``held_out``, ``canary``) of every user of the source domains: ``.parquet`` or
            ``.csv``.

    Raises:
        SettingsError: Nobody is held out, and there is no canary.
        TableNotFound: Nothing was ingested yet.
        InputError: The outcomes cannot be read, lack a column, or hold a user twice.
        EvaluationError: There are too few users on a side; or the file's name ends otherwise, or it cannot be written.
    """
    held, canary = Holdout.of(settings), Canary.of(settings)
    if held is None and canary is None:
        raise SettingsError(
            "nobody is held out", where="[experiment] holdout", next_step="set the share of users: [experiment] holdout = 0.05"
        )
    if out is not None and out.suffix not in {".parquet", ".csv"}:
        raise EvaluationError(
            f"'{out.suffix}' is no kind of file that is written", where=str(out), next_step="name it .parquet or .csv"
        )
    lake = Lake.open(settings)
    with staging_folder(settings, "experiment") as folder, open_duckdb(settings, folder) as db:
        db.register("events", lake.dataset(Table.SOURCE_EVENTS))
        side = _side_sql(held, canary)
        db.execute(f"CREATE TEMP TABLE sides AS SELECT {USER_ID}, {side} AS side FROM (SELECT DISTINCT {USER_ID} FROM events)")
        counts = dict(db.sql("SELECT side, count(*) FROM sides GROUP BY side").fetchall())
        synthetic = 0
        if lake.exists(Table.SYNTHETIC_TARGET_EVENTS):
            db.register("synthetic", lake.dataset(Table.SYNTHETIC_TARGET_EVENTS))
            synthetic = db.sql(f"SELECT count(*) FROM synthetic WHERE {side} = 'held_out'").fetchall()[0][0]
        effect = first = None
        if outcomes is not None:
            told = _outcomes(settings, outcomes)
            db.register("target", lake.dataset(Table.TARGET_EVENTS))
            _tell_of_strangers(db, told, outcomes)
            effect, first = _effects(db, held, canary, told, outcomes)
        if out is not None:
            _write(db, out)
    return ExperimentReport(
        holdout=held.share if held else 0.0,
        canary=canary.share if canary else 0.0,
        users_treated=counts.get("treated", 0) + counts.get("canary", 0),
        users_held_out=counts.get("held_out", 0),
        users_canary=counts.get("canary", 0),
        synthetic_events_of_held_out=int(synthetic),
        runs_of_other_keys=_other_runs(settings, (held or canary).salt),  # type: ignore[union-attr]  # one of them is there
        out=None if out is None else str(out),
        effect=effect,
        canary_effect=first,
    )


def effect_of(
    value: npt.NDArray[np.float64],
    held: npt.NDArray[np.bool_],
    share: float,
    *,
    before: npt.NDArray[np.float64] | None = None,
) -> Effect:
    """The effect of not being held out.

    CUPED (Deng, Xu, Kohavi, Walker 2013): the outcome less its regression on the value of before, with the slope that is common to both
    sides. Unknown values of before (NaN) count as the mean of the known ones.

    Args:
        value: float64 [N].
        held: bool [N].
        share: Of users that should be held out.
        before: float64 [N] of a time before the experiment; None: there is none.

    Raises:
        EvaluationError: Too few users on one side.
    """
    from scipy import stats

    if min(held.sum(), (~held).sum()) < _FEWEST:
        raise EvaluationError(
            f"{int(held.sum())} held-out users and {int((~held).sum())} others have an outcome; {_FEWEST} of each are needed",
            where="outcomes",
            next_step="give every user's outcome, 0 where there was none, or hold out a larger share",
        )
    adjusted, removed = value, 0.0
    if before is not None:
        known = np.isfinite(before)
        x = np.where(known, before, before[known].mean() if known.any() else 0.0)
        within_x, within_y = (np.where(held, a - a[held].mean(), a - a[~held].mean()) for a in (x, value))
        spread = float(within_x @ within_x)
        slope = float(within_x @ within_y) / spread if spread else 0.0
        adjusted = value - slope * (x - x.mean())
        total = float(within_y @ within_y)
        removed = slope * slope * spread / total if total else 0.0
    effect = float(adjusted[~held].mean() - adjusted[held].mean())
    half = _half_width(adjusted[~held], adjusted[held])
    base = float(value[held].mean())
    split = stats.binomtest(int(held.sum()), len(held), share)
    return Effect(
        method="difference_in_means" if before is None else "cuped",
        users_treated=int((~held).sum()),
        users_held_out=int(held.sum()),
        mean_treated=float(value[~held].mean()),
        mean_held_out=base,
        effect=effect,
        low=effect - half,
        high=effect + half,
        relative_pct=100 * effect / base if base else None,
        variance_removed=float(removed),
        split_p=float(split.pvalue),
    )


def _half_width(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Half of the 95 % interval of a difference of means, with Welch's degrees of freedom; 0 where nothing varies."""
    from scipy import stats

    errors = [side.var(ddof=1) / len(side) for side in (one, other)]
    total = sum(errors)
    if not total:
        return 0.0
    freedom = total**2 / sum(error**2 / (len(side) - 1) for error, side in zip(errors, (one, other), strict=True))
    return float(stats.t.ppf(0.975, freedom) * np.sqrt(total))


def _side_sql(held: Holdout | None, canary: Canary | None) -> str:
    """DuckDB expression: ``held_out``, ``canary`` or ``treated``."""
    one, other = (found.sql(USER_ID) if found else "false" for found in (held, canary))
    return f"(CASE WHEN {one} THEN 'held_out' WHEN {other} THEN 'canary' ELSE 'treated' END)"


def _tell_of_strangers(db: Any, rows: pa.Table, origin: str) -> None:
    """Users whom no log knows have a side too, but nobody treats them: where they are many, the file may name users otherwise."""
    db.register("told", rows)
    strangers, one = db.sql(
        f"SELECT count(*), min({USER_ID}) FROM told WHERE {USER_ID} NOT IN "
        f"(SELECT {USER_ID}::VARCHAR FROM events UNION SELECT {USER_ID}::VARCHAR FROM target)"
    ).fetchall()[0]
    if strangers:
        logger.warning(
            "%s: %d of %d users, '%s' for one, are in no log, and were never treated; users are named as the target's log does",
            *(origin, strangers, len(rows), one),
        )


def _effects(
    db: Any, held: Holdout | None, canary: Canary | None, rows: pa.Table, origin: str
) -> tuple[Effect | None, Effect | None]:
    """Of not being held out, and of being in the canary."""
    db.register("outcomes", rows)
    twice = db.sql(
        f"SELECT {USER_ID} FROM outcomes GROUP BY {USER_ID} HAVING count(*) > 1 ORDER BY {USER_ID} LIMIT 1"
    ).fetchall()
    if twice:
        raise BadValue(
            f"user {twice[0][0]} is there more than once",
            where=f"{origin}, column '{USER_ID}'",
            next_step="sum up the outcomes of each user: one row a user",
        )
    query = f"SELECT {_side_sql(held, canary)} AS side, {_VALUE}, {_BEFORE} FROM outcomes ORDER BY {USER_ID}"
    found = db.sql(query).fetchnumpy()
    side, value = np.asarray(found["side"]).astype(str), np.asarray(found[_VALUE])
    before = np.ma.filled(found[_BEFORE].astype(np.float64), np.nan)
    known = None if rows[_BEFORE].null_count == rows.num_rows else before

    def measured(users: npt.NDArray[np.bool_], without: npt.NDArray[np.bool_], share: float) -> Effect:
        return _told(effect_of(value[users], without[users], share, before=None if known is None else known[users]), share)

    effect = measured(np.ones(len(side), dtype=bool), side == "held_out", held.share) if held else None
    if canary is None:
        return effect, None
    later = 1 - canary.share / (1 - (held.share if held else 0.0))
    return effect, measured(side != "held_out", side == "treated", later)


def _told(found: Effect, share: float) -> Effect:
    if found.split_p < _UNLIKELY:
        logger.warning(
            "of %d users with an outcome, %d are without synthetic events, and %.0f were to be expected: the users of the table are a "
            "choice that depends on the experiment, and the effect cannot be trusted",
            found.users_treated + found.users_held_out,
            found.users_held_out,
            share * (found.users_treated + found.users_held_out),
        )
    return found


def _outcomes(settings: Settings, location: str) -> pa.Table:
    """``user_id`` as text, ``value`` and ``pre_value`` (null where unknown) as float64."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from scalr_prod.ingest.cells import Ids, Place, first_true, numbers
    from scalr_prod.ingest.columns import Wanted
    from scalr_prod.ingest.readers import read_path

    schema = pa.schema([(USER_ID, pa.string()), (_VALUE, pa.float64()), (_BEFORE, pa.float64())])
    users, read = Ids(), []
    try:
        for batch in read_path(settings, location, Wanted((USER_ID, _VALUE), "experiment", (_BEFORE,))):
            ids, values, before = (Place(batch.origin, name, batch.row) for name in (USER_ID, _VALUE, _BEFORE))
            who = users.read(batch.rows.column(USER_ID), ids, untyped=batch.untyped).cast(pa.string())
            value = numbers(batch.rows.column(_VALUE), values)
            if (at := first_true(pc.invert(pc.fill_null(pc.is_finite(value), fill_value=False)))) is not None:
                raise values.bad("no finite number", at=at, next_step="give every user an outcome: 0 where there was none")
            former = pa.nulls(batch.rows.num_rows, pa.float64())
            if _BEFORE in batch.rows.schema.names:
                former = numbers(batch.rows.column(_BEFORE), before)
                former = pc.if_else(pc.is_finite(former), former, None)
            read.append(pa.RecordBatch.from_arrays([who, value.cast(pa.float64()), former.cast(pa.float64())], schema=schema))
    except ColumnNotFound as error:
        error.next_step = f"name the columns {USER_ID}, {_VALUE} and, where there is one, {_BEFORE}"
        raise
    users.refuse_nulls()
    return pa.Table.from_batches(read, schema)


def _write(db: Any, out: Path) -> None:
    """Whole or not at all.

    Raises:
        EvaluationError: It cannot be written.
    """
    import duckdb

    kind = "PARQUET" if out.suffix == ".parquet" else "CSV, HEADER"
    try:
        with whole(out) as unfinished:
            place = str(unfinished).replace("'", "''")
            db.execute(f"COPY (SELECT {USER_ID}, side FROM sides ORDER BY {USER_ID}) TO '{place}' (FORMAT {kind})")
    except (OSError, duckdb.IOException) as error:
        raise EvaluationError(
            f"cannot be written: {error}", where=str(out), next_step="name a file in a folder that you may write to"
        ) from error


def _other_runs(settings: Settings, salt: str) -> list[str]:
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        specs = [run.spec for run in ledger.runs()]
    planned = ((spec.run_id, Holdout.of_run(spec.settings)) for spec in specs)
    return [run_id for run_id, one in planned if one is not None and one.salt != salt]
