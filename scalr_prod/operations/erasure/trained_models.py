# SPDX-License-Identifier: Apache-2.0
"""Registered models that were trained on rows of users erased since, and when to retrain them.

Training jobs register the version of the training set that they read (`DatasetRepository.record_use`). An erasure records which versions
had the user's rows. A model trained on such a version is affected even if it was registered after the erasure: an erasure rewrites the
files in place, and a registration does not record which files were read. A later version of the model clears it if all of its training sets
were built after the erasure.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from scalr_prod.core.file_lock import file_lock
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ForgettingError
from scalr_prod.ledger import Ledger
from scalr_prod.operations.erasure.files import ids_in_rows
from scalr_prod.workspace import SuppressionList

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from scalr_prod.config import Settings
    from scalr_prod.ledger import DatasetRecord
    from scalr_prod.operations.erasure.scrubbing import Subjects
    from scalr_prod.workspace import SuppressedId


@dataclass(frozen=True)
class AffectedModel(Jsonable):
    """A version of a model that was trained on rows of users who were erased since.

    Attributes:
        model: The model's name.
        version: Its version.
        dataset: The training set's name.
        dataset_version: The training set's version, which held the rows.
        users: Number of these users; only those for whom no version was retrained yet, if there are any.
        retrain_by: Time (UTC) by which a version without their rows is due.
        retrained_as: Version of the model whose training sets were all built after the erasures, or None if retraining is due.
    """

    model: str
    version: str
    dataset: str
    dataset_version: int
    users: int
    retrain_by: datetime
    retrained_as: str | None


def models_to_retrain(settings: Settings) -> list[AffectedModel]:
    """Return the model versions that learned from erased users and that no later version replaces, in order of registration.

    Raises:
        ForgettingError: The suppression list cannot be read.
        LedgerError: The ledger cannot be read.
    """
    suppressed = SuppressionList.open(settings)
    if not any(entry.datasets for entry in suppressed.users.values()):
        return []
    with Ledger.open(settings) as ledger:
        affected = affected_models(ledger, suppressed.users.values(), grace_days=settings.forgetting.model_grace_days)
    return [model for model in affected if model.retrained_as is None]


def affected_models(ledger: Ledger, erased: Iterable[SuppressedId], *, grace_days: float) -> list[AffectedModel]:
    """Return the model versions that were trained on rows of erased users, in order of registration.

    Args:
        ledger: The project's ledger.
        erased: Entries of the users in the suppression list.
        grace_days: Days from an erasure to the date by which a model is to be retrained.
    """
    uses = ledger.datasets.uses()
    erasures: dict[tuple[str, int], list[SuppressedId]] = defaultdict(list)
    for entry in erased:
        for name, versions in entry.datasets.items():
            for version in versions:
                erasures[name, version].append(entry)
    built_at = {(record.name, record.version): record.created_at for record in ledger.datasets.find()} if erasures else {}
    datasets: dict[str, dict[str, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    for use in uses:
        datasets[use.model][use.model_version].append((use.dataset, use.dataset_version))

    def retrained_version(model: str, affected: str, entry: SuppressedId) -> str | None:
        """Return the first version registered after an affected one whose training sets were all built after an erasure."""
        versions = list(datasets[model])
        for version in versions[versions.index(affected) + 1 :]:
            read = datasets[model][version]
            if all(built_at[one] > entry.at and one[1] not in entry.datasets.get(one[0], ()) for one in read):
                return version
        return None

    found = []
    for use in uses:
        entries = erasures[use.dataset, use.dataset_version]
        retrained = {entry.digest: retrained_version(use.model, use.model_version, entry) for entry in entries}
        if due := [entry for entry in entries if retrained[entry.digest] is None] or entries:
            last = max(entries, key=lambda entry: entry.at)
            found.append(
                AffectedModel(
                    model=use.model,
                    version=use.model_version,
                    dataset=use.dataset,
                    dataset_version=use.dataset_version,
                    users=len(due),
                    retrain_by=min(entry.at for entry in due) + timedelta(days=grace_days),
                    retrained_as=retrained[last.digest] if due == entries and None not in retrained.values() else None,
                )
            )
    return found


def datasets_with(
    home: Path, records: Sequence[DatasetRecord], subjects: Subjects, first_events: Mapping[int | str, datetime]
) -> dict[int | str, dict[str, tuple[int, ...]]]:
    """Return the versions of training sets that hold rows of each user, by name.

    Args:
        home: The project's home.
        records: Recorded versions. Where the files of one are gone, it counts for users whose first event is before it was built.
        subjects: The users.
        first_events: Time of each user's first event in the lake (UTC); users without events are missing.

    Raises:
        ForgettingError: A file of a training set is damaged.
    """
    found: dict[int | str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for record in records:
        users = ids_in_rows(home / "datasets" / record.name / f"v{record.version}", subjects)
        if users is None:
            users = {user for user, first in first_events.items() if first < record.created_at}
        for user in users:
            found[user][record.name] = (*found[user].get(record.name, ()), record.version)
    return found


@contextmanager
def no_training_set_builds(home: Path) -> Iterator[None]:
    """Hold the locks of all training sets, so that no version with the rows of users is completed while they are erased.

    Raises:
        ForgettingError: A training set is being built.
    """
    with ExitStack() as stack:
        for folder in sorted(path for path in (home / "datasets").glob("*") if path.is_dir()):
            busy = ForgettingError(
                "a training set is being built, from rows that are to be erased",
                where=str(folder),
                next_step="wait until it is done, then repeat the command",
            )
            stack.enter_context(file_lock(folder / ".lock", busy))
        yield
