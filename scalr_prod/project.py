# SPDX-License-Identifier: Apache-2.0
"""`Project`: the package from Python. What the commands do are its methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalr_prod import stages
from scalr_prod.holding import Holding
from scalr_prod.steering import Steered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from scalr_prod.downstream import EvaluationReport
    from scalr_prod.generation import GenerationReport
    from scalr_prod.histories import HistoriesReport
    from scalr_prod.ingest import IngestReport
    from scalr_prod.ledger import ModelVersion, Run
    from scalr_prod.publication import PublicationReport
    from scalr_prod.quality import GateReport, Verdict
    from scalr_prod.report import ReportWritten
    from scalr_prod.serving import PromotionDecision, PromotionReport
    from scalr_prod.training_set import TrainingSet, TrainingSetReport
    from scalr_prod.translator import EvaluationReport as TranslatorEvaluation
    from scalr_prod.translator import TrainReport, TranslatorVersion

__all__ = ["Project"]


class Project(Holding, Steered):
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

    # --- the stages

    def run(self) -> stages.PipelineReport:
        """Everything, from two logs to a published feature view and a training set beside it.

        Where λ is 0 for all users (by the policy or the settings), no event is generated or published.

        Raises:
            ScalrError: Any stage's, with the stage and the run named.
        """
        return stages.PipelineReport.of(self._walk(stages.path(), whole=True))

    def dry_run(self, stage: str | None = None) -> stages.DryRun:
        """What `run` would do, and about how long it would take by the rates of former runs; nothing is written.

        Args:
            stage: What this stage would do alone, such as ``generate``.

        Returns:
            The run's window, users and contexts where they are known; of each stage whether it would be done, and its seconds where former
            runs tell.
        """
        graph = stages.path() if stage is None else stages.step(stage)
        return stages.dry_run(self.settings, graph, whole=stage is None)

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
        report: IngestReport = self._do("ingest", domain=domain, replace=replace)
        return report

    def histories(self) -> HistoriesReport:
        """Build users' histories and items' statistics as of every event, and bring the feature views up to date."""
        self._feature_store = None
        report: HistoriesReport = self._do("histories")
        self._walk(stages.step("feast"))
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
        from scalr_prod.translator import named_version

        return named_version(self.settings, version)

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
        from scalr_prod.binding import open_own
        from scalr_prod.contracts import Table
        from scalr_prod.quality.drift import held_in

        lake, published = open_own(self.settings), self.ledger.publications()
        return held_in(lake, published) if published and lake.exists(Table.SYNTHETIC_TARGET_EVENTS) else {}

    def resume(self, run_id: str) -> stages.PipelineReport:
        """Go on with a run from where it stopped: what is staged is kept, what is missing is made.

        Args:
            run_id: Of a run that was planned.

        Returns:
            What each stage that was done came to.

        Raises:
            RunNotFound: No such run.
        """
        return stages.resume_run(self.settings, run_id, progress=self.progress)

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
        from scalr_prod.lineage import traced
        from scalr_prod.metrics import measured
        from scalr_prod.publication import rollback_run

        told = traced(self.settings, "rollback", run_id=lambda: run_id)
        with measured(self.settings, "rollback", refusals=(RunNotFound, PublicationError)), told:
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
        """Train models with and without synthetic events, beside controls, and judge them on what came later.

        Args:
            cold_fraction: Hide the target history of this share of users from everything; default: by ``[downstream]``.
            cutoff: Test from then on (UTC); default: by ``[downstream]``.
            cutoffs: Rolling cutoffs: what comes after the first, in so many equal parts.
            arms: Only these, and those compared.
            full: Every arm, model, seed and validation window.
            quick: End with the first verdict, for which fewer choices are tried; no policy is written.

        Returns:
            Lifts with intervals by model, arm and segment, and the policy that runs follow.
        """
        from scalr_prod.downstream import evaluate

        return evaluate(
            self.settings,
            cold_fraction=cold_fraction,
            cutoff=cutoff,
            cutoffs=cutoffs,
            arms=tuple(arms) if arms else None,
            full=full,
            quick=quick,
            progress=self.progress,
        )

    def report(self, run_id: str | None = None, *, output: str | Path | None = None) -> ReportWritten:
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
        from scalr_prod.report import write_report

        return write_report(self.settings, run_id, output=Path(output) if output is not None else None)

    def status(self) -> list[stages.StageState]:
        """Which stages are done, in their order, and the command that does each."""
        return stages.states(self.settings)

    def _do(self, name: str, *, run_id: str | None = None, **asked: Any) -> Any:
        return self._walk(stages.step(name), run_id=run_id, **asked).reports[name]

    def _walk(self, graph: tuple[stages.Stage, ...], *, run_id: str | None = None, **asked: Any) -> stages.Job:
        if run_id is not None:
            job = stages.Job.of_run(self.settings, run_id, progress=self.progress)
        else:
            job = stages.Job(self.settings, progress=self.progress, **asked)
        return stages.walk(job, graph)
