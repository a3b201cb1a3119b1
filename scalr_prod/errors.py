# SPDX-License-Identifier: Apache-2.0
"""All errors that a user can meet. The text of an error is where it is raised."""

from __future__ import annotations

__all__ = [
    "BadValue",
    "ColumnNotFound",
    "CommitFailed",
    "CommitOutcomeUnknown",
    "ComputeError",
    "DeadlineExceeded",
    "DomainsMixed",
    "EmptyInput",
    "EmptyWindow",
    "EvaluationError",
    "EventNotFound",
    "FeatureStoreError",
    "ForeignFiles",
    "ForgettingError",
    "GenerationError",
    "InputError",
    "InvalidRequest",
    "LakeError",
    "LeaseHeld",
    "LeaseLost",
    "LedgerError",
    "MalformedResponse",
    "ModelNotReady",
    "ModelVersionMismatch",
    "NoCommonUsers",
    "ProjectsMixed",
    "ProvenanceNotFound",
    "PublicationDisabled",
    "PublicationError",
    "QualityError",
    "QualityGateFailed",
    "ReportError",
    "RequestTooLarge",
    "RunNotFound",
    "RunOfOtherProject",
    "ScalrError",
    "SchedulerUnreachable",
    "ScoringError",
    "ServerUnreachable",
    "ServingError",
    "SettingsError",
    "TableNotFound",
    "TrainedPastWindow",
    "TrainingSetBusy",
    "TrainingSetError",
    "TranslatorError",
    "TranslatorNotFound",
    "UnreadableInput",
]


class ScalrError(Exception):
    """Base of the package's errors: what was found, where, and what to do next.

    Args:
        found: What was found, in one sentence.
        where: The file, column, row, table, key or address where it was found.
        next_step: The command or change that solves it in this case.

    Attributes:
        cure: What to do about any error of this class, for docs/reference/errors.md.
    """

    cure = "Do what the message says under `next`."

    exit_code = 1

    def __init__(self, found: str, *, where: str | None = None, next_step: str | None = None) -> None:
        super().__init__(found)
        self.found = found
        self.where = where
        self.next_step = next_step
        self.run_id: str | None = None
        self.stage: str | None = None

    def __str__(self) -> str:
        origin = ", ".join(
            part
            for part in (
                self.where,
                f"stage {self.stage}" if self.stage else None,
                f"run {self.run_id}" if self.run_id else None,
            )
            if part
        )
        head = f"{origin}: {self.found}" if origin else self.found
        return f"{head}\n  next: {self.next_step}" if self.next_step else head

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (Dask workers): rebuild with the keyword arguments kept.
        return _rebuild, (type(self), self.found, self.where, self.next_step, self.run_id, self.stage)

    def add_context(self, *, stage: str | None = None, run_id: str | None = None) -> ScalrError:
        """Add the stage and run where not known yet.

        Args:
            stage: Name of the stage.
            run_id: Id of the run.

        Returns:
            The error itself.
        """
        self.stage = self.stage or stage
        self.run_id = self.run_id or run_id
        return self

    def to_json(self) -> dict[str, str | None]:
        """Return the same fields as one JSON object, for ``--json``."""
        return {
            "error": type(self).__name__,
            "found": self.found,
            "where": self.where,
            "next_step": self.next_step,
            "stage": self.stage,
            "run_id": self.run_id,
        }


def _rebuild(
    kind: type[ScalrError], found: str, where: str | None, next_step: str | None, run_id: str | None, stage: str | None
) -> ScalrError:
    return kind(found, where=where, next_step=next_step).add_context(stage=stage, run_id=run_id)


class SettingsError(ScalrError):
    """scalr.toml or the environment holds an unknown key or an invalid value."""

    cure = "Correct the key that the message names; `scalr config show` lists the values in force and their origin."


class ForeignFiles(ScalrError):
    """A folder or table of the settings holds files that this package did not make; nothing was written."""

    cure = "Name another folder or table in the settings, or move the foreign files away."


