# SPDX-License-Identifier: Apache-2.0
"""Erasure from files below a project's home: runs, training sets, evaluations, reports, data docs, logs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.hashing import file_sha256
from scalr_prod.errors import ForgettingError
from scalr_prod.ledger import STAGING_FOLDERS
from scalr_prod.operations.erasure.scrubbing import RewrittenFile, Subjects, overwrite_file
from scalr_prod.workspace import HOME_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


#: Entries of the home that other modules handle or that contain no ids: definitions, model files, markers.
_SKIPPED_ENTRIES: Final = frozenset({"feature_repo", "forgotten", "lake", "models", "staging", "triton"})
_DELTA_LOG: Final = "_delta_log"
#: Name prefixes of markers and secrets.
_SKIPPED_PREFIXES: Final = (".scalr-", "secret")
_TEXT_SUFFIXES: Final = frozenset({"", ".csv", ".err", ".html", ".json", ".jsonl", ".log", ".md", ".out", ".txt"})


def erase_from_files(home: Path, subjects: Subjects, *, staged_parts: bool) -> Counter[str]:
    """Remove the ids from every file that the project wrote below its home; return counts by top-level folder.

    Files of others in the home are left alone.

    Args:
        home: The project's home.
        subjects: Users or items to erase.
        staged_parts: Also delete the staged parts of runs, whose inputs are no longer readable.
    """
    removed: Counter[str] = Counter()
    if staged_parts:
        removed["staged parts"] = _delete_staged_parts(home)
    removed["evaluations"] = _delete_evaluations(home, subjects)
    rewritten: dict[str, RewrittenFile] = {}
    for path in _iter_files(home):
        if path.suffix == ".parquet":
            with _damaged_file_errors(path):
                changed = subjects.scrub_parquet(path)
            if changed is not None:
                rewritten[changed.former_sha256] = changed
                removed[path.relative_to(home).parts[0]] += changed.removed
        elif path.suffix in _TEXT_SUFFIXES:
            removed[path.relative_to(home).parts[0]] += subjects.scrub_file(path)
    # Always, since an earlier call may have been interrupted between rewriting a file and updating its manifest.
    _update_manifests(home, rewritten)
    return removed


def ids_in_rows(folder: Path, subjects: Subjects) -> set[int | str] | None:
    """Return the ids that have rows in a version of a training set; None if its files are gone.

    Args:
        folder: Folder of the version.
        subjects: The ids to look for.

    Raises:
        ForgettingError: A file is damaged.
    """
    files = sorted((folder / "rows").glob("*.parquet"))
    if not files:
        return None
    found: set[int | str] = set()
    for path in files:
        with _damaged_file_errors(path):
            found |= subjects.find_in_parquet(path)
    return found


@contextmanager
def _damaged_file_errors(path: Path) -> Iterator[None]:
    """Report errors of a damaged file with its path."""
    try:
        yield
    except ValueError as error:  # of pyarrow or json
        raise ForgettingError(
            f"the file is damaged: {str(error).splitlines()[0][:200]}",
            where=str(path),
            next_step="delete it or restore it from a backup, then repeat the command: finished work is kept",
        ) from error


def _iter_files(home: Path) -> Iterator[Path]:
    for top in (home / name for name in HOME_ENTRIES if name not in _SKIPPED_ENTRIES):
        if top.is_symlink():
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if _DELTA_LOG in path.parts:  # in the lake of an evaluation, which is deleted as a whole if it contains an id
                continue
            if path.is_file() and not path.is_symlink() and not path.name.startswith(_SKIPPED_PREFIXES):
                yield path


def _delete_staged_parts(home: Path) -> int:
    deleted = 0
    for folder in (home / "runs").glob("run_*"):
        for staged in [*(folder / name for name in STAGING_FOLDERS), *folder.glob(".accepted-*")]:
            if staged.is_dir():
                deleted += sum(path.suffix == ".parquet" for path in staged.rglob("*"))
                shutil.rmtree(staged)
    return deleted


def _delete_evaluations(home: Path, subjects: Subjects) -> int:
    """Delete the isolated homes of evaluations that contain an id; they are rebuilt when needed."""
    deleted = 0
    for isolated in (home / "evaluations").glob("*"):
        if (
            isolated.is_dir()
            and (isolated / "lake").is_dir()
            and any(_contains_subjects(subjects, path) for path in isolated.rglob("*.parquet"))
        ):
            shutil.rmtree(isolated)
            deleted += 1
    return deleted


def _contains_subjects(subjects: Subjects, path: Path) -> bool:
    with _damaged_file_errors(path):
        return subjects.is_in_parquet(path)


def _update_manifests(home: Path, rewritten: dict[str, RewrittenFile]) -> None:
    """Update gate reports and manifests to the rewritten files."""
    documents = [*(home / "runs").glob("run_*/gate.json"), *(home / "datasets").glob("*/v*/manifest.json")]
    for path in documents:
        with _damaged_file_errors(path):
            content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "gate.json":
            changed = _update_checksums(content, rewritten) | _update_gate_counts(path.parent, content)
        else:
            changed = _update_checksums(content, rewritten) | _update_training_set_counts(path.parent, content)
        if changed:
            overwrite_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _update_checksums(content: Any, rewritten: dict[str, RewrittenFile]) -> bool:
    """Replace the size and checksum of each rewritten file, wherever its previous checksum is recorded."""
    if not isinstance(content, list | dict):
        return False
    changed = False
    for value in content.values() if isinstance(content, dict) else content:
        changed |= _update_checksums(value, rewritten)
    if isinstance(content, list):
        return changed
    file = rewritten.get(str(content.get("sha256")))
    if file is None:
        return changed
    content.update({name: getattr(file, name) for name in ("rows", "bytes", "sha256") if name in content})
    return True


def _update_gate_counts(folder: Path, content: dict[str, Any]) -> bool:
    """Recount a run's accepted rows from its files."""
    report = content.get("report") or {}
    if not report.get("passed"):
        return False
    changed, accepted = False, 0
    for file in report.get("files", []):
        path = folder / file["path"]
        if path.is_file() and (rows := _row_count(path)) != file["rows"]:  # an earlier call was interrupted before this update
            file.update({"rows": rows, "sha256": file_sha256(path)})
            changed = True
        accepted += file["rows"]
    if report.get("files") and report.get("accepted") != accepted:
        report["accepted"], changed = accepted, True
    return changed


def _update_training_set_counts(folder: Path, content: dict[str, Any]) -> bool:
    """Recount a training set's rows, and update files that an earlier, interrupted call rewrote."""
    import pyarrow.dataset as ds

    from scalr_prod.training_set import count_rows

    changed = False
    for name, file in content.get("files", {}).items():
        path = folder / name
        if path.is_file() and path.stat().st_size != file["bytes"]:
            file.update({"rows": _row_count(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)})
            changed = True
    rows = folder / "rows"
    if not rows.is_dir() or not {"rows", "real", "synthetic", "negatives"} <= content.keys():
        return changed
    data = ds.dataset(rows, format="parquet")
    if data.count_rows() == content["rows"]:
        return changed
    for part in content.get("splits", {}).values():
        part.update(count_rows(folder / name for name in part["files"]))
    content |= count_rows(sorted(rows.rglob("*.parquet")))
    return True


def _row_count(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)
