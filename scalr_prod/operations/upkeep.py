# SPDX-License-Identifier: Apache-2.0
"""Remove what `[retention]` no longer keeps: staged parts, old training sets and translators, files that no table version uses.

Nothing goes that a published window, a served translator or a run that has not ended refers to. No table gets a new version by it,
so that histories, runs and training sets that were made from the tables stay what they are. The ledger keeps its account of everything.
"""

from __future__ import annotations

import errno
import logging
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.binding import open_own
from scalr_prod.contracts import Table
from scalr_prod.duck import staging_folder
from scalr_prod.errors import LeaseHeld
from scalr_prod.ledger import STAGED, Ledger, PublicationStatus, RunState, run_folder
from scalr_prod.replaced import restoring_versions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scalr_prod.lake import Lake
    from scalr_prod.settings import Settings

__all__ = ["Removal", "UpkeepReport", "maintain"]

logger = logging.getLogger(__name__)

#: A run in one of these needs its staged parts no more.
_ENDED: Final = (RunState.PUBLISHED, RunState.ROLLED_BACK, RunState.REJECTED)


@dataclass(frozen=True)
class Removal:
    """One thing that was removed, or would be.

    Attributes:
        kind: ``run``, ``training_set``, ``translator`` or ``table``.
        name: Which one.
        bytes: What it took on disk; of a table's files, None: their store is not asked.
        files: How many files.
        reason: In one sentence.
    """

    kind: str
    name: str
    bytes: int | None
    files: int
    reason: str


@dataclass(frozen=True)
class UpkeepReport:
    """What was removed.

    Attributes:
        dry_run: Nothing was: this is what would be.
        removed: One entry each.
        bytes: All of it that lay on this machine's disk.
    """

    dry_run: bool
    removed: list[Removal]

    @property
    def bytes(self) -> int:
        """All of it that lay on this machine's disk."""
        return sum(one.bytes or 0 for one in self.removed)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"dry_run": self.dry_run, "bytes": self.bytes, "removed": [asdict(one) for one in self.removed]}


def maintain(settings: Settings, *, dry_run: bool = False) -> UpkeepReport:
    """Remove what `[retention]` no longer keeps. Safe beside runs at work, and to repeat.

    Args:
        settings: The project's settings.
        dry_run: Only say what would go.

    Raises:
        LakeError: A table's log cannot be read.
    """
    now = datetime.now(UTC)
    removed = [
        *_runs(settings, now, dry_run=dry_run),
        *_training_sets(settings, now, dry_run=dry_run),
        *_translators(settings, now, dry_run=dry_run),
        *_tables(settings, dry_run=dry_run),
    ]
    report = UpkeepReport(dry_run, removed)
    logger.info("%s %d things, %d bytes", "would remove" if dry_run else "removed", len(removed), report.bytes)
    return report


def _runs(settings: Settings, now: datetime, *, dry_run: bool) -> Iterator[Removal]:
    keep = timedelta(days=settings.retention.days)
    with Ledger.open(settings) as ledger:
        for run in ledger.runs():
            folders = [run_folder(settings, run.run_id) / name for name in STAGED]
            there = [folder for folder in folders if folder.is_dir()]
            if run.state not in _ENDED or now - run.updated_at < keep or not there:
                continue
            try:
                with ExitStack() as held:
                    if not dry_run:
                        held.enter_context(ledger.lease(run.run_id))
                        if ledger.run(run.run_id).state is not run.state:  # somebody has gone on with it meanwhile
                            continue
                    yield _remove(
                        settings, "run", run.run_id, there, f"{run.state.value} {_ago(now, run.updated_at)}", dry_run=dry_run
                    )
            except LeaseHeld:
                logger.info("%s is at work and stays as it is", run.run_id)


def _training_sets(settings: Settings, now: datetime, *, dry_run: bool) -> Iterator[Removal]:
    from filelock import FileLock

    from scalr_prod.training_set.manifest import versions

    for home in sorted(path for path in (settings.home / "datasets").glob("*") if path.is_dir()):
        with ExitStack() as held:
            if not dry_run:
                held.enter_context(FileLock(home / ".lock"))
            there = versions(home)
            made = {version: datetime.fromtimestamp(folder.stat().st_mtime, UTC) for version, folder in there.items()}
            old = [
                version
                for version in sorted(there)[: -settings.retention.training_sets]
                if now - made[version] >= timedelta(days=settings.retention.days)
            ]
            # A part that versions share is one file with a name in each of them: it goes with the last name.
            counted = {_number(path) for version in there.keys() - set(old) for path in _files([there[version]])}
            for version in old:
                reason = f"{len(there)} versions, built {_ago(now, made[version])}"
                folders, name = [there[version]], f"{home.name} v{version}"
                yield _remove(settings, "training_set", name, folders, reason, counted=counted, dry_run=dry_run)