class ProjectsMixed(ScalrError):
    """Two projects use one name in a store, or one lake or home; nothing was written."""

    cure = "Give one of the two another `[project] name`, or its own home and lake."


class InputError(ScalrError):
    """Input data was rejected; nothing was written."""

    cure = "Correct the input, then run the same command again; nothing has to be undone."


class UnreadableInput(InputError):
    """The input does not exist or cannot be decoded."""

    cure = "Check the path, the format and the query, and that the file is complete."


class EmptyInput(InputError):
    """The input can be read, but has no rows."""

    cure = "Check the path or the query: a log needs at least one event."


class ColumnNotFound(InputError):
    """A mapped column is missing; the message lists the existing ones."""

    cure = "Map one of the existing columns, under `[domains.<domain>] columns`."


class BadValue(InputError):
    """A cell cannot be accepted; the message names column and row."""

    cure = "Correct the cell in the source, or leave its rows out with a `query`."


class LakeError(ScalrError):
    """A Delta table could not be read or written."""

    cure = "Check `[project] lake`, the permissions and the free space, then run the same command again."


class DomainsMixed(LakeError):
    """The settings name other domains than the tables were made for; nothing was written."""

    cure = "Correct the domains as the message says, or give them another `[project] home`."


class TableNotFound(LakeError):
    """The table does not exist yet; names the command that makes it."""

    cure = "Run the command that the message names, or `scalr run`, which runs every stage."


class CommitFailed(LakeError):
    """The commit did not land: nothing changed, and it is safe to retry."""

    cure = "Run the same command again."


class CommitOutcomeUnknown(LakeError):
    """The commit may have landed; the table's log shows whether it did."""

    cure = "Run the same command again: a commit that landed is recognised."


class LedgerError(ScalrError):
    """The ledger's database could not be reached, read or written."""

    cure = "Check `[ledger] url`, and that its database answers; then run the same command again."


class RunNotFound(LedgerError):
    """No run with this id."""

    cure = "`scalr runs list` lists the existing runs."


class RunOfOtherProject(RunNotFound):
    """The run with this id belongs to another project; the message names it."""

    cure = "Use the settings of the project that the message names."


class LeaseHeld(LedgerError):
    """Another driver holds the run's lease; the message says which, and until when."""

    cure = "Wait for the other driver to finish; if it has died, its lease expires. Then run the same command again."


class LeaseLost(LedgerError):
    """Another driver has taken over the run since."""

    cure = "Leave the run to the other driver; `scalr runs show RUN` shows its progress."


class FeatureStoreError(ScalrError):
    """Feast could not be opened, applied or read."""

    cure = "Check `[feast]` and that its stores answer; `scalr histories` rebuilds registry and online store from the lake."


class TranslatorError(ScalrError):
    """The translator could not be trained, loaded or evaluated."""

    cure = "Ingest more events, or change `[translator]` as the message says; then `scalr translator train`."


class NoCommonUsers(TranslatorError):
    """Source and target domain share no user."""

    cure = "Check that both logs use the same user ids, or map the ids with `[users] map`."


class TranslatorNotFound(TranslatorError):
    """No translator version fits the request."""

    cure = "`scalr translator train` trains a version; `scalr translator list` lists the existing ones."


class TrainedPastWindow(TranslatorError):
    """The translator was trained on events from after what the run may know."""

    cure = 'Run `scalr translator train --trained-until` with the start of the window, or set `[generation] mode = "backfill"`.'


class ServingError(ScalrError):
    """The local Triton could not be started, stopped, or asked to load a model."""

    cure = '`scalr doctor` checks every part; `scalr serving install` makes its environment; `[serving] scorer = "local"` needs none.'


class ScoringError(ScalrError):
    """A scoring request failed."""

    cure = "Look at the server's log (`scalr triton status`), then run the same command again."


