# SPDX-License-Identifier: Apache-2.0
"""Great Expectations sessions: results and data docs on disk, telemetry off."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from scalr_prod.core.file_lock import file_lock
from scalr_prod.errors import QualityError
from scalr_prod.workspace import claim_home, staging_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings


#: Results are stored on disk; suites come from this package and are stored in memory.
_STORES: Final = {
    "expectations_store": ("ExpectationsStore", None),
    "validation_results_store": ("ValidationResultsStore", "validations"),
    "validation_definition_store": ("ValidationDefinitionStore", None),
}
_LOCK_TIMEOUT_S: Final = 300
#: Number of latest results that the data docs' index lists: each is read again for every page. Pages of older results stay.
_LISTED: Final = 30


@dataclass(frozen=True)
class ExpectationSpec:
    """One expectation: rule name, description, and GX's class and arguments."""

    rule: str
    description: str
    expectation: str
    arguments: Mapping[str, Any]
    severity: Literal["critical", "warning"] = "critical"

    @classmethod
    def all_true(cls, rule: str, description: str, *, severity: Literal["critical", "warning"] = "critical") -> ExpectationSpec:
        """Expect every value of the boolean column ``rule`` to be True."""
        return cls(rule, description, "ExpectColumnValuesToBeInSet", {"column": rule, "value_set": [True]}, severity)


@dataclass(frozen=True)
class ExpectationOutcome:
    """GX's result of one check."""

    rule: str
    success: bool
    checked: int
    failed: int


class GxSession:
    """An open data context; `open_gx_session` locks its folder for one process.

    Args:
        context: Great Expectations' context.
        docs: Index page of its data docs.
        folder: Scratch folder for the DuckDB files that Great Expectations reads.
        memory_mb: DuckDB's memory limit.
    """

    def __init__(self, context: Any, docs: str, folder: Path, *, memory_mb: int) -> None:
        self._context, self._folder, self._memory_mb = context, folder, memory_mb
        self._results: dict[str, Any] = {}
        self.docs = docs

    def validate(
        self, suite: str, subject: str, rows: pa.Table | str, checks: Sequence[ExpectationSpec]
    ) -> list[ExpectationOutcome]:
        """Validate rows and store the result.

        Args:
            suite: Name of the suite of these checks; new in this session.
            subject: Name of the result in the data docs, such as a run's id.
            rows: A table, or a DuckDB query that reads files alone.
            checks: The expectations.

        Returns:
            One finding per check, in order.
        """
        import duckdb

        from scalr_prod.quality.duckdb_dialect import database_url

        database = self._folder / f"{suite}.duckdb"
        with duckdb.connect(str(database)) as connection:
            if isinstance(rows, str):
                connection.execute(f"CREATE VIEW {suite} AS {rows}")
            else:
                connection.from_arrow(rows).create(suite)
            (count,) = connection.execute(f"SELECT count(*) FROM {suite}").fetchall()[0]
        url = database_url(database, memory_mb=self._memory_mb)
        self._results[suite], found = validate_table(
            self._context, url, suite, map(_expectation, checks), suite=suite, subject=subject
        )
        return [_finding(check.rule, found[check.rule], count) for check in checks]

    def annotate(self, suite: str, notes: str) -> None:
        """Add notes, in Markdown, to a suite's page in the data docs; call before `build_docs`."""
        found = self._context.suites.get(suite)
        found.notes = notes
        found.save()

    def build_docs(self) -> None:
        """Add all results to the data docs, in one build because most of its cost is fixed."""
        build_data_docs(self._context, self._results, self._results.values())


@contextmanager
def open_gx_session(settings: Settings) -> Iterator[GxSession]:
    """Open the project's data context: results in ``<home>/gx``, data docs in ``<home>/data_docs``.

    Raises:
        ForeignFiles: The home holds files that this package did not create.
        QualityError: Another audit has held the data context's lock for too long.
    """
    claim_home(settings)
    with staging_folder(settings, "gx") as folder, open_data_context(settings.home) as (context, docs):
        inspector = GxSession(context, docs, folder, memory_mb=settings.compute.memory_mb)
        yield inspector
        inspector.build_docs()