def _translators(settings: Settings, now: datetime, *, dry_run: bool) -> Iterator[Removal]:
    from scalr_prod.serving.promotions import versions_in_use
    from scalr_prod.serving.repository import model_folder
    from scalr_prod.translator.versions import models_folder

    needed = versions_in_use(settings) | _published_by(settings, now)
    with Ledger.open(settings) as ledger:
        records = sorted(ledger.model_versions(), key=lambda one: one.version)
    for record in records[: -settings.retention.translators]:
        folders = [folder / str(record.version) for folder in (models_folder(settings), model_folder(settings))]
        there = [folder for folder in folders if folder.is_dir()]
        if record.version in needed or not there or now - record.created_at < timedelta(days=settings.retention.days):
            continue
        reason = f"{len(records)} versions, trained {_ago(now, record.created_at)}, of no published window"
        yield _remove(settings, "translator", str(record.version), there, reason, dry_run=dry_run)


def _published_by(settings: Settings, now: datetime) -> set[int]:
    """Translators of the runs whose rows stand in the feature view, that have not ended, or that the gate refused of late."""
    keep = timedelta(days=settings.retention.days)
    with Ledger.open(settings) as ledger:
        standing = {one.run_id for one in ledger.publications() if one.status is not PublicationStatus.ROLLED_BACK}
        return {
            run.spec.translator_version
            for run in ledger.runs()
            if run.run_id in standing
            or run.state not in _ENDED
            or (run.state is RunState.REJECTED and now - run.updated_at < keep)
        }


def _pinned(settings: Settings, lake: Lake) -> dict[str, list[int]]:
    """By table, the versions that runs which have not ended read, that a rollback brings rows back from, or that are set aside."""
    view = Table.SYNTHETIC_TARGET_EVENTS
    aside = lake.aside(view) if lake.exists(view) else None
    pins: dict[str, list[int]] = {view.value: [] if aside is None else [aside]}
    with Ledger.open(settings) as ledger:
        for run in ledger.runs():
            for table, version in run.spec.table_versions.items() if run.state not in _ENDED else ():
                if lake.readable(Table(table), version):  # users may have been forgotten since
                    pins.setdefault(table, []).append(version)
        replaced = restoring_versions(ledger, since=datetime.now(UTC) - timedelta(days=settings.retention.days))
        pins[view.value] += [version for version in replaced if lake.readable(view, version)]
    return pins


def _tables(settings: Settings, *, dry_run: bool) -> Iterator[Removal]:
    lake, days = open_own(settings), settings.retention.files_days
    pins = _pinned(settings, lake)
    for table in Table:
        if not lake.exists(table):
            continue
        files = lake.tidy(table, keep_days=days, keep_versions=pins.get(table.value, ()), dry_run=dry_run)
        if files:
            yield Removal("table", table.value, None, files, f"no version of the last {days:g} days uses them")


def _remove(
    settings: Settings,
    kind: str,
    name: str,
    folders: list[Path],
    reason: str,
    *,
    counted: set[tuple[int, int]] | None = None,
    dry_run: bool,
) -> Removal:
    """Take folders out of sight in one step each, where they lie on home's file system, then delete them.

    Args:
        settings: The project's settings.
        kind: See `Removal`.
        name: See `Removal`.
        folders: What goes.
        reason: See `Removal`.
        counted: Files that stay under another name or were counted under one: they give no room. Those of the folders are added.
        dry_run: Nothing goes.
    """
    counted = set() if counted is None else counted
    sizes = {_number(path): path.stat().st_size for path in _files(folders) if _number(path) not in counted}
    counted |= sizes.keys()
    if not dry_run:
        with staging_folder(settings, "maintain") as scratch:
            for number, folder in enumerate(folders):
                _move(folder, scratch / str(number))
    return Removal(kind, name, sum(sizes.values()), len(sizes), reason)


def _files(folders: list[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def _number(path: Path) -> tuple[int, int]:
    """A file's number, whatever its name."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _move(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(folder)  # on another file system, such as a model repository elsewhere


def _ago(now: datetime, then: datetime) -> str:
    return f"{(now - then) / timedelta(days=1):.0f} days ago"
