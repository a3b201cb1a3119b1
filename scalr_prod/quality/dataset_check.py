# SPDX-License-Identifier: Apache-2.0
"""Data-quality checks of any training set before training, by a Great Expectations suite."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.config import ComputeSettings
from scalr_prod.core.disk_errors import translate_disk_errors
from scalr_prod.errors import QualityError
from scalr_prod.features import FeatureRetrieval, retrieve_features
from scalr_prod.generation import Policy, policy_path
from scalr_prod.quality.dataset_source import DATASET_VIEW, DatasetSource, load_dataset, locate_dataset
from scalr_prod.quality.gx_engine import build_data_docs, open_data_context, validate_table
from scalr_prod.quality.suites import check_expectation_type, read_suite, resolve_rules
from scalr_prod.quality.verdict import RuleResult, Verdict
from scalr_prod.workspace import claim_directory, claim_home, staging_folder, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scalr_prod.config import Settings
    from scalr_prod.quality.suites import Suite, SuiteRule
    from scalr_prod.quality.verdict import Outcome


#: Folder of data docs without a project.
_FOLDER: Final = "scalr_quality"
_EXAMPLES: Final = 3
#: DuckDB errors that are the suite's fault. Incomparable types are the data set's.
_FAULTS_OF_A_SUITE: Final = ("Parser Error", "Catalog Error", "Referenced column", "NotImplemented")


def check_dataset(
    dataset: str | Path,
    *,
    suite: str = "training",
    settings: Settings | None = None,
    folder: str | Path | None = None,
    retrieval: FeatureRetrieval | None = None,
) -> Verdict:
    """Check a data set against a suite; DuckDB reads the rows within ``[compute] memory_mb``.

    >>> from scalr_prod.quality import check_dataset  # doctest: +SKIP
    >>> check_dataset("rows.parquet", suite="checks.yaml").require()

    Args:
        dataset: A Parquet file, folder or glob, a Delta table's folder, an fsspec URL of one of these, the folder of a version of
            a training set, or the name of a data set saved in Feast.
        suite: A suite's file, or its name: see `scalr_prod.quality.suites.read_suite`.
        settings: The project's settings, for its Feast registry, ``storage_options``, and home of data docs; None: no project.
        folder: Where results and data docs go; default: the project's home, or ``scalr_quality`` in the current folder.
        retrieval: The dataset is the name of a feature view or service, to be retrieved from this Feast repository. Default: it is none.

    Returns:
        The verdict, passed or not; `Verdict.require` raises if it failed.

    Raises:
        InputError: The data set is missing, cannot be read, or has no row.
        SettingsError: There is no such suite, or the file is invalid.
        FeatureStoreError: The Feast repository has no such view or service, or it cannot be retrieved from.
        EvaluationError: The project's policy cannot be read.
        QualityError: An expectation cannot be computed for any rows, or another check holds the data docs.
        ForeignFiles: The folder holds files that this package did not create.
        LakeError: The folder is not writable.
    """
    chosen = read_suite(suite, settings.base if settings else Path.cwd())
    found = None if retrieval is not None else locate_dataset(str(dataset), settings)
    compute = settings.compute if settings else ComputeSettings()
    with _place(settings, folder) as (home, staging):
        database = staging / "dataset.duckdb"
        if found is None:
            found = _retrieved(str(dataset), retrieval or FeatureRetrieval(), settings, staging)
        rows, columns = load_dataset(found, database, settings, memory_mb=compute.memory_mb)
        rules = resolve_rules(chosen, columns, measured=_is_measured(found, settings))
        with open_data_context(home) as (context, docs):
            results = _validate(context, chosen, rules, str(dataset), columns, database, compute.memory_mb)
    return Verdict(
        dataset=str(dataset),
        kind=found.kind,
        location=str(retrieval.repo or found.location) if retrieval is not None else found.location,
        suite=chosen.name,
        suite_file=chosen.file,
        passed=not any(result.outcome == "failed" for result in results),
        rows=rows,
        columns=tuple(columns),
        rules=results,
        docs=docs,
    )


def _retrieved(name: str, retrieval: FeatureRetrieval, settings: Settings | None, staging: Path) -> DatasetSource:
    """Retrieve a feature view or service into the staging folder."""
    rows = staging / "retrieved.parquet"
    retrieve_features(name, retrieval, settings, rows)
    return DatasetSource("feast", str(rows))


def _is_measured(found: DatasetSource, settings: Settings | None) -> bool:
    """Whether the training set's λ is the one that the project's evaluation chose."""
    if settings is None or found.kind != "training set" or not policy_path(settings).is_file():
        return False
    manifest = json.loads((Path(found.location).parent / "manifest.json").read_text(encoding="utf-8"))
    return bool(manifest.get("settings", {}).get("lambda") == list(Policy.read(policy_path(settings)).segment_weights))


@contextmanager
def _place(settings: Settings | None, folder: str | Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of results and a staging folder, both claimed."""
    if settings is not None and folder is None:
        claim_home(settings)
        with staging_folder(settings, "quality") as staging:
            yield settings.home, staging
        return
    home = Path(folder or _FOLDER).absolute()
    with translate_disk_errors(home):
        claim_directory(home, "quality", setting="--docs", names=("gx", "data_docs", "staging"))
        with temporary_folder(home / "staging", "quality-") as staging:
            yield home, staging


