# SPDX-License-Identifier: Apache-2.0
"""Great Expectations sessions: results and data docs on disk, telemetry off."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from scalr_prod.errors import QualityError
from scalr_prod.workspace import claim_home

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from scalr_prod.config import Settings

__all__ = [
    "ExpectationOutcome",
    "ExpectationSpec",
    "GxSession",
    "build_data_docs",
    "create_checkpoint",
    "open_data_context",
    "open_gx_session",
    "run_checkpoint",
]

#: Results are stored on disk; suites come from this package and are stored in memory.
_STORES: Final = {
    "expectations_store": ("ExpectationsStore", None),
    "validation_results_store": ("ValidationResultsStore", "validations"),
    "validation_definition_store": ("ValidationDefinitionStore", None),
    "checkpoint_store": ("CheckpointStore", None),
}
_LOCK_TIMEOUT_S: Final = 300
#: Number of latest results that the data docs' index lists: each is read again for every page. Pages of older results stay.
_LISTED: Final = 30


@dataclass(frozen=True)
class ExpectationSpec:
    """One expectation: rule name, description, and GX's class and arguments."""

    rule: str
    says: str
    expectation: str
    arguments: Mapping[str, Any]
    severity: Literal["critical", "warning"] = "critical"

    @classmethod
    def all_true(cls, rule: str, says: str, *, severity: Literal["critical", "warning"] = "critical") -> ExpectationSpec:
        """Expect every value of the boolean column ``rule`` to be True."""
        return cls(rule, says, "ExpectColumnValuesToBeInSet", {"column": rule, "value_set": [True]}, severity)


@dataclass(frozen=True)
class ExpectationOutcome:
    """GX's result of one check."""

    rule: str
    success: bool
    checked: int
    failed: int


class GxSession:
    """An open data context; `open_gx_session` locks its folder for one process."""

    def __init__(self, context: Any, docs: str) -> None:
        self._context = context
        self._checkpoints: dict[str, Any] = {}
        self._results: list[Any] = []
        self.docs = docs

    def validate(
        self, suite: str, subject: str, frame: pd.DataFrame, checks: Sequence[ExpectationSpec]
    ) -> list[ExpectationOutcome]:
        """Validate one frame and store the result.

        Args:
            suite: Name of the suite of these checks.
            subject: Name of the result in the data docs, such as a run's id.
            frame: [N] rows.
            checks: The expectations; the same at every call for the suite.

        Returns:
            One finding per check, in order.
        """
        if suite not in self._checkpoints:
            rows = self._context.data_sources.add_or_update_pandas(suite).add_dataframe_asset("rows")
            batch = rows.add_batch_definition_whole_dataframe("all")
            self._checkpoints[suite] = create_checkpoint(self._context, suite, map(_expectation, checks), batch)
        identifier, found = run_checkpoint(self._checkpoints[suite], subject, {"dataframe": frame})
        self._results.append(identifier)
        return [_finding(check.rule, found[check.rule], len(frame)) for check in checks]

    def build_docs(self) -> None:
        """Add all results to the data docs, in one build because most of its cost is fixed."""
        build_data_docs(self._context, self._checkpoints, self._results)


@contextmanager
def open_gx_session(settings: Settings) -> Iterator[GxSession]:
    """Open the project's data context: results in ``<home>/gx``, data docs in ``<home>/data_docs``.

    Raises:
        ForeignFiles: The home holds files that this package did not create.
        QualityError: Another audit has held the data context's lock for too long.
    """
    claim_home(settings)
    with open_data_context(settings.home) as (context, docs):
        inspector = GxSession(context, docs)
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
    from filelock import FileLock, Timeout

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
        checkpoint_store_name="checkpoint_store",
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
    lock = FileLock(root / ".lock", timeout=_LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise QualityError(
            f"another audit has been writing to the data docs for over {_LOCK_TIMEOUT_S} s",
            where=str(root / ".lock"),
            next_step="wait for it to finish, then run the command again",
        ) from error
    try:
        yield gx.get_context(mode="ephemeral", project_config=config), str(docs / "index.html")
    finally:
        lock.release()


def create_checkpoint(context: Any, name: str, expectations: Iterable[Any], batch: Any, *, examples: int = 0) -> Any:
    """Create a checkpoint that validates a batch and stores the result, with up to ``examples`` failing values per expectation."""
    import great_expectations as gx

    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=list(expectations)))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    wanted = {"result_format": "BASIC", "partial_unexpected_count": examples}
    return context.checkpoints.add(gx.Checkpoint(name=name, validation_definitions=[definition], result_format=wanted))


def run_checkpoint(checkpoint: Any, subject: str, parameters: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Run a checkpoint; return the identifier of its result and each expectation's result by the rule in its ``meta``."""
    import great_expectations as gx

    outcome = checkpoint.run(batch_parameters=parameters, run_id=gx.RunIdentifier(run_name=subject))
    ((identifier, result),) = outcome.run_results.items()
    return identifier, {entry.expectation_config.meta["rule"]: entry for entry in result.results}


def build_data_docs(context: Any, suites: Iterable[str], results: Iterable[Any]) -> None:
    """Build the data docs of suites, by name, and results, by identifier."""
    from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier

    context.build_data_docs(resource_identifiers=[*map(ExpectationSuiteIdentifier, suites), *results])


def _expectation(check: ExpectationSpec) -> Any:
    import great_expectations.expectations as library

    return getattr(library, check.expectation)(
        **check.arguments,
        severity=check.severity,
        meta={"rule": check.rule, "notes": {"format": "markdown", "content": [f"**{check.rule}**: {check.says}"]}},
    )


def _backend(root: Any, folder: str | None) -> dict[str, str]:
    if folder is None:
        return {"class_name": "InMemoryStoreBackend"}
    return {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(root / folder)}


def _finding(rule: str, entry: Any, rows: int) -> ExpectationOutcome:
    exception = entry.exception_info or {}
    if exception.get("raised_exception") or "unexpected_count" not in entry.result:
        return ExpectationOutcome(rule, bool(entry.success), rows, 0 if entry.success else rows)
    # GX does not count nulls. Row verdicts are never null; a null figure is a failure.
    missing = int(entry.result.get("missing_count") or 0)
    failed = int(entry.result["unexpected_count"]) + missing
    return ExpectationOutcome(rule, bool(entry.success) and not missing, rows, failed)
