# SPDX-License-Identifier: Apache-2.0
"""`Project`: the Python API. Each command is one of its methods."""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scalr_prod import pipeline
from scalr_prod.core.timestamps import as_utc
from scalr_prod.errors import ScalrError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    from feast import FeatureStore

    from scalr_prod.config import Settings
    from scalr_prod.evaluation import EvaluationReport
    from scalr_prod.features import ExportFormat, FeastExport
    from scalr_prod.generation import GenerationReport
    from scalr_prod.histories import HistoriesReport
    from scalr_prod.ingest import IngestReport
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import DatasetUse, Ledger, ModelVersion, Run
    from scalr_prod.operations import AffectedModel, ErasureReport, ExperimentReport, Explanation, PowerReport, RetentionReport
    from scalr_prod.privacy import PrivacyReport
    from scalr_prod.publication import CanaryReport, PublicationReport, ToggleReport
    from scalr_prod.quality import ContractExport, GateReport, Verdict
    from scalr_prod.reporting import WrittenReport
    from scalr_prod.serving import PromotionDecision, PromotionReport, Scorer
    from scalr_prod.training_set import TrainingSet, TrainingSetReport
    from scalr_prod.translator import BacktestReport as TranslatorEvaluation
    from scalr_prod.translator import TrainReport, TranslatorVersion


logger = logging.getLogger(__name__)


