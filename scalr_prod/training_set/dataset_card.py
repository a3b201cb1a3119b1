# SPDX-License-Identifier: Apache-2.0
"""Export of a training set as a folder of Parquet files with a card, as Hugging Face's ``datasets.load_dataset`` reads it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, SPLIT, TRAIN, USER_ID
from scalr_prod.training_set.splits import count_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


_CARD: Final = "README.md"
#: Meaning of the columns that are no features.
_MEANINGS: Final = {
    USER_ID: "the user, an id of the target domain",
    ITEM_ID: "the item, an id of the target domain",
    EVENT_TIMESTAMP: "time of the event; every feature is from strictly before it",
    "label": "1: the event happened, or is synthetic; 0: a sampled negative",
    "weight": "factor of the row's loss; see below",
    "is_synthetic": "whether the event was generated. Not a feature",
    "run_id": "the run that generated the event; null for real ones. Not a feature",
    "source_domain": "the domain that it was generated from; null for real ones. Not a feature",
    "held_out": "whether the user is held out of an experiment. Not a feature",
    "canary": "whether the user is in the first group of an experiment. Not a feature",
    SPLIT: "the split that the row belongs to. Not a feature",
}


def write_dataset_folder(splits: Mapping[str, Sequence[Path]], manifest: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    """Write ``data/SPLIT-00000-of-00001.parquet`` and the card ``README.md``.

    Args:
        splits: Name → Parquet files of each split, in order.
        manifest: Manifest of the version.
        folder: An empty folder.

    Returns:
        Number of rows, and of synthetic rows.
    """
    (folder / "data").mkdir(parents=True)
    for name, files in splits.items():
        for number, path in enumerate(files):
            shutil.copyfile(path, folder / "data" / f"{name}-{number:05d}-of-{len(files):05d}.parquet")
    counts = {name: count_rows(files) for name, files in splits.items()}
    (folder / _CARD).write_text(_card(splits, counts, manifest), encoding="utf-8")
    return tuple(sum(count[key] for count in counts.values()) for key in ("rows", "synthetic"))  # type: ignore[return-value]  # two keys


def _card(splits: Mapping[str, Sequence[Path]], counts: Mapping[str, Mapping[str, int]], manifest: Mapping[str, Any]) -> str:
    title = f"{manifest.get('name', 'training_set')} v{manifest['version']}"
    return "\n\n".join(
        [
            _front_matter(title, splits),
            f"# {title}",
            _purpose(manifest),
            "## Splits",
            _table(
                ["split", "from", "to", "rows", "real", "synthetic", "negatives"],
                [_split_row(name, count, manifest) for name, count in counts.items()],
            ),
            _rules(manifest),
            "## Weights",
            _weights(manifest, splits),
            "## Columns",
            _table(
                ["column", "type", "meaning"],
                [
                    [f"`{name}`", kind.replace("|", "\\|"), _MEANINGS.get(name, "feature")]
                    for name, kind in manifest["columns"].items()
                ],
            ),
            f"SHA-256 of everything that decided the rows: `{manifest['fingerprint']}`.\n",
        ]
    )


def _purpose(manifest: Mapping[str, Any]) -> str:
    return (
        "A training set of real and synthetic events of a recommender's target domain. Each row has features as they were known strictly "
        f"before its event. Labels are from {manifest.get('start') or 'the first event'} to {manifest['cutoff']}."
    )


def _front_matter(title: str, splits: Mapping[str, Sequence[Path]]) -> str:
    files = [f"  - split: {name}\n    path: data/{name}-*.parquet" for name in splits]
    head = ["---", f"pretty_name: {json.dumps(title)}", "configs:", "- config_name: default", "  data_files:"]
    return "\n".join([*head, *files, "---"])


def _split_row(name: str, count: Mapping[str, int], manifest: Mapping[str, Any]) -> list[str]:
    bounds = manifest.get("splits", {}).get(name, {"start": manifest.get("start"), "end": manifest["cutoff"]})
    numbers = [f"{count[key]:,}" for key in ("rows", "real", "synthetic", "negatives")]
    return [name, bounds["start"] or "the first event", bounds["end"], *numbers]


def _rules(manifest: Mapping[str, Any]) -> str:
    if "splits" not in manifest:
        return "Synthetic rows are for training only: leave them out of validation and test."
    return (
        f"A row is in the split in which it happened, if it was known by the split's end. Synthetic rows are in `{TRAIN}` only, and were "
        "generated from what was known by its end."
    )


def _weights(manifest: Mapping[str, Any], splits: Mapping[str, Sequence[Path]]) -> str:
    weights = list(dict.fromkeys(manifest["settings"]["lambda"]))
    shares = (
        f"λ = {weights[0]:g}" if len(weights) == 1 else f"λ of cold, sparse and dense users = {manifest['settings']['lambda']}"
    )
    runs = _runs([path for files in splits.values() for path in files])
    return (
        "Multiply the loss of each row by `weight`. A real event weighs 1, or its own weight; a negative 1. A synthetic event weighs "
        "its confidence times one factor, which is at most 1. All of them together weigh λ times as much as the real events of "
        f"`{TRAIN}`, or less. {shares}. Runs: {', '.join(f'`{run}`' for run in runs) or 'none'}."
    )


def _runs(files: Sequence[Path]) -> list[str]:
    import pyarrow.dataset as ds

    found: set[str] = set()
    for batch in ds.dataset([str(path) for path in files], format="parquet").to_batches(columns=["run_id"]):
        found |= set(batch.column(0).unique().to_pylist())
    return sorted(run for run in found if run is not None)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