class ServerUnreachable(ScoringError):
    """Nothing answers at the scorer's address."""

    cure = "Start the server, or correct `[serving] url`."


class ModelNotReady(ScoringError):
    """The server answers, but has not loaded the model."""

    cure = "`scalr translator promote` loads the version; `scalr doctor` shows what the server holds."


class ModelVersionMismatch(ScoringError):
    """The server answers with another model version than the pinned one."""

    cure = "`scalr translator promote --version N` serves the pinned version."


class MalformedResponse(ScoringError):
    """The response has a wrong shape, dtype, byte size or values."""

    cure = "Check that only this project's model answers at the address."


class InvalidRequest(ScoringError):
    """The request holds an index, age, time or number that the model cannot handle; nothing was computed."""

    cure = "Use a version that was trained from the tables of the request: `scalr run`."


class RequestTooLarge(ScoringError):
    """The request exceeds the limit; it was not sent."""

    cure = "Raise `[serving] max_request_mb`, or shorten `[histories] length` or `[generation] batch_size`."


class DeadlineExceeded(ScoringError):
    """The deadline over all attempts has passed."""

    cure = "Raise `[serving] deadline_s`, or give the server fewer clients or more threads."


class ComputeError(ScalrError):
    """A task on Dask workers failed, or its workers died repeatedly."""

    cure = "Correct what the message names, then run the command that it names: finished work is kept or repeated."


class SchedulerUnreachable(ComputeError):
    """The Dask scheduler does not answer."""

    cure = "Start the Dask scheduler, correct `[compute] dask`, or leave it out to use local processes."


class GenerationError(ScalrError):
    """Synthetic events could not be generated."""

    cure = "Correct what the message names, then `scalr runs resume RUN`: finished parts are kept."


class EmptyWindow(GenerationError):
    """The window holds no source event."""

    cure = "Choose `[generation] start` and `end` around source events, or ingest those of the window."


class PublicationError(ScalrError):
    """The run cannot be published or rolled back in its state."""

    cure = "`scalr runs show RUN` shows the run's state, and the message the allowed states."


class PublicationDisabled(PublicationError):
    """The project's publication is disabled: the feature view reads as empty, and nothing is published to it."""

    cure = "`scalr publication enable` enables it again."


class EventNotFound(PublicationError):
    """The feature view has no event with this id."""

    cure = "Take an `event_id` of `synthetic_target_events`; events that were rolled back or replaced are not in it."


class ProvenanceNotFound(PublicationError):
    """The feature view has the event, but the source event that it was translated from is not kept."""

    cure = 'Set `[publication] provenance = "separate"`, and publish the run again: `scalr runs rollback RUN`, `scalr runs resume RUN`.'


class TrainingSetError(ScalrError):
    """The training set could not be built."""

    cure = "Correct what the message names, then `scalr dataset build`."


class TrainingSetBusy(TrainingSetError):
    """The inputs changed during the build, or another build is running. Nothing was kept; safe to retry."""

    cure = "Run the same command again when the other build has ended."


class EvaluationError(ScalrError):
    """There is nothing to evaluate on, or a downstream model is unusable."""

    cure = "Choose an earlier cutoff or fewer of them, ingest more target events, or correct the model that the message names."


class QualityError(ScalrError):
    """The audit itself failed; this says nothing about the rows."""

    cure = "Correct the suite or the data set that the message names, then run the same command again."


class ForgettingError(ScalrError):
    """Users cannot be erased, or the suppression list cannot be read; finished steps are kept."""

    cure = "Correct the ids or the store that the message names, then run the same command again: it continues."


class ReportError(ScalrError):
    """A page cannot be rendered, written or served."""

    cure = "Choose another output file or port, or correct what the message names."


class QualityGateFailed(ScalrError):
    """The quality gate rejected the run or the data set; the message names the broken rules and the report."""

    cure = "Open the report: it lists each broken rule with rows that broke it. Fix the logs or the setting, then `scalr run`."

    exit_code = 3
