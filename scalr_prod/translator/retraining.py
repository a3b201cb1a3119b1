# SPDX-License-Identifier: Apache-2.0
"""Whether a whole run would train a translator, and why; and the version that ``[translator] pin`` or ``retrain_every`` keeps."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import InputError, TranslatorNotFound
from scalr_prod.lake import Lake, stale_since
from scalr_prod.schemas import Table
from scalr_prod.translator.data.event_log import training_consent
from scalr_prod.translator.registry import find_by_fingerprint, find_trained_between, load_version, version_numbers
from scalr_prod.translator.training_inputs import (
    compute_fingerprint,
    count_events,
    default_trained_until,
    table_versions,
    training_inputs,
)
from scalr_prod.workspace import ConsentState, SuppressionList

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.translator.registry import TranslatorVersion


#: A log that has grown by this share since a version was trained makes the next one due, whatever the version's age.
_MAX_GROWTH: Final = 0.1

#: Inputs of a training → the settings section that they come from.
_SECTIONS: Final = {"histories": "histories", "generation": "generation", "settings": "translator"}


@dataclass(frozen=True)
class RetrainingReason:
    """Why a version would be trained.

    Attributes:
        text: What differs from the latest version's training.
        is_upgrade: Whether this version of the package trains differently; False: events or settings have changed.
    """

    text: str
    is_upgrade: bool


@dataclass(frozen=True)
class KeptVersion:
    """An existing version that `scalr run` uses instead of training a new one.

    Attributes:
        version: The version.
        reason: Why it is kept, and when the next training is due.
    """

    version: TranslatorVersion
    reason: str


def find_kept_version(settings: Settings) -> KeptVersion | None:
    """Return the version that `scalr run` keeps, even if events were added since its training, or None if it has to call `train`.

    With ``[translator] pin`` it is the latest version that the run may use. Otherwise it is the one trained up to the latest time, if that
    is less than ``[translator] retrain_every`` days before the time that the run needs, its settings are the current ones, none of its
    events was corrected or erased, no user whose consent it required has withdrawn it, and neither log has grown by a tenth. Only times of
    events are compared, so the same windows keep the same versions in a backfill.

    Raises:
        TableNotFound: Nothing was ingested yet.
    """
    until = default_trained_until(settings).astimezone(UTC)
    if settings.translator.pin:
        pinned = _find_pinned_version(settings, until)
        return None if pinned is None else KeptVersion(pinned, "[translator] pin = true")
    days = settings.translator.retrain_every
    candidates = find_trained_between(settings, until - timedelta(days=days), until)
    inputs = _inputs_of_any_time(training_inputs(settings, until)) if candidates else {}
    for version in candidates:
        if _inputs_of_any_time(version.manifest.get("inputs", {})) == inputs and _has_only_grown(settings, version, until):
            due = version.trained_until + timedelta(days=days)
            return KeptVersion(
                version,
                f"trained until {version.trained_until.isoformat()}; runs train again from {due.isoformat()} on, or once a log has "
                f"grown by {_MAX_GROWTH:.0%} ([translator] retrain_every = {days:g} days)",
            )
    return None


def _find_pinned_version(settings: Settings, until: datetime) -> TranslatorVersion | None:
    found = (load_version(settings, number) for number in reversed(version_numbers(settings.home)))
    return next((version for version in found if version.trained_until <= until), None)


def _inputs_of_any_time(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "until"}


def _has_only_grown(settings: Settings, version: TranslatorVersion, until: datetime) -> bool:
    """Return whether events were only added since a version was trained, and fewer than a tenth."""
    read: Mapping[str, Any] = version.manifest.get("events", {})  # former packages did not count
    if SuppressionList.open(settings).retraining_deadline(version.version, grace_days=0) is not None:
        return False
    if _has_withdrawn_users(settings, version):
        return False
    if stale_since(Lake.open(settings), version.manifest.get("data_versions", {}), version.trained_until) is not None:
        return False
    now = count_events(settings, until, table_versions(settings))
    return read.keys() == now.keys() and all(
        before["id"] == now[name]["id"] and before["rows"] <= now[name]["rows"] < before["rows"] * (1 + _MAX_GROWTH)
        for name, before in read.items()
    )


def _has_withdrawn_users(settings: Settings, version: TranslatorVersion) -> bool:
    """Return whether users whose consent a version required have withdrawn it since; true if its consents are no longer stored."""
    required, now = ConsentState.from_run(version.manifest), training_consent(settings)
    if required is None or now is None or required == now:
        return False
    try:
        return required.count_withdrawn(settings.home, now) > 0
    except InputError:
        return True


def retraining_reason(settings: Settings, *, upgrades_only: bool = False) -> RetrainingReason | None:
    """Predict whether `scalr run` would train a translator, and return why, or None if it would reuse a version, or there is none yet.

    `pipeline.steps.translator` decides: by `find_kept_version`, then by `training.train`, which reuses a version with the same inputs. The
    logs are read only if settings and table versions do not settle the question.

    Args:
        settings: The project's settings.
        upgrades_only: Look only for differences in this version of the package.

    Raises:
        TableNotFound: Nothing was ingested yet.
    """
    if find_kept_version(settings) is not None:
        return None
    try:
        latest = load_version(settings)
    except TranslatorNotFound:
        return None
    until = default_trained_until(settings).astimezone(UTC)
    inputs, versions = training_inputs(settings, until), table_versions(settings)
    reason = _difference(latest, inputs, versions)
    if reason is None and training_consent(settings) != ConsentState.from_run(latest.manifest):
        reason = RetrainingReason("users have given or withdrawn their consent", is_upgrade=False)
    if reason is None or (upgrades_only and not reason.is_upgrade):
        return None
    with tempfile.TemporaryDirectory(prefix="scalr-") as folder:  # a check writes nothing into the project
        fingerprint = compute_fingerprint(settings, inputs, versions, until, Path(folder))
    return None if find_by_fingerprint(settings, fingerprint) is not None else reason


def _difference(latest: TranslatorVersion, inputs: Mapping[str, Any], versions: Mapping[str, int]) -> RetrainingReason | None:
    """Return what may differ from the latest version's training."""
    former: Mapping[str, Any] | None = latest.manifest.get("inputs")
    trained = f"version {latest.version} was trained"
    read = latest.manifest.get("data_versions", {})
    # Histories are made from the events.
    rows_differ = any(read.get(name) != number for name, number in versions.items() if name != Table.SOURCE_USER_HISTORY)
    if former == inputs and not rows_differ:
        return None
    if former is None:
        if rows_differ:
            return RetrainingReason(f"events have changed since {trained}", is_upgrade=False)
        return RetrainingReason(f"{trained} by an earlier version of this package, or with other settings", is_upgrade=True)
    if former["recipe"] != inputs["recipe"]:
        recipe = f"recipe {former['recipe']}, now {inputs['recipe']}"
        return RetrainingReason(f"this version of the package trains it differently ({recipe})", is_upgrade=True)
    changed = _changed_settings(former, inputs)
    found = [f"{', '.join(changed)} changed"] if changed else []
    if former["until"] != inputs["until"]:
        found.append(f"{trained} until {former['until']}, this run may use events until {inputs['until']}")
    elif rows_differ:
        found.append("events have changed")
    return RetrainingReason("; ".join(found), is_upgrade=False)


def _changed_settings(former: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    found = []
    for part, section in _SECTIONS.items():
        before, now = former[part], inputs[part]
        found += [f"[{section}] {key}" for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if not found and former.get("estimators") != inputs.get("estimators"):
        found.append("an estimator of another package")
    if former.get("types") != inputs.get("types"):
        found.append("[domains.target] types")
    if former.get("recommended") != inputs.get("recommended"):
        found.append("[translator] recommended_events or [domains.target.columns] recommended_by")
    return found