@contextmanager
def open_data_context(folder: Path) -> Iterator[tuple[Any, str]]:
    """Open Great Expectations' context in a folder, locked for one process; yield it and the index page of its data docs.

    Args:
        folder: Holds results in ``gx`` and data docs in ``data_docs``; the caller has claimed it.

    Raises:
        QualityError: Another audit has held the data context's lock for too long.
    """
    # Set before the import, or the library sends usage events.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    # It logs 200 INFO lines about what it does not register, which schedulers would show.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    with warnings.catch_warnings():  # deprecated imports inside the library
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
        from great_expectations.data_context.types.base import DataContextConfig

    root, docs = folder / "gx", folder / "data_docs"
    root.mkdir(parents=True, exist_ok=True)
    config = DataContextConfig(
        config_version=4.0,
        stores={
            name: {"class_name": kind, "store_backend": _backend(root, folder)} for name, (kind, folder) in _STORES.items()
        },
        expectations_store_name="expectations_store",
        validation_results_store_name="validation_results_store",
        data_docs_sites={
            "gate": {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                "store_backend": _backend(docs, ""),
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "validation_results_limit": _LISTED},
                # Otherwise the index's limit also applies to what is built.
                "site_section_builders": {"validations": {"validation_results_limit": None}},
            }
        },
        analytics_enabled=False,
        progress_bars={"globally": False},
    )
    busy = QualityError(
        f"another audit has been writing to the data docs for over {_LOCK_TIMEOUT_S} s",
        where=str(root / ".lock"),
        next_step="wait for it to finish, then run the command again",
    )
    with file_lock(root / ".lock", busy, timeout_s=_LOCK_TIMEOUT_S):
        yield gx.get_context(mode="ephemeral", project_config=config), str(docs / "index.html")


def validate_table(
    context: Any,
    url: str,
    table: str,
    expectations: Iterable[Any],
    *,
    suite: str,
    subject: str,
    examples: int = 0,
) -> tuple[Any, dict[str, Any]]:
    """Validate a table of a DuckDB file by SQL, and store the result.

    Args:
        context: Great Expectations' context.
        url: URL of the file, from `database_url`; nothing else may have it open.
        table: Its table or view.
        expectations: The expectations, each with its rule in ``meta``.
        suite: Name of the suite; new in this context.
        subject: Name of the result in the data docs.
        examples: Failing values to keep per expectation, at most.

    Returns:
        Identifier of the result, and each expectation's result by rule.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    # For each type check it logs that it falls back from a DuckDB module to SQLAlchemy's types, which is intended.
    logging.getLogger("great_expectations.expectations.type_comparison").setLevel(logging.ERROR)
    source = context.data_sources.add_sql(table, connection_string=_escape_variables(url), create_temp_table=False)
    rows = source.add_table_asset(table, table_name=table).add_batch_definition_whole_table("all")
    chosen = context.suites.add(gx.ExpectationSuite(name=suite, expectations=list(expectations)))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=suite, data=rows, suite=chosen))
    wanted = {"result_format": "BASIC", "partial_unexpected_count": examples}
    run_id = gx.RunIdentifier(run_name=subject)
    engine = source.get_execution_engine().engine
    try:
        # Without a checkpoint, which would compare all definitions with the stored ones several times more.
        result = definition.run(result_format=wanted, run_id=run_id)
    finally:
        engine.dispose()
    identifier = ValidationResultIdentifier(ExpectationSuiteIdentifier(suite), run_id, result.batch_id)
    return identifier, {entry.expectation_config.meta["rule"]: entry for entry in result.results}


def build_data_docs(context: Any, suites: Iterable[str], results: Iterable[Any]) -> None:
    """Build the data docs of suites, by name, and results, by identifier.

    Raises:
        OSError: A page cannot be written.
    """
    from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier

    library = logging.getLogger("great_expectations.render.renderer.site_builder")
    library.addFilter(_reraise_os_error)
    try:
        context.build_data_docs(resource_identifiers=[*map(ExpectationSuiteIdentifier, suites), *results])
    finally:
        library.removeFilter(_reraise_os_error)


def _reraise_os_error(_: logging.LogRecord) -> bool:
    """Raise the error of the disk that Great Expectations logs with its traceback where it should fail."""
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        raise error
    return True


def _expectation(check: ExpectationSpec) -> Any:
    import great_expectations.expectations as library

    return getattr(library, check.expectation)(
        **check.arguments,
        severity=check.severity,
        meta={"rule": check.rule, "notes": {"format": "markdown", "content": [f"**{check.rule}**: {check.description}"]}},
    )


def _backend(root: Any, folder: str | None) -> dict[str, str]:
    if folder is None:
        return {"class_name": "InMemoryStoreBackend"}
    return {"class_name": "TupleFilesystemStoreBackend", "base_directory": _escape_variables(str(root / folder))}


def _escape_variables(text: str) -> str:
    """Escape ``$``: Great Expectations replaces ``$name`` in its configuration by a variable."""
    return text.replace("$", r"\$")


def _finding(rule: str, entry: Any, rows: int) -> ExpectationOutcome:
    exception = entry.exception_info or {}
    if exception.get("raised_exception") or entry.result.get("unexpected_count") is None:  # null for a table without rows
        return ExpectationOutcome(rule, bool(entry.success), rows, 0 if entry.success else rows)
    # GX does not count nulls. Row verdicts are never null; a null figure is a failure.
    missing = int(entry.result.get("missing_count") or 0)
    failed = int(entry.result["unexpected_count"] or 0) + missing  # None without rows
    return ExpectationOutcome(rule, bool(entry.success) and not missing, rows, failed)
