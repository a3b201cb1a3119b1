# SPDX-License-Identifier: Apache-2.0
"""Privacy of a run's rows: membership inference, source inference, anonymity risks, and evidence."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.atomic_io import write_json
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import RunNotFound
from scalr_prod.ledger import Ledger, run_folder
from scalr_prod.privacy.anonymity_risks import measure_risks
from scalr_prod.privacy.evidence import measure_evidence
from scalr_prod.privacy.membership import PUBLISHED_ATTACKS, measure_membership
from scalr_prod.privacy.promise import PROMISE
from scalr_prod.privacy.run_rows import find_run_files, open_run_rows, read_run_rows
from scalr_prod.privacy.shadow_draws import ShadowDraws
from scalr_prod.privacy.source_inference import SourceInference, measure_newcomers_source_inference, measure_source_inference
from scalr_prod.translator import load_version, open_worker_pool
from scalr_prod.workspace import open_duckdb, staging_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.privacy.attack_statistics import AttackRisk, AttackSuccess


_SAYS: Final = {
    "own_rows": "the user's own published rows",
    "closest_row_set": "the most similar rows of another user",
    "item_counts": "how often other users' rows name the user's items",
    "newcomers_closest_row_set": "the most similar rows of a newcomer",
    "newcomers_item_counts": "how often newcomers' rows name the user's items",
    "control": "control: most similar rows, by two sets trained on the user",
    "newcomers_control": "control: most similar rows of a newcomer, by two sets trained on the user",
    "own_rows_without_folds": "own rows drawn by another fold's parameters (not published)",
    "translator_scores": "probabilities of the user's items (not published)",
}

_SOURCES: Final = {
    "real_rows": "the user's real target events (control)",
    "published_rows": "published rows",
    "with_provenance": "published rows and their source items",
}
_RISKS: Final = {
    "singling_out": "singling-out: two items that exactly one user had",
    "linkability": "linkability: two halves of a user's events",
    "inference": "inference: a user's item from the user's other items",
}


@dataclass(frozen=True)
class PrivacyReport(Jsonable):
    """Privacy of a run's rows.

    Attributes:
        run_id: The run.
        mode: ``backfill`` or ``causal``.
        membership: Attack → its success, see `membership`; empty if there are too few users.
        source_inference: See `source_inference`, or None if there are too few users.
        newcomers_source_inference: The same of newcomers, or None if there are too few of them.
        risks: Attack → its risk, see `anonymity_risks`; empty if there are too few users.
        evidence: k → share of the rows whose item fewer than k other users had in the training events.
        seconds: Wall-clock time.
        promise: What is and is not promised.
    """

    run_id: str
    mode: str
    membership: Mapping[str, AttackSuccess]
    source_inference: SourceInference | None
    newcomers_source_inference: SourceInference | None
    risks: Mapping[str, AttackRisk]
    evidence: Mapping[str, float]
    seconds: float = 0.0
    promise: str = PROMISE

    def to_summary(self) -> dict[str, Any]:
        """Summarize the report as tables."""
        tables = describe_privacy(self.to_json())
        return {
            "run": f"{self.run_id} ({self.mode})",
            "whose target events trained the translator?": tables["membership"] or "not measured: too few users",
            "whose source history is it?": tables["source_inference"] or "not measured: too few users",
            "is a user singled out, linked or inferred?": tables["risks"]
            or "not measured: too few users, or a causal run with align = true",
            "items that few other users had": tables["evidence"],
            "promised": self.promise,
        }


def describe_privacy(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of a `PrivacyReport`, as JSON, as tables in words.

    They are ``membership``, ``source_inference``, ``risks`` and ``evidence``. Reports of earlier versions have fewer figures.
    """
    return {
        "membership": [
            {
                "attack": says,
                "users": report["membership"][name]["users"],
                "AUC": _interval(report["membership"][name]["auc"]),
                "true positives at 1 % false positives": _interval(report["membership"][name]["true_positives"]),
            }
            for name, says in _SAYS.items()
            if name in report["membership"]
        ],
        "source_inference": [
            {
                "guessed from": f"{whose}{says}",
                "users": found["users"],
                f"picked among {found['candidates']}": _interval(found[name]),
            }
            for whose, found in (
                ("", report["source_inference"]),
                ("newcomers: ", report.get("newcomers_source_inference")),
            )
            if found
            for name, says in _SOURCES.items()
            if found[name]
        ],
        "risks": [
            {
                "attack": says,
                "guesses": found["guesses"],
                "right": f"{found['attack_rate']:.2%}",
                "right by the control": f"{found['control_rate']:.2%}",
                "right by chance": f"{found['baseline_rate']:.2%}",
                "risk": _interval(found["risk"]) + (", no better than chance" if found["has_failed"] else ""),
            }
            for name, says in _RISKS.items()
            if (found := report.get("risks", {}).get(name))
        ],
        "evidence": [
            {"other users": f"fewer than {k}", "share of rows": f"{share:.2%}"}
            for k, share in sorted(report["evidence"].items(), key=lambda pair: int(pair[0]))
        ],
    }


