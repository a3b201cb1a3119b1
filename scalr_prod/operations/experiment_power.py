# SPDX-License-Identifier: Apache-2.0
"""Power of the holdout experiment: its minimum detectable effect (MDE), and the days that it takes, from past target events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import EvaluationError, SettingsError
from scalr_prod.generation import SEGMENTS, apply_policy
from scalr_prod.lake import Lake
from scalr_prod.operations import always_valid
from scalr_prod.operations.holdout_experiment import MIN_USERS, segment_sql
from scalr_prod.schemas import EVENT_TIMESTAMP, USER_ID, Table
from scalr_prod.workspace import open_duckdb, staging_folder, timestamp_literal

if TYPE_CHECKING:
    from datetime import datetime

    import numpy.typing as npt

    from scalr_prod.config import Settings


#: Standard errors between the interval's end and the true effect for a power of 80 %.
_POWER_Z: Final = 0.8416
#: Half the width of the fixed-horizon interval, in standard errors.
_FIXED_Z: Final = 1.96
#: Lengths of the experiment to report, in days, and the longest one to look for.
_DAYS: Final = (7, 14, 28, 56, 84)
_MAX_DAYS: Final = 365
#: Maximum length, in days, of the two periods at the end of the log in which means and variances are measured. The pre-experiment period is
#: as long.
_PERIOD_DAYS: Final = 28.0
_DAY_S: Final = 86_400


@dataclass(frozen=True)
class DetectableEffect:
    """Minimum detectable effect (MDE) at 80 % power of an experiment of a length, in per cent of the mean outcome.

    Attributes:
        days: Length of the experiment.
        mde_pct: With always-valid intervals.
        with_pre_value_pct: The same with outcomes of the period before as ``pre_value`` (CUPED).
        at_one_look_pct: With ``pre_value`` and the fixed-horizon interval, read once at the end.
    """

    days: int
    mde_pct: float
    with_pre_value_pct: float
    at_one_look_pct: float


@dataclass(frozen=True)
class SegmentPower:
    """What an experiment can find of a segment of users.

    Attributes:
        segment: ``all``, ``cold``, ``sparse`` or ``dense``: by the number of real target events before the measured periods.
        users: Number of users.
        events_per_user_day: Mean number of target events of a user on a day.
        mde_pct: `DetectableEffect.with_pre_value_pct` after 28 days; None without events.
        days_needed: Days until the effect in question is found with ``pre_value``; None: more than a year.
    """

    segment: str
    users: int
    events_per_user_day: float
    mde_pct: float | None
    days_needed: int | None


@dataclass(frozen=True)
class PowerReport(Jsonable):
    """Power of an experiment whose outcome is a user's number of target events.

    Attributes:
        holdout: Share of users that are held out.
        effect_pct: The effect that ``days_needed`` is for, in per cent of the mean outcome.
        users: Users of the source domains.
        active_users_per_day: Users with a target event on a day, on average.
        period_days: Days of each of the two periods that it was measured on.
        days_needed: Days until the power for the effect is 80 %, with ``pre_value``; None: more than a year.
        by_days: Minimum detectable effects by length of the experiment, for all users; empty without target events in the periods.
        by_segment: The same for each segment of which both sides would have enough users.
    """

    holdout: float
    effect_pct: float
    users: int
    active_users_per_day: float
    period_days: float
    days_needed: int | None
    by_days: list[DetectableEffect]
    by_segment: list[SegmentPower]


@dataclass(frozen=True)
class OutcomeModel:
    """Mean and variance of a user's outcome over a number of days: users differ by a constant rate, and days vary around it.

    The variance over t days is ``between`` × t² + ``within`` × t.

    Attributes:
        users: Number of users.
        daily_mean: Mean outcome of a user on a day.
        between: Variance of the users' rates.
        within: Variance of a day around its user's rate.
    """

    users: int
    daily_mean: float
    between: float
    within: float

    @classmethod
    def from_periods(cls, first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], days: float) -> OutcomeModel:
        """Fit the model to each user's outcomes in two consecutive periods, float64 [N] each, of ``days`` days each."""
        one, two = float(first.var() + second.var()) / 2, float((first + second).var())
        between = min(max((two - 2 * one) / 2, 0.0), one)  # the covariance of both periods
        return cls(len(first), float((first + second).mean()) / (2 * days), between / days**2, (one - between) / days)

    def variance(self, days: float) -> float:
        """Return the variance of outcomes over a number of days."""
        return self.between * days**2 + self.within * days

    def detectable(self, z: float, days: float, holdout: float, *, period: float | None = None) -> float:
        """Return the minimum detectable effect over a number of days, as a share of the mean.

        Args:
            z: Half the interval's width in standard errors.
            days: Length of the experiment.
            holdout: Share of held-out users.
            period: Days of the pre-experiment value; None without one.
        """
        variance = self.variance(days)
        if period is not None and variance:
            variance -= (self.between * days * period) ** 2 / self.variance(period)
        error = float(np.sqrt(variance / (self.users * holdout * (1 - holdout))))
        return (z + _POWER_Z) * error / (self.daily_mean * days)

    def days_needed(self, effect: float, holdout: float, period: float) -> int | None:
        """Return the days after which an effect, as a share of the mean, is found with a pre-experiment value; None: over a year."""
        if not self.daily_mean:
            return None
        lengths = range(1, _MAX_DAYS + 1)
        return next(
            (d for d in lengths if self.detectable(always_valid.boundary(d), d, holdout, period=period) <= effect), None
        )


