# SPDX-License-Identifier: Apache-2.0
"""Retention: remove staged parts, training sets, translators and table files that `[retention]` no longer keeps.

What killed processes of this package left in the folder of temporary files is removed as well.

Nothing is removed that a published window, a served translator or an unfinished run refers to. Tables that histories, runs and training
sets are built from get no new version, so that these do not become stale. The ledger keeps all its records.

A feature view of an earlier package version still has the events' source columns. They are moved to the provenance table first. This writes
the view anew, so training sets are built again.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import LeaseHeld
from scalr_prod.lake import open_project_lake
from scalr_prod.ledger import STAGING_FOLDERS, Ledger, PublicationStatus, RunState, run_folder
from scalr_prod.publication import (
    delete_provenance,
    has_source_columns,
    restore_source_versions,
    runs_in_view,
    runs_with_provenance,
    separate_provenance,
)
from scalr_prod.schemas import Table
from scalr_prod.workspace import ConsentState, oldest_staging_time, staging_folder, superseded_consent_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.config import RetentionSettings, Settings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Run


logger = logging.getLogger(__name__)

#: Runs in these states no longer need their staged parts.
_TERMINAL_STATES: Final = (RunState.PUBLISHED, RunState.ROLLED_BACK, RunState.REJECTED)
#: Name of this command's staging folder.
_STAGE: Final = "maintain"
#: Clocks of machines may differ by so much.
_CLOCK_SKEW: Final = timedelta(minutes=1)


_MIN_AGE_S: Final = 86_400.0
_SUFFIX: Final = "[a-z0-9_]{8}"
#: Scratch folders, used for minutes: of previews, of `scalr doctor`, and of the installation of a serving environment and its kernels.
_SCRATCH: Final = re.compile(rf"scalr-(doctor-|serving-|kernels-)?{_SUFFIX}")
#: Folders of sockets, of a local Triton and of Python's multiprocessing. A process that exits in order removes its sockets.
_SOCKETS: Final = re.compile(rf"(scalr-triton|pymp)-{_SUFFIX}")
#: Feast's folders of metrics; each file's name holds the id of its process.
_PROCESSES: Final = re.compile(rf"feast_metrics_{_SUFFIX}")
_PROCESS_FILE: Final = re.compile(r"[a-z_]+_(\d+)\.db")


def abandoned_folders() -> Iterator[Path]:
    """Yield the folders that killed processes left, sorted by name."""
    for folder in sorted(Path(tempfile.gettempdir()).iterdir()):
        try:
            if _is_abandoned(folder):
                yield folder
        except OSError:  # it has gone meanwhile, or cannot be read
            continue


def _is_abandoned(folder: Path) -> bool:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return False
    if _SCRATCH.fullmatch(folder.name):
        return _is_old(status, *(path.lstat() for path in folder.rglob("*")))
    if _SOCKETS.fullmatch(folder.name):
        sockets = list(folder.iterdir())
        return bool(sockets) and _is_old(status) and all(_is_dead_socket(path) for path in sockets)
    if _PROCESSES.fullmatch(folder.name):
        files = [_PROCESS_FILE.fullmatch(path.name) for path in folder.iterdir()]
        return bool(files) and _is_old(status) and all(file is not None and not _runs(int(file[1])) for file in files)
    return False


def _is_old(*statuses: os.stat_result) -> bool:
    return time.time() - max(status.st_mtime for status in statuses) > _MIN_AGE_S


def _is_dead_socket(path: Path) -> bool:
    """Return whether a path is a socket that nobody listens on.

    A datagram socket cannot connect to a stream socket, so a server that is alive does not notice.
    """
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return bool(probe.connect_ex(str(path)) == errno.ECONNREFUSED)


def _runs(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))


@dataclass(frozen=True)
class Removal:
    """One removed item, or in a dry run one that would be removed.

    Attributes:
        kind: ``run``, ``training_set``, ``translator``, ``consent``, ``columns``, ``provenance``, ``table`` or ``temporary_folder``.
        name: Its id, name or version.
        bytes: Size on disk; None for tables, where it is not looked up.
        files: Number of files.
        reason: Why it is removed.
    """

    kind: str
    name: str
    bytes: int | None
    files: int
    reason: str


@dataclass(frozen=True)
class RetentionReport(Jsonable):
    """Report of a maintenance run.

    Attributes:
        dry_run: Nothing was removed; the report lists what would be.
        removed: The removed items.
        bytes: Their total size on this machine's disk.
    """

    dry_run: bool
    removed: list[Removal]

    @property
    def bytes(self) -> int:
        """Return the total size on this machine's disk."""
        return sum(removal.bytes or 0 for removal in self.removed)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"dry_run": self.dry_run, "bytes": self.bytes} | super().to_json()