def _interval(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"{estimate['value']:.3f} ({low:.3f} … {high:.3f})"


def privacy_file(settings: Settings, run_id: str) -> Path:
    """Return the file that keeps a run's latest `PrivacyReport` as JSON."""
    return run_folder(settings.home, run_id) / "privacy.json"


def measure_privacy(settings: Settings, run_id: str | None = None) -> PrivacyReport:
    """Measure the rows of a run, accepted ones or candidates, and write the report to its folder.

    Args:
        settings: The project's settings.
        run_id: Default: the run that changed last.

    Raises:
        RunNotFound: No such run, or none at all.
        GenerationError: The run has no rows.
        TranslatorNotFound: Its translator version no longer exists.
        LakeError: A table version that the run read no longer exists.
    """
    started = time.perf_counter()
    with Ledger.open(settings) as ledger:
        runs = ledger.runs.find() if run_id is None else [ledger.runs.get(run_id)]
    if not runs:
        raise RunNotFound("there is no run yet", where="the ledger", next_step="scalr run")
    spec = max(runs, key=lambda run: run.updated_at).spec
    with _opened(settings, spec) as connection:
        version = load_version(settings, spec.translator_version)
        rows = read_run_rows(connection, settings, version)
        shadow = ShadowDraws.open(connection, settings, spec, rows)
        newcomers = ShadowDraws.open(connection, settings, spec, rows, newcomers_of=shadow)
        report = PrivacyReport(
            spec.run_id,
            spec.mode,
            measure_membership(rows, shadow, newcomers, mode=spec.mode, is_aligned=_is_aligned(spec)),
            measure_source_inference(rows, shadow, mode=spec.mode),
            measure_newcomers_source_inference(rows, newcomers),
            measure_risks(rows, shadow, mode=spec.mode, is_aligned=_is_aligned(spec)),
            measure_evidence(connection),
        )
    report = replace(report, seconds=round(time.perf_counter() - started, 2))
    write_json(privacy_file(settings, spec.run_id), report.to_json())
    return report


@dataclass(frozen=True)
class RunAttacks:
    """Success of the attacks on rows in given files, which the quality gate bounds.

    Attributes:
        membership: Those of `PUBLISHED_ATTACKS`; empty if there are too few users, or if they were not asked for.
        risks: See `PrivacyReport`; empty likewise.
    """

    membership: Mapping[str, AttackSuccess] = field(default_factory=dict)
    risks: Mapping[str, AttackRisk] = field(default_factory=dict)


def attack_run(
    settings: Settings, spec: RunSpec, files: list[Path], *, membership: bool = True, risks: bool = True
) -> RunAttacks:
    """Attack a run's rows in given files.

    Args:
        settings: The project's settings.
        spec: The run.
        files: Parquet files of its rows.
        membership: Whether to measure membership inference.
        risks: Whether to measure singling-out, linkability and inference.

    Raises:
        TranslatorNotFound: The run's translator version no longer exists.
    """
    with _opened(settings, spec, files) as connection:
        rows = read_run_rows(connection, settings, load_version(settings, spec.translator_version))
        shadow, found = ShadowDraws.open(connection, settings, spec, rows), RunAttacks()
        options: dict[str, Any] = {"mode": spec.mode, "is_aligned": _is_aligned(spec)}
        if membership:
            newcomers = ShadowDraws.open(connection, settings, spec, rows, newcomers_of=shadow)
            success = measure_membership(rows, shadow, newcomers, **options)
            found = replace(found, membership={name: success[name] for name in PUBLISHED_ATTACKS if name in success})
        if risks:
            found = replace(found, risks=measure_risks(rows, shadow, **options))
    return found


def _is_aligned(spec: RunSpec) -> bool:
    return bool(spec.settings["generation"].get("align"))


@contextmanager
def _opened(settings: Settings, spec: RunSpec, files: list[Path] | None = None) -> Iterator[DuckDBPyConnection]:
    # The pool is for its limit of one BLAS thread: several wait for one another.
    with staging_folder(settings, "privacy") as folder, open_duckdb(settings, folder) as connection, open_worker_pool(1):
        open_run_rows(connection, settings, spec, find_run_files(settings, spec) if files is None else files)
        yield connection