def _validate(
    context: Any,
    suite: Suite,
    rules: Sequence[SuiteRule],
    subject: str,
    columns: dict[str, str],
    database: Path,
    memory_mb: int,
) -> list[RuleResult]:
    """Run every rule in the suite's order, and write results and data docs."""
    from sqlalchemy import create_engine

    from scalr_prod.quality.duckdb_dialect import database_url

    name, url = _file_name(suite.name), database_url(database, memory_mb=memory_mb)
    identifier, found = validate_table(
        context,
        url,
        DATASET_VIEW,
        [_expectation(rule, suite.file) for rule in rules if not rule.missing],
        suite=name,
        subject=_file_name(subject),
        examples=_EXAMPLES,
    )
    engine = create_engine(url)
    try:
        results = [_outcome(rule, found.get(rule.name), columns, suite.file, engine) for rule in rules]
    finally:
        engine.dispose()
    build_data_docs(context, [name], [identifier])
    return results


def _expectation(rule: SuiteRule, file: str) -> Any:
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    where = f"{file}, {rule.name}"
    check_expectation_type(rule.type, list_registered_expectation_implementations(), where)
    try:
        return ExpectationConfiguration(
            type=rule.type,
            kwargs=dict(rule.kwargs),
            severity=rule.severity,
            description=rule.description,
            meta={"rule": rule.name},
        ).to_domain_obj()
    except Exception as error:  # pydantic's errors, and any from an expectation's own checks
        raise QualityError(
            f"Great Expectations rejected the expectation: {error}",
            where=where,
            next_step=f"correct its kwargs: see the documentation of {rule.type}",
        ) from error


def _outcome(rule: SuiteRule, entry: Any, columns: dict[str, str], file: str, engine: Any) -> RuleResult:
    if entry is None:
        return RuleResult(rule.name, rule.description, "skipped", reason=f"no column {', '.join(rule.missing)}")
    outcome: Outcome = "passed" if entry.success else "failed" if rule.severity == "critical" else "warning"
    absent = [name for name in rule.columns if name not in columns]
    if not entry.success and absent:
        return RuleResult(
            rule.name, rule.description, outcome, reason=f"no column {', '.join(absent)}; there are: {', '.join(columns)}"
        )
    problem = _problem(entry.exception_info or {})
    if problem is not None:
        if any(sign in problem for sign in _FAULTS_OF_A_SUITE):
            raise QualityError(
                f"the expectation cannot be computed: {problem}",
                where=f"{file}, {rule.name}",
                next_step="correct it, or name the columns that it needs in meta.needs",
            )
        return RuleResult(rule.name, rule.description, outcome, reason=f"cannot be computed: {problem}")
    result = entry.result
    examples = tuple(str(value) for value in (result.get("partial_unexpected_list") or [])[:_EXAMPLES])
    if rule.type == "unexpected_rows_expectation":
        shown = () if entry.success else _first_rows(engine, rule.kwargs["unexpected_rows_query"])
        return RuleResult(rule.name, rule.description, outcome, observed=result.get("observed_value"), examples=shown)
    if "unexpected_count" in result:
        checked, failed = int(result.get("element_count") or 0), int(result["unexpected_count"])
        return RuleResult(rule.name, rule.description, outcome, checked, failed, examples=examples)
    return RuleResult(rule.name, rule.description, outcome, observed=_plain(result.get("observed_value")))


def _first_rows(engine: Any, query: str) -> tuple[str, ...]:
    """Return the first rows that a query finds; Great Expectations keeps them only if it keeps every row."""
    shown = f"SELECT * FROM ({query.format(batch=DATASET_VIEW)}) LIMIT {_EXAMPLES}"
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(shown).mappings().fetchall()
    return tuple(str({name: _plain(value) for name, value in row.items()}) for row in rows)


def _problem(info: Any) -> str | None:
    """Return the first exception's message; Great Expectations reports one, or one per metric."""
    for entry in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if entry.get("raised_exception"):
            message = str(entry.get("exception_message") or "failed")
            return next((line.strip() for line in message.splitlines() if line.strip()), "failed")[:400]
    return None


def _file_name(text: str) -> str:
    """Convert the end of a path or URL to a file name for data docs."""
    return re.sub(r"[^\w.=-]+", "_", text)[-80:].strip("_") or DATASET_VIEW


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