def apply_retention(settings: Settings, *, dry_run: bool = False) -> RetentionReport:
    """Remove what `[retention]` no longer keeps. Safe to repeat, and safe while runs are active.

    Args:
        settings: The project's settings.
        dry_run: Only report what would be removed.

    Raises:
        LakeError: A table's log cannot be read.
    """
    now, retention = datetime.now(UTC), settings.retention
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(settings))
        trash = None if dry_run else stack.enter_context(staging_folder(settings, _STAGE))
        removed = [
            *_remove_run_parts(ledger, settings.home, retention, now, trash),
            *_remove_training_sets(settings.home / "datasets", retention, now, trash),
            *_remove_translators(settings, ledger, now, trash),
            *_remove_consents(settings, ledger, now, trash),
            *_separate_provenance(settings, ledger, now, dry_run=dry_run),
            *_remove_provenance(settings, ledger, now, dry_run=dry_run),
            *_remove_table_files(settings, ledger, dry_run=dry_run),
            *_remove_temporary_folders(trash),
        ]
    report = RetentionReport(dry_run, removed)
    logger.info("%s %d items, %d bytes", "would remove" if dry_run else "removed", len(removed), report.bytes)
    return report


def _remove_run_parts(
    ledger: Ledger, home: Path, retention: RetentionSettings, now: datetime, trash: Path | None
) -> Iterator[Removal]:
    for run in ledger.runs.find():
        folders = [run_folder(home, run.run_id) / name for name in STAGING_FOLDERS]
        existing = [folder for folder in folders if folder.is_dir()]
        is_recent = now - run.updated_at < timedelta(days=retention.days)
        if run.state not in _TERMINAL_STATES or is_recent or not existing:
            continue
        reason = f"{run.state.value} {_describe_age(now, run.updated_at)}"
        try:
            with nullcontext() if trash is None else ledger.leases.hold(run.run_id):
                if trash is not None and ledger.runs.get(run.run_id).state is not run.state:  # resumed meanwhile
                    continue
                yield _remove_folders("run", run.run_id, existing, reason, trash)
        except LeaseHeld:
            logger.info("%s is active: its parts are kept", run.run_id)


def _remove_training_sets(datasets: Path, retention: RetentionSettings, now: datetime, trash: Path | None) -> Iterator[Removal]:
    from filelock import FileLock

    from scalr_prod.training_set import list_versions

    for home in sorted(path for path in datasets.glob("*") if path.is_dir()):
        with nullcontext() if trash is None else FileLock(home / ".lock"):
            existing = list_versions(home)
            built = {version: datetime.fromtimestamp(folder.stat().st_mtime, UTC) for version, folder in existing.items()}
            old = [
                version
                for version in sorted(existing)[: -retention.training_sets]
                if now - built[version] >= timedelta(days=retention.days)
            ]
            # Versions share unchanged files as hard links, so a file's space is freed only with its last link.
            counted = {_inode(path) for version in existing.keys() - set(old) for path in _list_files([existing[version]])}
            for version in old:
                reason = f"{len(existing)} versions, built {_describe_age(now, built[version])}"
                folders, name = [existing[version]], f"{home.name} v{version}"
                yield _remove_folders("training_set", name, folders, reason, trash, counted_inodes=counted)