class Project:
    """Two domains, a lake, and everything that is built from them.

    Every method reuses existing results and builds only what is missing. Ledger, feature store and scorers are opened on first use,
    and closed at the end of a ``with`` block.

    >>> with Project.open("scalr.toml") as project:  # doctest: +SKIP
    ...     report = project.run()
    ...     rows = project.training_set().to_pandas()

    Args:
        settings: The project's settings.
        progress: Show progress bars on stderr.
    """

    # --- opening and closing

    def __init__(self, settings: Settings, *, progress: bool = False) -> None:
        self.settings = settings
        self.progress = progress
        self._opened = ExitStack()
        self._lake: Lake | None = None
        self._ledger: Ledger | None = None
        self._feature_store: FeatureStore | None = None
        self._scorers: dict[int, Scorer] = {}

    @classmethod
    def open(
        cls,
        source: Settings | str | Path | Mapping[str, Any] = "scalr.toml",
        *,
        progress: bool = False,
        **overrides: Mapping[str, Any],
    ) -> Self:
        """Open a project.

        Args:
            source: The path of a scalr.toml, its content as a dictionary, or settings that were loaded before. Relative paths
                start from the file's folder, or from the current one.
            progress: Show progress bars on stderr.
            overrides: Whole sections, merged over those of a file: ``generation={"mode": "causal"}``.

        Returns:
            The project; nothing is read or written yet. Use it in a ``with`` statement, or `close` it.

        Raises:
            SettingsError: No such file, an unknown key, or an impossible value; names the key.
        """
        from scalr_prod.config import Settings, load_settings, settings_from_dict

        if isinstance(source, str | Path):
            return cls(load_settings(source, **overrides), progress=progress)
        settings = source if isinstance(source, Settings) else settings_from_dict(source)
        return cls(settings.with_sections(**overrides) if overrides else settings, progress=progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all open resources. A closed project can still be used: it reopens them."""
        try:
            self._opened.close()
        finally:
            self._ledger, self._feature_store = None, None
            self._scorers.clear()

    @property
    def lake(self) -> Lake:
        """The project's Delta tables."""
        from scalr_prod.lake import Lake

        self._lake = self._lake or Lake.open(self.settings)
        return self._lake

    @property
    def ledger(self) -> Ledger:
        """The record of all runs, publications, translator versions and training sets."""
        from scalr_prod.ledger import Ledger

        if self._ledger is None:
            self._ledger = self._opened.enter_context(Ledger.open(self.settings))
        return self._ledger

    @property
    def feature_store(self) -> FeatureStore:
        """The project's Feast store; any method of Feast's SDK works on it.

        Raises:
            FeatureStoreError: There is no feature repository yet.
        """
        from scalr_prod.features import open_feature_store

        self._feature_store = self._feature_store or open_feature_store(self.settings)
        return self._feature_store

    def scorer(self, version: int | None = None) -> Scorer:
        """Open the scorer of a translator version: Triton (a local one is started), or the model in this process.

        Args:
            version: Default: the latest trained.

        Returns:
            A client that samples and scores with that version; the project closes it.

        Raises:
            TranslatorNotFound: No such version.
            ServingError: Triton cannot be started.
        """
        from scalr_prod.serving import open_scorer, serve_with_watchdog
        from scalr_prod.translator import resolve_version

        version = resolve_version(self.settings, version).version
        if version not in self._scorers:
            self._opened.enter_context(serve_with_watchdog(self.settings, version))
            self._scorers[version] = self._opened.enter_context(open_scorer(self.settings, version, has_watchdog=True))
        return self._scorers[version]

    # --- the stages

    def run(self) -> pipeline.PipelineReport:
        """Run the whole pipeline, from two logs to a published feature view and a training set.

        If λ is 0 for all users (by the policy or the settings), no event is generated or published. A run that was rolled back is not
        published again before `resume`. Changed settings or events make a new run with a new id, which is published as usual.

        Raises:
            ScalrError: Raised by a stage, with the stage and the run named.
        """
        context = pipeline.PipelineContext(self.settings, progress=self.progress, whole=True)
        return pipeline.PipelineReport.from_context(pipeline.execute_stages(context, pipeline.stages_to()))

    def dry_run(self, stage: str | None = None) -> pipeline.DryRun:
        """Estimate what `run` would do and how long it would take, from the rates of earlier runs; nothing is written.

        Args:
            stage: Only this stage, such as ``generate``.

        Returns:
            The run's window, users and contexts where they are known; for each stage whether it would be executed, and its expected
            seconds where earlier runs were measured.
        """
        graph = pipeline.stages_to() if stage is None else pipeline.with_light_prerequisites(stage)
        return pipeline.dry_run(self.settings, graph, whole=stage is None)

    def ingest(self, domain: str | None = None, *, replace: datetime | None = None) -> IngestReport:
        """Ingest the logs into the lake; ingesting the same input again adds nothing.

        Args:
            domain: ``source``, ``target`` or ``sources.NAME``; default: all.
            replace: From this time on (UTC), make the lake's events equal to those of the logs. Outputs of changed events become stale:
                `status` shows them, and `run` rebuilds them.

        Returns:
            Rows read and added, and rows left out by reason, for each domain.

        Raises:
            ScalrError: A log cannot be read, or has an invalid value; nothing was added.
        """
        from scalr_prod.ingest import IngestReport

        context = pipeline.PipelineContext(self.settings, progress=self.progress, domain=domain, replace_from=as_utc(replace))
        return pipeline.execute_single(context, "ingest", IngestReport)

    def histories(self) -> HistoriesReport:
        """Build point-in-time user histories and item statistics, and update the feature views."""
        from scalr_prod.histories import HistoriesReport

        self._feature_store = None
        report = pipeline.execute_single(self._context(), "histories", HistoriesReport)
        pipeline.execute_stages(self._context(), pipeline.with_light_prerequisites("feast"))
        return report

    def train(self, trained_until: datetime | None = None) -> TrainReport:
        """Train a translator version; unchanged inputs return the existing version.

        Args:
            trained_until: Read only what is before this time (UTC); default: by ``[generation] mode``.

        Returns:
            Number, folder, checksum and metrics of the version; ``reused`` if it existed.
        """
        from scalr_prod.translator import TrainReport

        context = pipeline.PipelineContext(self.settings, progress=self.progress, trained_until=as_utc(trained_until))
        return pipeline.execute_single(context, "translator", TrainReport)

    def generate(self, version: int | None = None) -> GenerationReport:
        """Plan a run for the settings' window, and translate its source events into staged candidates.

        Args:
            version: Translator version; default: the latest trained.

        Returns:
            The run's id, its contexts, the staged events, and the dropped draws by reason.
        """
        from scalr_prod.generation import GenerationReport

        context = pipeline.PipelineContext(self.settings, progress=self.progress, version=version, resume=True)
        return pipeline.execute_single(context, "generate", GenerationReport)

    def validate(self, run_id: str) -> GateReport:
        """Run the quality gate on a generated run.

        Args:
            run_id: A generated run.

        Returns:
            Every rule with its findings, and the location of the data docs.

        Raises:
            QualityGateFailed: The quality gate rejected the run.
            RunNotFound: No such run.
        """
        from scalr_prod.quality import GateReport

        return pipeline.execute_single(self._run_context(run_id), "validate", GateReport)

    def publish(self, run_id: str) -> PublicationReport:
        """Publish a validated run to the feature view ``synthetic_target_events``, all of it or nothing.

        Args:
            run_id: A run that passed the gate.

        Returns:
            The ``outcome``, rows published and replaced, and the table's Delta version.

        Raises:
            PublicationError: The run was not validated, or was rejected.
        """
        from scalr_prod.publication import PublicationReport

        return pipeline.execute_single(self._run_context(run_id), "publish", PublicationReport)

    def build_training_set(self) -> TrainingSetReport:
        """Build a training set of real and synthetic events with features as of strictly before each label.

        Raises:
            QualityGateFailed: The quality gate rejected the training set; nothing was kept.
        """
        from scalr_prod.training_set import TrainingSetReport

        return pipeline.execute_single(self._context(), "dataset", TrainingSetReport)

    # --- the translator

    def evaluate_translator(self, version: int | None = None) -> TranslatorEvaluation:
        """Evaluate ranking, likelihood and calibration of each estimator and of their mixture on the latest time window.

        Args:
            version: Number of the version; default: the latest.

        Returns:
            Metrics of each time window, and the mixture's weights.
        """
        from scalr_prod.translator import evaluate

        return evaluate(self.settings, version, progress=self.progress)

    def translator(self, version: int | None = None) -> TranslatorVersion:
        """Return a trained version: its folder, checksum and metrics.

        Args:
            version: Number; default: the latest.

        Returns:
            The version; its weights are not loaded.
        """
        from scalr_prod.translator import resolve_version

        return resolve_version(self.settings, version)

    def translators(self) -> Sequence[ModelVersion]:
        """Return all trained versions, oldest first."""
        return self.ledger.models.find()

    def promote(self, version: int | None = None) -> PromotionReport:
        """Serve a version: load it, check that it answers, then switch to it.

        Args:
            version: Number; default: the latest trained.

        Returns:
            The version that is served now, the previous one, and the versions that the server has loaded.
        """
        from scalr_prod.serving import promote

        return promote(self.settings, version)

    def promote_if_better(self, version: int) -> PromotionDecision:
        """Serve a version if it is no worse than the served one on events on which neither was trained.

        Args:
            version: Number of the version.

        Returns:
            Whether it is served now, why, and both versions' metrics on the same events.
        """
        from scalr_prod.serving import promote_if_better

        return promote_if_better(self.settings, version, progress=self.progress)

    def rollback_translator(self) -> PromotionReport:
        """Serve the previously promoted version again."""
        from scalr_prod.serving import rollback

        return rollback(self.settings)

    # --- runs and their outputs

    def runs(self) -> list[Run]:
        """Return all runs, newest first."""
        return self.ledger.runs.find()

    def rows_in_view(self) -> dict[str, int]:
        """Return the number of rows in the feature view of each published run, by run id; later runs may have replaced some.

        Raises:
            DomainsMixed: The lake's tables belong to other domains.
        """
        from scalr_prod.lake import open_project_lake
        from scalr_prod.quality import rows_in_view
        from scalr_prod.schemas import Table

        lake, published = open_project_lake(self.settings), self.ledger.publications.find()
        return rows_in_view(lake, published) if published and lake.exists(Table.SYNTHETIC_TARGET_EVENTS) else {}

    def resume(self, run_id: str) -> pipeline.PipelineReport:
        """Resume a run where it stopped, and publish it; a run that was rolled back is published again.

        Staged partitions are kept, missing ones are generated.

        Args:
            run_id: A planned run.

        Returns:
            The report of each executed stage.

        Raises:
            RunNotFound: No such run.
        """
        return pipeline.resume_run(self.settings, run_id, progress=self.progress)

    def rollback(self, run_id: str) -> PublicationReport:
        """Remove a published run from the feature view, and restore the rows that it replaced.

        Args:
            run_id: A published run.

        Returns:
            The ``outcome``, the number of removed rows, and the restored rows by run.

        Raises:
            RunNotFound: No such run.
            PublicationError: The run was never published, or publication is disabled.
        """
        from scalr_prod.errors import PublicationError, RunNotFound
        from scalr_prod.publication import rollback_run

        refusals = (RunNotFound, PublicationError)
        scope = pipeline.StageScope(self.settings, "rollback", run_id=lambda: run_id, refusals=refusals)
        with pipeline.stage_hooks(scope):
            return rollback_run(self.settings, run_id)

    def training_set(self, version: int | None = None) -> TrainingSet:
        """Open a training set: as Arrow, pandas, Polars, or a torch ``DataLoader``.

        Args:
            version: Number; default: the latest.

        Returns:
            The version; rows are read on demand. A warning is logged if it holds rows of a run that was rolled back since.

        Raises:
            TrainingSetError: There is no such version.
        """
        from scalr_prod.training_set import TrainingSet

        found = TrainingSet.open(self.settings.home / "datasets" / self.settings.training_set.name, version)
        with suppress(ScalrError):  # the set can be read without its ledger
            if rolled_back := pipeline.rolled_back_runs(self.ledger, found.manifest):
                logger.warning(
                    "training set %s v%d: %s", found.path.parent.name, found.version, pipeline.describe_rolled_back(rolled_back)
                )
        return found

    def register_model(self, model: str, version: str, *, dataset_version: int | None = None) -> DatasetUse:
        """Register a model that was trained on a version of the training set; registering it again changes nothing.

        `forget` and `models_to_retrain` name the models that learned from rows of erased users. With ``[lineage]``, the registration is
        sent as an OpenLineage event.

        Args:
            model: The model's name.
            version: The model's version.
            dataset_version: Version of the training set (`TrainingSet.version`); default: the latest.

        Returns:
            The registration; ``created`` is False if it existed.

        Raises:
            LedgerError: A name is empty, too long, or has characters that names cannot have.
            TrainingSetError: There is no such version.

        Example:
            >>> rows = project.training_set()  # doctest: +SKIP
            >>> project.register_model("ranker", "7", dataset_version=rows.version)  # doctest: +SKIP
        """
        from scalr_prod.integrations.lineage import emit_dataset_use

        name = self.settings.training_set.name
        use = self.ledger.datasets.record_use(name, dataset_version, model=model, model_version=version)
        if use.created:
            emit_dataset_use(self.settings, use)
        return use

    def registered_models(self) -> list[DatasetUse]:
        """Return the models that were registered with `register_model`, in order of registration."""
        return self.ledger.datasets.uses()

    def models_to_retrain(self) -> list[AffectedModel]:
        """Return the registered models that learned from rows of users who were erased since, and the date of each retraining.

        A model leaves the list with a version that was trained on a training set built after the erasure.

        Raises:
            ForgettingError: The list of erased users cannot be read.
        """
        from scalr_prod.operations import models_to_retrain

        return models_to_retrain(self.settings)

    def check_quality(self, dataset: str | Path | None = None, suite: str | None = None) -> Verdict:
        """Check a training set, of this project or any other, with an editable suite of expectations.

        Args:
            dataset: A Parquet file or folder, a Delta table's folder, a URL of one of these, or the name of a data set saved in
                Feast; default: the latest version of the project's training set.
            suite: A suite's file or name; ``training`` and ``leaks`` are built in. Default: ``[training_set] suite``, else ``training``.

        Returns:
            Each rule with its findings.

        Raises:
            QualityGateFailed: An expectation of severity ``critical`` failed; names it, and the data docs.
            InputError: The data set does not exist, or cannot be read.
            SettingsError: There is no such suite, or the file is invalid.
            TrainingSetError: There is no training set, or a file of it, such as one of its vocabulary, is damaged.
        """
        from scalr_prod.quality import check_dataset
        from scalr_prod.training_set import TrainingSet

        return check_dataset(
            dataset if dataset is not None else TrainingSet.open(self.training_set().path, check=True).path,
            suite=suite or self.settings.training_set.suite or "training",
            settings=self.settings,
        ).require()

    def export_contract(self, log: str, path: str | Path, *, suite: str | None = None) -> ContractExport:
        """Write a log's contract in the Open Data Contract Standard; an existing file is not overwritten.

        Args:
            log: ``source``, ``sources.<name>`` or ``target``.
            path: The YAML file.
            suite: A suite whose expectations the contract has, too: its file or name.

        Returns:
            The contract's id and columns, and the settings that it leaves out.

        Raises:
            SettingsError: There is no such log or suite.
            QualityError: The file exists, or cannot be written.
        """
        from scalr_prod.quality import export_contract

        return export_contract(self.settings, log, Path(path), suite=suite)

    def evaluate(
        self,
        *,
        cold_fraction: float | None = None,
        cutoff: datetime | None = None,
        cutoffs: int | None = None,
        arms: Sequence[str] | None = None,
        full: bool = False,
        quick: bool = False,
    ) -> EvaluationReport:
        """Train models with and without synthetic events, with controls, and evaluate them on later events.

        Args:
            cold_fraction: Hide the target history of this share of users from everything; default: by ``[downstream]``.
            cutoff: Test on the events from this time on (UTC); default: by ``[downstream]``.
            cutoffs: Number of rolling cutoffs: the events after the first one are split into windows of equal size.
            arms: Only these arms, besides ``real``, ``popular_lately`` and ``real+scalr``.
            full: Every arm, model, seed and validation window.
            quick: Stop after the quick verdict, which is for a run's default settings; no policy is written.

        Returns:
            Lifts with intervals by model, arm and segment, and the policy that runs follow.
        """
        from scalr_prod.evaluation import EvaluationRequest, evaluate

        request = EvaluationRequest(
            cold_fraction=cold_fraction,
            cutoff=as_utc(cutoff),
            cutoffs=cutoffs,
            arms=tuple(arms) if arms else None,
            full=full,
            quick=quick,
        )
        return evaluate(self.settings, request, progress=self.progress)

    def report(self, run_id: str | None = None, *, output: str | Path | None = None) -> WrittenReport:
        """Write a run's report page, one HTML file that needs no network, and the index of all runs next to it.

        Args:
            run_id: Default: the run that changed last.
            output: The page's path; default: ``<home>/reports/<run_id>.html``. With an explicit path, no index is written.

        Returns:
            The paths of both.

        Raises:
            RunNotFound: This project has no such run.
            ReportError: The page cannot be rendered, or ``output`` is a file that is no page.
        """
        from scalr_prod.reporting import write_report

        return write_report(self.settings, run_id, output=Path(output) if output is not None else None)

    def privacy(self, run_id: str | None = None) -> PrivacyReport:
        """Measure what a run's rows reveal: the translator's training users, their source histories, single users, and rare items.

        Args:
            run_id: Default: the run that changed last.

        Returns:
            The success of each attack, with intervals over users, and what is and is not promised.

        Raises:
            RunNotFound: This project has no such run, or none at all.
            GenerationError: The run has no rows.
            TranslatorNotFound: Its translator version no longer exists.
            LakeError: A table version that the run read no longer exists.
        """
        from scalr_prod.privacy import measure_privacy

        return measure_privacy(self.settings, run_id)

    def status(self) -> list[pipeline.StageState]:
        """Return the stages in order: whether each is done, and its command."""
        return pipeline.stage_states(self.settings)

    # --- operations on published data

    def publication_state(self) -> ToggleReport:
        """Return whether the project publishes, and the rows that the feature view shows or hides."""
        from scalr_prod.publication import publication_state

        return publication_state(self.settings)

    def disable_publication(self) -> ToggleReport:
        """Empty the feature view in one commit; nothing is published until publication is enabled again.

        Raises:
            TableNotFound: There is no view yet.
        """
        from scalr_prod.publication import disable_publication

        return disable_publication(self.settings)

    def enable_publication(self) -> ToggleReport:
        """Restore the feature view as it was, from the same files, in one commit.

        Raises:
            PublicationError: Rows were written to the view while publication was disabled.
            LakeError: Files of the rows no longer exist.
        """
        from scalr_prod.publication import enable_publication

        return enable_publication(self.settings)

    def widen_publication(self, *runs: str, share: float | None = None) -> CanaryReport:
        """Publish runs in a canary (``[experiment] canary``) for more users; one commit per run.

        Args:
            *runs: Run ids; default: all runs that are published for a share of users.
            share: Share of users; default: all users.

        Returns:
            The outcome of each run, and the runs that are still published for a share of users.

        Raises:
            PublicationError: A run is not published for a share of users, or for a larger one; or publication is disabled.
        """
        from scalr_prod.publication import widen_canaries

        return widen_canaries(self.settings, runs, share=share)

    def withdraw_publication(self, *runs: str) -> CanaryReport:
        """Withdraw what is published for a share of users, and restore what it replaced; one commit per run.

        Args:
            *runs: Run ids; default: all runs that are published for a share of users.

        Returns:
            The outcome of each run, and the runs that are still published for a share of users.

        Raises:
            PublicationError: A run is not published for a share of users; or publication is disabled.
        """
        from scalr_prod.publication import withdraw_canaries

        return withdraw_canaries(self.settings, runs)

    def explain(self, event_id: str) -> Explanation:
        """Explain a synthetic event: its source event, the history at that time, each estimator's output, run and versions.

        Args:
            event_id: The event's id in the feature view.

        Returns:
            The event, its source event, and the attribution of its probability.

        Raises:
            EventNotFound: The feature view has no such event.
            TranslatorNotFound: Its translator version no longer exists.
            LakeError: A table version that the run read no longer exists.
        """
        from scalr_prod.operations import explain_event

        return explain_event(self.settings, event_id)

    def ui(self, *, port: int | None = None, started: Callable[[str], None]) -> None:
        """Serve the project's web page on 127.0.0.1, until Ctrl-C or SIGTERM.

        Args:
            port: 0: any that is free; default: ``[ui] port``.
            started: Called with the page's address once it can be opened; anyone with the address can read the project's data.

        Raises:
            ReportError: The port is taken.
        """
        from scalr_prod.reporting import serve

        serve(self.settings, port=port, on_started=started)

    def experiment(
        self, *, outcomes: str | None = None, until: datetime | None = None, out: str | Path | None = None
    ) -> ExperimentReport:
        """Return who is held out; with outcomes, the effect of synthetic events with an always-valid 95 % interval.

        Args:
            outcomes: Path or URL of a table ``user_id``, ``value`` and, if there is one, ``pre_value``: one row per user.
            until: Time until which the outcomes were counted (UTC); default: now.
            out: File to write every user's group to: ``.parquet`` or ``.csv``.

        Returns:
            Users of each group; with outcomes, the effect and its interval, also by segment of users.

        Raises:
            SettingsError: Nobody is held out.
            InputError: The outcomes cannot be read, lack a column, or hold a user twice.
            EvaluationError: A group (held out or treated) has too few users; or ``out`` has another ending or cannot be written.
        """
        from scalr_prod.operations import analyze_experiment

        target = Path(out) if out is not None else None
        return analyze_experiment(self.settings, outcomes=outcomes, until=as_utc(until), out=target)

    def experiment_power(self, *, effect_pct: float = 5.0, holdout: float | None = None) -> PowerReport:
        """Return the minimum detectable effect (MDE) on a user's number of target events, and the days that it takes.

        Args:
            effect_pct: The effect to find, in per cent of the mean outcome, over 0.
            holdout: Share of held-out users; default: ``[experiment] holdout``.

        Returns:
            Smallest effects by length of the experiment and by segment of users.

        Raises:
            SettingsError: No share of held-out users is given.
            TableNotFound: Nothing has been ingested yet.
            EvaluationError: The target log covers less than two days.
        """
        from scalr_prod.operations import measure_power

        return measure_power(self.settings, effect_pct=effect_pct, holdout=holdout)

    def export_feast(self, folder: str | Path, form: ExportFormat | None = None) -> FeastExport:
        """Write Feast definitions of published events into a feature repository of your own.

        Those of source histories are included if ``[feast.export] source_history`` is true.

        Args:
            folder: A folder of the repository.
            form: ``delta``: the lake's tables as they are; ``parquet``: copies of their rows, for Feast's file and DuckDB stores.
                Default: by the offline store of the repository's ``feature_store.yaml``.

        Returns:
            The file, its feature views, and the rows and Delta version of each as of now.

        Raises:
            TableNotFound: Nothing was published yet.
            ForeignFiles: A file or folder of that name lies there that this command did not make.
            FeatureStoreError: There is no ``feature_store.yaml`` that shows the format, or nothing can be written there.
        """
        from scalr_prod.features import export_definitions

        return export_definitions(self.settings, Path(folder), form)

    def forget(self, users: Sequence[int | str]) -> ErasureReport:
        """Erase users from everything that the project stores; later logs and runs leave them out.

        Args:
            users: Ids exactly as in the log.

        Returns:
            What was removed, by location, translators that must be retrained, and registered models that are to be retrained.

        Raises:
            ForgettingError: No user is named; an id is not of the lake's type; or another process is erasing.
            LeaseHeld: A run is active. What was removed so far stays removed.
        """
        from scalr_prod.operations import erase_users
        from scalr_prod.pipeline import stage_context

        with stage_context("forget"):
            return erase_users(self.settings, users)

    def forget_items(self, items: Sequence[int | str]) -> ErasureReport:
        """Erase items of the target domain; translators that know them no longer propose them.

        Args:
            items: Ids exactly as in the log.

        Returns:
            What was removed, by location.

        Raises:
            ForgettingError: No item is named; an id is not of the lake's type; or another process is erasing.
            LeaseHeld: A run is active. What was removed so far stays removed.
        """
        from scalr_prod.operations import erase_items
        from scalr_prod.pipeline import stage_context

        with stage_context("forget"):
            return erase_items(self.settings, items)

    def maintain(self, *, dry_run: bool = False) -> RetentionReport:
        """Remove what ``[retention]`` no longer keeps; never what a published window, a served translator or an active run needs.

        Args:
            dry_run: Only return what would be removed.

        Returns:
            What was removed, or would be, by kind.
        """
        from scalr_prod.operations import apply_retention
        from scalr_prod.pipeline import stage_context

        with stage_context("maintain"):
            return apply_retention(self.settings, dry_run=dry_run)

    def _context(self) -> pipeline.PipelineContext:
        return pipeline.PipelineContext(self.settings, progress=self.progress)

    def _run_context(self, run_id: str) -> pipeline.PipelineContext:
        return pipeline.PipelineContext.from_run(self.settings, run_id, progress=self.progress)
