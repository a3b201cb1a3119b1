# SPDX-License-Identifier: Apache-2.0
"""`Project`: the package from Python. What the commands do are its methods."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scalr_prod import pipeline

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
    from scalr_prod.ledger import Ledger, ModelVersion, Run
    from scalr_prod.operations import ErasureReport, ExperimentReport, Explanation, RetentionReport
    from scalr_prod.publication import CanaryReport, PublicationReport, ToggleReport
    from scalr_prod.quality import GateReport, Verdict
    from scalr_prod.reporting import WrittenReport
    from scalr_prod.serving import PromotionDecision, PromotionReport, Scorer
    from scalr_prod.training_set import TrainingSet, TrainingSetReport
    from scalr_prod.translator import BacktestReport as TranslatorEvaluation
    from scalr_prod.translator import TrainReport, TranslatorVersion

__all__ = ["Project"]


class Project:
    """Two domains, a lake, and all that is made from them.

    Every method that makes something finds what was made before, and makes only what is missing. What a project holds open
    (ledger, feature store, scorer) is opened when it is first asked for, and closed at the end of a ``with`` block.

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
            The project; nothing is read or written before it is asked for something. Use it in a ``with`` statement, or `close` it.

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
        """Close what is open. A closed project opens again what it is asked for."""
        try:
            self._opened.close()
        finally:
            self._ledger, self._feature_store = None, None
            self._scorers.clear()

    @property
    def lake(self) -> Lake:
        """Its Delta tables."""
        from scalr_prod.lake import Lake

        self._lake = self._lake or Lake.open(self.settings)
        return self._lake

    @property
    def ledger(self) -> Ledger:
        """What every run, publication, translator version and training set came to."""
        from scalr_prod.ledger import Ledger

        if self._ledger is None:
            self._ledger = self._opened.enter_context(Ledger.open(self.settings))
        return self._ledger

    @property
    def feature_store(self) -> FeatureStore:
        """Feast's own store: any method of Feast's SDK works on it.

        Raises:
            FeatureStoreError: There is no feature repository yet.
        """
        from scalr_prod.features import open_feature_store

        self._feature_store = self._feature_store or open_feature_store(self.settings)
        return self._feature_store

    def scorer(self, version: int | None = None) -> Scorer:
        """What answers for a translator version: Triton, started where it is local, or the module in this process.

        Args:
            version: Default: the latest trained.

        Returns:
            A client that draws and scores for that version; the project closes it.

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
        """Everything, from two logs to a published feature view and a training set beside it.

        Where λ is 0 for all users (by the policy or the settings), no event is generated or published.

        Raises:
            ScalrError: Any stage's, with the stage and the run named.
        """
        return pipeline.PipelineReport.from_context(self._walk(pipeline.stages_to(), whole=True))

    def dry_run(self, stage: str | None = None) -> pipeline.DryRun:
        """What `run` would do, and about how long it would take by the rates of former runs; nothing is written.

        Args:
            stage: What this stage would do alone, such as ``generate``.

        Returns:
            The run's window, users and contexts where they are known; of each stage whether it would be done, and its seconds where former
            runs tell.
        """
        graph = pipeline.stages_to() if stage is None else pipeline.single_stage(stage)
        return pipeline.dry_run(self.settings, graph, whole=stage is None)

    def ingest(self, domain: str | None = None, *, replace: datetime | None = None) -> IngestReport:
        """Read the logs into the lake; reading the same input twice adds nothing.

        Args:
            domain: ``source``, ``target`` or ``sources.NAME``; default: all.
            replace: Make the lake's events from then on (UTC) equal to those of the logs. What was made from events that changed is
                stale: `status` says so, and `run` makes it anew.

        Returns:
            Rows read, added, left out and why, by domain.

        Raises:
            ScalrError: A log cannot be read, or holds a value that cannot be; nothing was added.
        """
        report: IngestReport = self._do("ingest", domain=domain, replace_from=replace)
        return report

    def histories(self) -> HistoriesReport:
        """Build users' histories and items' statistics as of every event, and bring the feature views up to date."""
        self._feature_store = None
        report: HistoriesReport = self._do("histories")
        self._walk(pipeline.single_stage("feast"))
        return report

    def train(self, trained_until: datetime | None = None) -> TrainReport:
        """Train a translator version; the same inputs give the version that is there already.

        Args:
            trained_until: Read nothing from then on (UTC); default: by ``[generation] mode``.

        Returns:
            Number, folder, checksum and metrics of the version; ``reused`` where it was there.
        """
        report: TrainReport = self._do("translator", trained_until=trained_until)
        return report

    def generate(self, version: int | None = None) -> GenerationReport:
        """Plan the run of the settings' window, and translate its source events into staged candidates.

        Args:
            version: Translator version; default: the latest trained.

        Returns:
            The run's id, its contexts, what was staged, and what was dropped and why.
        """
        report: GenerationReport = self._do("generate", version=version)
        return report

    def validate(self, run_id: str) -> GateReport:
        """Put a generated run before the quality gate.

        Args:
            run_id: Of a run that was generated.

        Returns:
            Every rule with what it found, and where the data docs are.

        Raises:
            QualityGateFailed: The gate said no.
            RunNotFound: No such run.
        """
        report: GateReport = self._do("validate", run_id=run_id)
        return report

    def publish(self, run_id: str) -> PublicationReport:
        """Publish a validated run to the feature view ``synthetic_target_events``, all of it or nothing.

        Args:
            run_id: Of a run that passed the gate.

        Returns:
            How it went (``outcome``), rows published and replaced, and the table's Delta version.

        Raises:
            PublicationError: The run was not validated, or was rejected.
        """
        report: PublicationReport = self._do("publish", run_id=run_id)
        return report

    def build_training_set(self) -> TrainingSetReport:
        """Build a training set of real and synthetic events with features as of strictly before each label.

        Raises:
            QualityGateFailed: The gate said no; nothing was kept.
        """
        report: TrainingSetReport = self._do("dataset")
        return report

    # --- the translator

    def evaluate_translator(self, version: int | None = None) -> TranslatorEvaluation:
        """Ranking, likelihood and calibration of each estimator and of their mixture, on the latest slice of time.

        Args:
            version: Number of the version; default: the latest.

        Returns:
            Figures of each slice of time, and the mixture's weights.
        """
        from scalr_prod.translator import evaluate

        return evaluate(self.settings, version, progress=self.progress)

    def translator(self, version: int | None = None) -> TranslatorVersion:
        """A trained version: its folder, checksum and metrics; default: the latest.

        Args:
            version: Number; default: the latest.

        Returns:
            The version; its weights are not loaded.
        """
        from scalr_prod.translator import resolve_version

        return resolve_version(self.settings, version)

    def translators(self) -> Sequence[ModelVersion]:
        """All trained versions, the oldest first."""
        return self.ledger.model_versions()

    def promote(self, version: int | None = None) -> PromotionReport:
        """Serve a version: load it, check that it answers, switch; default: the latest trained.

        Args:
            version: Number; default: the latest trained.

        Returns:
            The version that is served now, the one that was until then, and what the server holds.
        """
        from scalr_prod.serving import promote

        return promote(self.settings, version)

    def promote_if_better(self, version: int) -> PromotionDecision:
        """Serve a version if it is no worse than the served one on events that neither learned from.

        Args:
            version: Number; default: the latest trained.

        Returns:
            Whether it is served now, why, and both versions' figures on the same events.
        """
        from scalr_prod.serving import promote_if_better

        return promote_if_better(self.settings, version, progress=self.progress)

    def rollback_translator(self) -> PromotionReport:
        """Serve the formerly promoted version again."""
        from scalr_prod.serving import rollback

        return rollback(self.settings)

    # --- runs and what they made

    def runs(self) -> list[Run]:
        """All runs, the newest first."""
        return self.ledger.runs()

    def rows_in_view(self) -> dict[str, int]:
        """How many rows of each run that was published the feature view holds now, by run id; later runs may have replaced some.

        Raises:
            DomainsMixed: The lake's tables were made for other domains.
        """
        from scalr_prod.lake import open_project_lake
        from scalr_prod.quality import rows_in_view
        from scalr_prod.schemas import Table

        lake, published = open_project_lake(self.settings), self.ledger.publications()
        return rows_in_view(lake, published) if published and lake.exists(Table.SYNTHETIC_TARGET_EVENTS) else {}

    def resume(self, run_id: str) -> pipeline.PipelineReport:
        """Go on with a run from where it stopped: what is staged is kept, what is missing is made.

        Args:
            run_id: Of a run that was planned.

        Returns:
            What each stage that was done came to.

        Raises:
            RunNotFound: No such run.
        """
        return pipeline.resume_run(self.settings, run_id, progress=self.progress)

    def rollback(self, run_id: str) -> PublicationReport:
        """Take a published run out of the feature view, and bring back the rows that it had replaced.

        Args:
            run_id: Of a published run.

        Returns:
            How it went (``outcome``), rows taken out, and rows brought back by the run they came from.

        Raises:
            RunNotFound: No such run.
            PublicationError: The run was never published, or publication is switched off.
        """
        from scalr_prod.errors import PublicationError, RunNotFound
        from scalr_prod.publication import rollback_run

        refusals = (RunNotFound, PublicationError)
        scope = pipeline.StageScope(self.settings, "rollback", run_id=lambda: run_id, refusals=refusals)
        with pipeline.stage_hooks(scope):
            return rollback_run(self.settings, run_id)

    def training_set(self, version: int | None = None) -> TrainingSet:
        """A training set that was built: Arrow, pandas, Polars, or a torch ``DataLoader``; default: the latest version.

        Args:
            version: Number; default: the latest.

        Returns:
            The version; rows are read when they are asked for.

        Raises:
            TrainingSetError: There is no such version.
        """
        from scalr_prod.training_set import TrainingSet

        return TrainingSet.open(self.settings.home / "datasets" / self.settings.training_set.name, version)

    def check_quality(self, dataset: str | Path | None = None, suite: str | None = None) -> Verdict:
        """Check a training set, of this project or anybody's, by a suite of expectations that can be edited.

        Args:
            dataset: A Parquet file or folder, a Delta table's folder, a URL of one of these, or the name of a data set saved in
                Feast; default: the latest version of the project's training set.
            suite: A suite's file or name; default: ``[training_set] suite``, else ``training``, which is built in.

        Returns:
            Each rule with what it found.

        Raises:
            QualityGateFailed: An expectation of severity ``critical`` failed; names it, and the data docs.
            InputError: The data set is not there, or cannot be read.
            SettingsError: There is no such suite, or the file is none.
        """
        from scalr_prod.quality import check_dataset

        return check_dataset(
            dataset if dataset is not None else self.training_set().path,
            suite=suite or self.settings.training_set.suite or "training",
            settings=self.settings,
        ).require()

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
        """Train models with and without synthetic events, and with controls, and evaluate them on later events.

        Args:
            cold_fraction: Hide the target history of this share of users from everything; default: by ``[downstream]``.
            cutoff: Test from then on (UTC); default: by ``[downstream]``.
            cutoffs: Rolling cutoffs: what comes after the first, in so many equal parts.
            arms: Only these, and those compared.
            full: Every arm, model, seed and validation window.
            quick: Stop at the first verdict, for which fewer settings are tried; no policy is written.

        Returns:
            Lifts with intervals by model, arm and segment, and the policy that runs follow.
        """
        from scalr_prod.evaluation import EvaluationRequest, evaluate

        request = EvaluationRequest(
            cold_fraction=cold_fraction,
            cutoff=cutoff,
            cutoffs=cutoffs,
            arms=tuple(arms) if arms else None,
            full=full,
            quick=quick,
        )
        return evaluate(self.settings, request, progress=self.progress)

    def report(self, run_id: str | None = None, *, output: str | Path | None = None) -> WrittenReport:
        """Write a run's page, one HTML file that needs no network, and the index over all runs beside it.

        Args:
            run_id: Default: the run that was changed last.
            output: The page's path; default: ``<home>/reports/<run_id>.html``. With a path of its own, no index is written.

        Returns:
            The paths of both.

        Raises:
            RunNotFound: This project has no such run.
            ReportError: The page cannot be drawn.
        """
        from scalr_prod.reporting import write_report

        return write_report(self.settings, run_id, output=Path(output) if output is not None else None)

    def status(self) -> list[pipeline.StageState]:
        """Which stages are done, in their order, and the command that does each."""
        return pipeline.stage_states(self.settings)

    # --- operations on published data

    def publication_state(self) -> ToggleReport:
        """Whether the project publishes, and what the feature view holds, or holds back."""
        from scalr_prod.publication import publication_state

        return publication_state(self.settings)

    def disable_publication(self) -> ToggleReport:
        """Let the feature view read as empty, in one commit; nothing is published until it is enabled again.

        Raises:
            TableNotFound: There is no view yet.
        """
        from scalr_prod.publication import disable_publication

        return disable_publication(self.settings)

    def enable_publication(self) -> ToggleReport:
        """Let the feature view hold what it held before: the same files, in one commit.

        Raises:
            PublicationError: Somebody has written rows to the view while it was off.
            LakeError: Files of the rows are gone.
        """
        from scalr_prod.publication import enable_publication

        return enable_publication(self.settings)

    def widen_publication(self, *runs: str, share: float | None = None) -> CanaryReport:
        """Publish for everybody what is published for a share of users (``[experiment] canary``), in one commit a run.

        Args:
            *runs: Ids; default: all that are published for a share of users.
            share: For this share of users, not for everybody.

        Returns:
            What was done run by run, and the runs that are still published for a share of users.

        Raises:
            PublicationError: A run is not published for a share of users, or for a larger one; or publication is switched off.
        """
        from scalr_prod.publication import widen_canaries

        return widen_canaries(self.settings, runs, share=share)

    def withdraw_publication(self, *runs: str) -> CanaryReport:
        """Take out what is published for a share of users, and bring back what it had replaced, in one commit a run.

        Args:
            *runs: Ids; default: all that are published for a share of users.

        Returns:
            What was done run by run, and the runs that are still published for a share of users.

        Raises:
            PublicationError: A run is not published for a share of users; or publication is switched off.
        """
        from scalr_prod.publication import withdraw_canaries

        return withdraw_canaries(self.settings, runs)

    def explain(self, event_id: str) -> Explanation:
        """Why a synthetic event is there: source event, history as it was, what each part of the translator said, run and versions.

        Args:
            event_id: Of the event, as the feature view has it.

        Returns:
            The event, what it translates, and its probability taken apart.

        Raises:
            EventNotFound: The feature view has no such event.
            TranslatorNotFound: Its translator version is no longer there.
            LakeError: A table is no longer there as the run read it.
        """
        from scalr_prod.operations import explain_event

        return explain_event(self.settings, event_id)

    def ui(self, *, port: int | None = None, started: Callable[[str], None]) -> None:
        """Serve a page over the project on 127.0.0.1, until Ctrl-C or SIGTERM.

        Args:
            port: 0: any that is free; default: ``[ui] port``.
            started: Called with the page's address once it can be opened; whoever has it can read all that the project knows.

        Raises:
            ReportError: The port is taken.
        """
        from scalr_prod.reporting import serve

        serve(self.settings, port=port, on_started=started)

    def experiment(self, *, outcomes: str | None = None, out: str | Path | None = None) -> ExperimentReport:
        """Who is held out; with outcomes, the effect of synthetic events, with a 95 % interval.

        Args:
            outcomes: Path or URL of a table ``user_id``, ``value`` and, where there is one, ``pre_value``: one row a user.
            out: Write every user's side there: ``.parquet`` or ``.csv``.

        Returns:
            Users of each side; with outcomes, the effect and its interval.

        Raises:
            SettingsError: Nobody is held out.
            InputError: The outcomes cannot be read, lack a column, or hold a user twice.
            EvaluationError: There are too few users on a side; or the file's name ends otherwise, or it cannot be written.
        """
        from scalr_prod.operations import analyze_experiment

        return analyze_experiment(self.settings, outcomes=outcomes, out=Path(out) if out is not None else None)

    def export_feast(self, folder: str | Path, form: ExportFormat | None = None) -> FeastExport:
        """Write Feast definitions of published events and source histories into a feature repository of your own.

        Args:
            folder: A folder of the repository.
            form: ``delta``: the lake's tables as they are; ``parquet``: copies of their rows, for Feast's file and DuckDB stores.
                Default: by the offline store of the repository's ``feature_store.yaml``.

        Returns:
            The file, its feature views, and the rows and Delta version of each as of now.

        Raises:
            TableNotFound: Nothing was published yet.
            ForeignFiles: A file or folder of that name lies there that this command did not make.
            FeatureStoreError: There is no ``feature_store.yaml`` to tell the format from, or nothing can be written there.
        """
        from scalr_prod.features import export_definitions

        return export_definitions(self.settings, Path(folder), form)

    def forget(self, users: Sequence[int | str]) -> ErasureReport:
        """Remove users from all that the project keeps, and keep logs and runs from bringing them back.

        Args:
            users: Ids as the log has them, to the letter.

        Returns:
            What was removed, by where it was, and translators that are to be trained again.

        Raises:
            ForgettingError: No user is named; an id is not of the lake's type; or another process is at it.
            LeaseHeld: A run is at work. What was done so far stays done.
        """
        from scalr_prod.operations import erase_users
        from scalr_prod.pipeline import stage_context

        with stage_context("forget"):
            return erase_users(self.settings, users)

    def forget_items(self, items: Sequence[int | str]) -> ErasureReport:
        """Remove items of the target domain likewise; a translator that knows them is not let propose them.

        Args:
            items: Ids as the log has them, to the letter.

        Returns:
            What was removed, by where it was.

        Raises:
            ForgettingError: No item is named; an id is not of the lake's type; or another process is at it.
            LeaseHeld: A run is at work. What was done so far stays done.
        """
        from scalr_prod.operations import erase_items
        from scalr_prod.pipeline import stage_context

        with stage_context("forget"):
            return erase_items(self.settings, items)

    def maintain(self, *, dry_run: bool = False) -> RetentionReport:
        """Remove what ``[retention]`` no longer keeps; never what a published window, a served translator or a run at work needs.

        Args:
            dry_run: Only say what would go.

        Returns:
            What was removed, or would be, by kind.
        """
        from scalr_prod.operations import apply_retention
        from scalr_prod.pipeline import stage_context

        with stage_context("maintain"):
            return apply_retention(self.settings, dry_run=dry_run)

    def _do(self, name: str, *, run_id: str | None = None, **asked: Any) -> Any:
        return self._walk(pipeline.single_stage(name), run_id=run_id, **asked).reports[name]

    def _walk(self, graph: tuple[pipeline.Stage, ...], *, run_id: str | None = None, **asked: Any) -> pipeline.PipelineContext:
        if run_id is not None:
            job = pipeline.PipelineContext.from_run(self.settings, run_id, progress=self.progress)
        else:
            job = pipeline.PipelineContext(self.settings, progress=self.progress, **asked)
        return pipeline.execute_stages(job, graph)