def _remove_translators(settings: Settings, ledger: Ledger, now: datetime, trash: Path | None) -> Iterator[Removal]:
    from scalr_prod.serving import model_folder, versions_in_use
    from scalr_prod.translator import models_dir

    keep = timedelta(days=settings.retention.days)
    needed = versions_in_use(settings) | {run.spec.translator_version for run in _runs_in_use(ledger, now - keep)}
    records = sorted(ledger.models.find(), key=lambda record: record.version)
    for record in records[: -settings.retention.translators]:
        folders = [folder / str(record.version) for folder in (models_dir(settings.home), model_folder(settings))]
        existing = [folder for folder in folders if folder.is_dir()]
        if record.version in needed or not existing or now - record.created_at < keep:
            continue
        reason = f"{len(records)} versions, trained {_describe_age(now, record.created_at)}, not used by a published window"
        yield _remove_folders("translator", str(record.version), existing, reason, trash)


def _runs_in_use(ledger: Ledger, rejected_since: datetime) -> list[Run]:
    """Return the runs that have rows in the feature view, are unfinished, or were rejected recently."""
    published = {
        publication.run_id
        for publication in ledger.publications.find()
        if publication.status is not PublicationStatus.ROLLED_BACK
    }
    return [
        run
        for run in ledger.runs.find()
        if run.run_id in published
        or run.state not in _TERMINAL_STATES
        or (run.state is RunState.REJECTED and run.updated_at > rejected_since)
    ]


def _remove_consents(settings: Settings, ledger: Ledger, now: datetime, trash: Path | None) -> Iterator[Removal]:
    """Remove superseded states of the users' consent, except those of runs in use: a canary is widened by its run's state."""
    keep = timedelta(days=settings.retention.days)
    states = (ConsentState.from_run(run.spec.settings) for run in _runs_in_use(ledger, now - keep))
    needed = {state.digest for state in states if state is not None}
    for path in superseded_consent_files(settings.home):
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if path.stem not in needed and now - written >= keep:
            size = path.stat().st_size
            if trash is not None:
                path.unlink()
            yield Removal("consent", path.stem, size, 1, f"replaced, written {_describe_age(now, written)}")


def _separate_provenance(settings: Settings, ledger: Ledger, now: datetime, *, dry_run: bool) -> Iterator[Removal]:
    """Move the source columns of a view of an earlier package version to the provenance table."""
    lake, view = open_project_lake(settings), Table.SYNTHETIC_TARGET_EVENTS
    moved = has_source_columns(lake) and lake.hidden_version(view) is None
    if moved and not lake.is_readable(view, lake.version(view)):
        logger.warning("files of %s are lost: its source columns are moved when they are back", view.value)
        return
    if moved and not dry_run:
        keep = timedelta(days=settings.retention.days)
        restorable = [
            version for version in restore_source_versions(ledger, since=now - keep) if lake.is_readable(view, version)
        ]
        moved = separate_provenance(settings, lake, restorable=restorable)
    if moved:
        yield Removal("columns", view.value, None, 0, f"source columns, moved to {Table.SYNTHETIC_EVENT_PROVENANCE.value}")


def _remove_provenance(settings: Settings, ledger: Ledger, now: datetime, *, dry_run: bool) -> Iterator[Removal]:
    """Remove the provenance of runs that have no rows in the view and cannot get them back."""
    lake, view, keep = open_project_lake(settings), Table.SYNTHETIC_TARGET_EVENTS, timedelta(days=settings.retention.days)
    stored = runs_with_provenance(lake)
    is_kept = settings.publication.provenance == "separate"
    versions = [lake.version(view), *_pinned_versions(settings, ledger, lake, view)] if stored and is_kept else []
    if not all(lake.is_readable(view, version) for version in versions):
        logger.warning("files of %s are lost: the provenance of all its runs is kept", view.value)
        return
    needed = {run for version in versions for run in runs_in_view(lake, version)}
    for run in ledger.runs.find():
        is_recent = now - run.updated_at < keep
        if run.run_id not in stored or (is_kept and (run.run_id in needed or is_recent or run.state not in _TERMINAL_STATES)):
            continue
        reason = f"{run.state.value} {_describe_age(now, run.updated_at)}" if is_kept else '[publication] provenance = "none"'
        try:
            with nullcontext() if dry_run else ledger.leases.hold(run.run_id):
                if not dry_run:
                    if ledger.runs.get(run.run_id).updated_at != run.updated_at:  # published again meanwhile
                        continue
                    delete_provenance(lake, [run.run_id])
                yield Removal("provenance", run.run_id, None, 0, reason)
        except LeaseHeld:
            logger.info("%s is active: its provenance is kept", run.run_id)