def measure_power(settings: Settings, *, effect_pct: float = 5.0, holdout: float | None = None) -> PowerReport:
    """Estimate which effects on a user's number of target events an experiment can find, from the logs.

    Args:
        settings: ``[experiment]``.
        effect_pct: The effect to find, in per cent of the mean outcome, over 0.
        holdout: Share of held-out users, over 0 and under 1; default: ``[experiment] holdout``.

    Raises:
        SettingsError: No share of held-out users is given.
        TableNotFound: Nothing has been ingested yet.
        EvaluationError: The target log is empty or covers less than two days; or the policy file is not valid.
    """
    share = settings.experiment.holdout if holdout is None else holdout
    if not 0 < share < 1 or effect_pct <= 0:
        raise SettingsError(
            f"the share of held-out users must be between 0 and 1, and the effect above 0; they are {share:g} and {effect_pct:g} %",
            where="[experiment] holdout",
            next_step="set [experiment] holdout = 0.05, or pass both: scalr experiment power --holdout 0.05 --effect 5",
        )
    lake = Lake.open(settings)
    sparse_below = apply_policy(settings)[0].downstream.sparse_below
    with staging_folder(settings, "experiment") as folder, open_duckdb(settings, folder) as db:
        db.register("events", lake.dataset(Table.SOURCE_EVENTS))
        db.register("target", lake.dataset(Table.TARGET_EVENTS))
        earliest, latest = db.sql(f"SELECT min({EVENT_TIMESTAMP}), max({EVENT_TIMESTAMP}) FROM target").fetchall()[0]
        seconds = 0.0 if latest is None else (latest - earliest).total_seconds()
        period = min(_PERIOD_DAYS, seconds / _DAY_S / 2)
        if period < 1:
            raise EvaluationError(
                "the target log covers less than two days",
                where=str(Table.TARGET_EVENTS),
                next_step="ingest some weeks of target events",
            )
        segment, first, second, active = _read_periods(db, latest, period, sparse_below)
    masks = {"all": np.ones(len(segment), dtype=bool)} | {name: segment == name for name in SEGMENTS}
    enough = {name: mask for name, mask in masks.items() if name == "all" or mask.sum() * min(share, 1 - share) >= MIN_USERS}
    models = {name: OutcomeModel.from_periods(first[mask], second[mask], period) for name, mask in enough.items()}
    by_segment = [
        SegmentPower(
            name,
            model.users,
            round(model.daily_mean, 5),
            _percent(model.detectable(always_valid.boundary(28), 28, share, period=period)) if model.daily_mean else None,
            model.days_needed(effect_pct / 100, share, period),
        )
        for name, model in models.items()
    ]
    everybody = models["all"]
    by_days = [
        DetectableEffect(
            days,
            _percent(everybody.detectable(always_valid.boundary(days), days, share)),
            _percent(everybody.detectable(always_valid.boundary(days), days, share, period=period)),
            _percent(everybody.detectable(_FIXED_Z, days, share, period=period)),
        )
        for days in (_DAYS if everybody.daily_mean else ())
    ]
    return PowerReport(
        holdout=share,
        effect_pct=effect_pct,
        users=everybody.users,
        active_users_per_day=round(active, 1),
        period_days=round(period, 1),
        days_needed=everybody.days_needed(effect_pct / 100, share, period),
        by_days=by_days,
        by_segment=by_segment,
    )


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _read_periods(
    db: Any, latest: datetime, period: float, sparse_below: int
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Read the outcomes of the last two periods of the target log.

    Returns:
        Of each user of the source domains: the segment as of the beginning, and the number of target events in either period; and the mean
        number of users with a target event on a day.
    """
    from datetime import timedelta

    begin, middle = (latest - timedelta(days=n * period) for n in (2, 1))
    inside, later = (f"{EVENT_TIMESTAMP} > {timestamp_literal(moment)}" for moment in (begin, middle))
    query = f"""
        WITH users AS (SELECT DISTINCT {USER_ID}::VARCHAR AS {USER_ID} FROM events),
        counts AS (
            SELECT {USER_ID}::VARCHAR AS {USER_ID}, count(*) FILTER (NOT {later}) AS first, count(*) FILTER ({later}) AS second
            FROM target WHERE {inside} GROUP BY {USER_ID})
        SELECT coalesce(segment, '{SEGMENTS[0]}') AS segment, coalesce(first, 0)::DOUBLE AS first, coalesce(second, 0)::DOUBLE AS second
        FROM users LEFT JOIN counts USING ({USER_ID}) LEFT JOIN ({segment_sql(begin, sparse_below)}) USING ({USER_ID})"""
    columns = db.sql(query).fetchnumpy()
    active = db.sql(f"SELECT count(DISTINCT ({USER_ID}, {EVENT_TIMESTAMP}::DATE)) FROM target WHERE {inside}").fetchall()[0][0]
    segment, first, second = (np.asarray(columns[name]) for name in ("segment", "first", "second"))
    return segment.astype(str), first, second, active / (2 * period)
