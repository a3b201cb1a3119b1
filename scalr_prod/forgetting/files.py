# SPDX-License-Identifier: Apache-2.0
"""Ids out of what lies below a project's home beside the lake: runs, training sets, evaluations, reports, data docs, logs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import ForgettingError
from scalr_prod.forgetting.traces import FileOfRows, Ids, write_over
from scalr_prod.generation.parts import sha256_of
from scalr_prod.ledger import STAGED
from scalr_prod.ownership import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scalr_prod.settings import Settings

__all__ = ["forget_in_files"]

#: Below home, and looked after elsewhere, or without a word of users: definitions, model files, markers.
_NOT_HERE: Final = frozenset({"feature_repo", "forgotten", "lake", "models", "staging", "triton"})
_DELTA_LOG: Final = "_delta_log"
#: Markers and secrets.
_OWN: Final = (".scalr-", "secret")
_TEXT: Final = frozenset({"", ".csv", ".err", ".html", ".json", ".jsonl", ".log", ".md", ".out", ".txt"})


def forget_in_files(settings: Settings, users: Ids, *, parts: bool) -> Counter[str]:
    """Take them out of every file that was written below the home; gives what went, by the folder it was in.

    What else lies there is somebody's own.

    Args:
        settings: The project's settings.
        users: Who, or what, is forgotten.
        parts: Whether staged parts of runs go too: what they were made from can be read no more.
    """
    found: Counter[str] = Counter()
    if parts:
        found["staged parts"] = _drop_parts(settings)
    found["evaluations"] = _drop_evaluations(settings, users)
    renewed: dict[str, FileOfRows] = {}
    for path in _files(settings.home):
        if path.suffix == ".parquet":
            with _readable(path):
                changed = users.in_parquet(path)
            if changed is not None:
                renewed[changed.former] = changed
                found[path.relative_to(settings.home).parts[0]] += changed.removed
        elif path.suffix in _TEXT:
            found[path.relative_to(settings.home).parts[0]] += users.in_file(path)
    # Also where a former call was cut off between a file and what says which file it is.
    _renew(settings, renewed)
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name a file that is damaged."""
    try:
        yield
    except ValueError as error:  # pyarrow's and json's
        raise ForgettingError(
            f"the file is damaged: {str(error).splitlines()[0][:200]}",
            where=str(path),
            next_step="delete it, or bring it back from a copy, and repeat the command: what is done is kept",
        ) from error


def _files(home: Path) -> Iterator[Path]:
    for top in (home / name for name in NAMES if name not in _NOT_HERE):
        if top.is_symlink():
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if _DELTA_LOG in path.parts:  # of an evaluation's lake: it went whole where it held one of them
                continue
            if path.is_file() and not path.is_symlink() and not path.name.startswith(_OWN):
                yield path


def _drop_parts(settings: Settings) -> int:
    there = 0
    for folder in (settings.home / "runs").glob("run_*"):
        for part in [*(folder / name for name in STAGED), *folder.glob(".accepted-*")]:
            if part.is_dir():
                there += sum(path.suffix == ".parquet" for path in part.rglob("*"))
                shutil.rmtree(part)
    return there


def _drop_evaluations(settings: Settings, users: Ids) -> int:
    """Isolated homes of evaluations that hold one of them, whole: they are made again when they are needed."""
    gone = 0
    for home in (settings.home / "evaluations").glob("*"):
        if home.is_dir() and (home / "lake").is_dir() and any(_holds(users, path) for path in home.rglob("*.parquet")):
            shutil.rmtree(home)
            gone += 1
    return gone


def _holds(users: Ids, path: Path) -> bool:
    with _readable(path):
        return users.held_by(path)


def _renew(settings: Settings, renewed: dict[str, FileOfRows]) -> None:
    """Let gate reports and manifests name the files that there are now."""
    documents = [*(settings.home / "runs").glob("run_*/gate.json"), *(settings.home / "datasets").glob("*/v*/manifest.json")]
    for path in documents:
        with _readable(path):
            content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "gate.json":
            changed = _named_anew(content, renewed) | _audited(path.parent, content)
        else:
            changed = _named_anew(content, renewed) | _verified(path.parent, content)
        if changed:
            write_over(path, (json.dumps(content, indent=1) + "\n").encode())


def _named_anew(content: Any, renewed: dict[str, FileOfRows]) -> bool:
    """Put the new size and checksum wherever a file's former one is named."""
    if not isinstance(content, list | dict):
        return False
    changed = False
    for one in content.values() if isinstance(content, dict) else content:
        changed |= _named_anew(one, renewed)
    if isinstance(content, list):
        return changed
    file = renewed.get(str(content.get("sha256")))
    if file is None:
        return changed
    content.update({name: getattr(file, name) for name in ("rows", "bytes", "sha256") if name in content})
    return True


def _audited(folder: Path, content: dict[str, Any]) -> bool:
    """Count a run's accepted rows anew, by its files."""
    report = content.get("report") or {}
    if not report.get("passed"):
        return False
    changed, left = False, 0
    for file in report.get("files", []):
        path = folder / file["path"]
        if path.is_file() and (rows := _rows_of(path)) != file["rows"]:  # a former call was cut off before it came here
            file.update({"rows": rows, "sha256": sha256_of(path)})
            changed = True
        left += file["rows"]
    if report.get("files") and report.get("accepted") != left:
        report["accepted"], changed = left, True
    return changed


def _verified(folder: Path, content: dict[str, Any]) -> bool:
    """Count a training set's rows anew, and name the files that a former call changed before it was cut off."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    changed = False
    for name, file in content.get("files", {}).items():
        path = folder / name
        if path.is_file() and path.stat().st_size != file["bytes"]:
            file.update({"rows": _rows_of(path), "bytes": path.stat().st_size, "sha256": sha256_of(path)})
            changed = True
    rows = folder / "rows"
    if not rows.is_dir() or not {"rows", "real", "synthetic", "negatives"} <= content.keys():
        return changed
    data = ds.dataset(rows, format="parquet")
    if data.count_rows() == content["rows"]:
        return changed
    table = data.to_table(columns=["label", "is_synthetic"])
    positive = pc.greater(table["label"], 0)
    synthetic = pc.sum(pc.and_(positive, table["is_synthetic"])).as_py() or 0
    positives = pc.sum(positive).as_py() or 0
    content |= {
        "rows": len(table),
        "real": positives - synthetic,
        "synthetic": synthetic,
        "negatives": len(table) - positives,
    }
    return True


def _rows_of(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)