def _remove_table_files(settings: Settings, ledger: Ledger, *, dry_run: bool) -> Iterator[Removal]:
    days, lake = settings.retention.files_days, open_project_lake(settings)
    for table in Table:
        if not lake.exists(table):
            continue
        pinned = partial(_pinned_versions, settings, ledger, lake, table)
        files = lake.vacuum(table, keep_days=days, keep_versions=pinned, dry_run=dry_run)
        if files:
            yield Removal("table", table.value, None, files, f"not used by any version of the last {days:g} days")


def _pinned_versions(settings: Settings, ledger: Ledger, lake: Lake, table: Table) -> list[int]:
    """Return the table versions to keep: those that unfinished runs, commands at work, rollbacks or enabling publication again need."""
    unfinished = [run for run in ledger.runs.find() if run.state not in _TERMINAL_STATES]
    versions = {run.spec.table_versions[table.value] for run in unfinished if table.value in run.spec.table_versions}
    if table is Table.SYNTHETIC_TARGET_EVENTS:
        versions |= {*restore_source_versions(ledger, since=datetime.now(UTC) - timedelta(days=settings.retention.days))}
    if at_work_since := oldest_staging_time(settings, ignore=_STAGE):
        versions |= {*lake.versions_since(table, at_work_since - _CLOCK_SKEW)}
    pins = [version for version in versions if lake.is_readable(table, version)]  # an erasure may have removed its files
    hidden = lake.hidden_version(table)
    return pins if hidden is None else [*pins, hidden]


def _remove_temporary_folders(trash: Path | None) -> Iterator[Removal]:
    for folder in abandoned_folders():
        try:
            removal = _remove_folders("temporary_folder", str(folder), [folder], "left by a killed process", trash)
        except FileNotFoundError:  # another project's maintenance removes it too
            continue
        yield removal


def _remove_folders(
    kind: str,
    name: str,
    folders: list[Path],
    reason: str,
    trash: Path | None,
    *,
    counted_inodes: set[tuple[int, int]] | None = None,
) -> Removal:
    """Delete folders, each atomically if it is on the file system of the home.

    Args:
        kind: See `Removal`.
        name: See `Removal`.
        folders: The folders to delete.
        reason: See `Removal`.
        trash: Folder to move them to, which is deleted at the end; None: a dry run, which deletes nothing.
        counted_inodes: Inodes to leave out of the size: still linked elsewhere, or already counted. Updated in place.
    """
    counted_inodes = set() if counted_inodes is None else counted_inodes
    sizes = {_inode(path): path.stat().st_size for path in _list_files(folders) if _inode(path) not in counted_inodes}
    counted_inodes |= sizes.keys()
    if trash is not None:
        for folder in folders:
            _move_or_delete(folder, Path(tempfile.mkdtemp(dir=trash)) / folder.name)
    return Removal(kind, name, sum(sizes.values()), len(sizes), reason)


def _list_files(folders: list[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def _inode(path: Path) -> tuple[int, int]:
    """Return a file's device and inode number, which its hard links share."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _move_or_delete(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(folder)  # on another file system, for example a model repository elsewhere


def _describe_age(now: datetime, then: datetime) -> str:
    return f"{(now - then) / timedelta(days=1):.0f} days ago"
