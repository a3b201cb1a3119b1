# SPDX-License-Identifier: Apache-2.0
"""Every error a user can meet, at one look. The text of an error stands where it is raised.

ScalrError                      exit code 1; names where, what was found, what to do next
├── SettingsError               scalr.toml or SCALR_*: unknown key, impossible value
├── ProjectsMixed               a home, lake, ledger, registry or model is another project's, or knows this one by another lake
├── ForeignFiles                a folder or table of the settings holds what this package did not make; it stays as it is
├── InputError                  foreign data refused at the edge; nothing was written
│   ├── UnreadableInput         no such file, truncated, not the format it claims to be, a query that fails
│   ├── EmptyInput              it can be read, but holds no row
│   ├── ColumnNotFound          a mapped column is not there; lists those that are
│   └── BadValue                null or empty id, wrong type, naive or unparsable timestamp, bad weight
├── LakeError
│   ├── DomainsMixed            the tables were made for other domains than the settings name
│   ├── TableNotFound           a stage was skipped; names the command that makes the table
│   ├── CommitFailed            nothing was written; safe to repeat
│   └── CommitOutcomeUnknown    the commit may have landed; read the log before repeating
├── LedgerError
│   ├── RunNotFound
│   │   └── RunOfOtherProject   the ledger holds it, for another project
│   ├── LeaseHeld               another driver works on the run
│   └── LeaseLost               another driver has taken the run over
├── FeatureStoreError           Feast could not be opened, applied or read
├── TranslatorError
│   ├── NoCommonUsers           source and target share no user: nothing to learn a translation from
│   ├── TranslatorNotFound      no such version; none trained or none promoted yet
│   └── TrainedPastWindow       it has seen what the window is about to ask of it
├── ServingError                the local Triton could not be started, stopped, or asked to load
├── ScoringError
│   ├── ServerUnreachable       nothing answers at the address
│   ├── ModelNotReady           the server is there, the model is not
│   ├── ModelVersionMismatch    another version answers than the one the run pinned
│   ├── MalformedResponse       wrong shape, dtype or byte size, NaN, index out of range
│   ├── InvalidRequest          an index, age, time or number outside of the model's tables
│   ├── RequestTooLarge         refused before it was sent
│   └── DeadlineExceeded        the deadline over all attempts has passed
├── GenerationError
│   ├── EmptyWindow             no source event in the window
│   └── SchedulerUnreachable    the Dask address does not answer
├── PublicationError            the run is not in a state that can be published or rolled back
│   ├── PublicationDisabled     the project's publication is switched off
│   └── EventNotFound           the feature view has no such event
├── TrainingSetError            the training set could not be built
│   └── TrainingSetBusy         its inputs changed meanwhile, or another build is at work; safe to repeat
├── EvaluationError             nothing to evaluate on, or a downstream model that cannot be used
├── QualityError                the audit itself could not be done
├── ForgettingError             users cannot be forgotten, or it cannot be told who was; what was done so far stays done
├── ReportError                 a page cannot be drawn, written or served
└── QualityGateFailed           exit code 3; names the failed expectations and the report
"""

from __future__ import annotations

from scalr_prod.errors.base import ScalrError

__all__ = [
    "BadValue",
    "ColumnNotFound",
    "CommitFailed",
    "CommitOutcomeUnknown",
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


class SettingsError(ScalrError):
    """scalr.toml or the environment holds an unknown key or an impossible value."""

    cure = "Correct the key that the message names; `scalr config show` tells what is in force, and where it came from."


class ForeignFiles(ScalrError):
    """A folder or table that the settings name holds what this package did not make; nothing was written."""

    cure = "Name another folder or table in the settings, or move what is there away."


class ProjectsMixed(ScalrError):
    """Two projects meet in one store under one name, or on one lake or home; nothing was written."""

    cure = "Give one of the two another `[project] name`, or a home and lake of its own."


class InputError(ScalrError):
    """Foreign data was refused at the edge; nothing was written."""

    cure = "Correct the input, then run the same command again; nothing has to be undone."


class UnreadableInput(InputError):
    """The input does not exist or cannot be decoded."""

    cure = "Check the path, the format and the query, and that the file is whole."


class EmptyInput(InputError):
    """The input can be read, but holds no row."""

    cure = "Check the path or the query: a log needs at least one event."


class ColumnNotFound(InputError):
    """A mapped column is missing; the message lists those that are there."""

    cure = "Map one of the columns that are there, under `[domains.<role>] columns`."


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
    """The commit did not land: nothing changed, and it is safe to repeat."""

    cure = "Run the same command again."


class CommitOutcomeUnknown(LakeError):
    """The commit may have landed; the table's log tells."""

    cure = "Run the same command again: a commit that landed is recognised."


class LedgerError(ScalrError):
    """The ledger's database could not be reached, read or written."""

    cure = "Check `[ledger] url`, and that its database answers; then run the same command again."


class RunNotFound(LedgerError):
    """No run with this id."""

    cure = "`scalr runs list` names the runs there are."


class RunOfOtherProject(RunNotFound):
    """The ledger holds a run with this id, of another project; the message names it."""

    cure = "Use the settings of the project that the message names."


class LeaseHeld(LedgerError):
    """Another driver works on the run; the message says which, and until when."""

    cure = "Wait for the other driver to end; where it has died, its lease runs out by itself. Then the same command again."


class LeaseLost(LedgerError):
    """Another driver has taken the run over since."""

    cure = "Leave the run to the other driver; `scalr runs show RUN` tells how far it is."


class FeatureStoreError(ScalrError):
    """Feast could not be opened, applied or read."""

    cure = "Check `[feast]` and that its stores answer; `scalr histories` makes registry and online store again from the lake."


class TranslatorError(ScalrError):
    """The translator could not be trained, loaded or evaluated."""

    cure = "Ingest more events, or change `[translator]` as the message says; then `scalr translator train`."


class NoCommonUsers(TranslatorError):
    """Source and target domain share no user."""

    cure = "Check that both logs name the same users alike, or map their ids with `[users] map`."


class TranslatorNotFound(TranslatorError):
    """No translator version fits the request."""

    cure = "`scalr translator train` makes a version; `scalr translator list` names those there are."


class TrainedPastWindow(TranslatorError):
    """The translator was trained on events from after what the run may know."""

    cure = 'Run `scalr translator train --trained-until` with the start of the window, or set `[generation] mode = "backfill"`.'


class ServingError(ScalrError):
    """The local Triton could not be started, stopped, or asked to load a model."""

    cure = "`scalr doctor` checks every part; `scalr serving install` makes its environment; a `[serving] scorer` that is local needs none."


class ScoringError(ScalrError):
    """A scoring request failed."""

    cure = "Look at the server's log (`scalr triton status`), then run the same command again."


class ServerUnreachable(ScoringError):
    """Nothing answers at the scorer's address."""

    cure = "Start the server, or correct `[serving] url`."


class ModelNotReady(ScoringError):
    """The server answers, but does not hold the model."""

    cure = "`scalr translator promote` loads the version; `scalr doctor` tells what the server holds."


class ModelVersionMismatch(ScoringError):
    """Another model version answers than the one pinned."""

    cure = "`scalr translator promote --version N` serves the pinned version."


class MalformedResponse(ScoringError):
    """The answer's shape, dtype, byte size or values are wrong."""

    cure = "Check that nothing but this project's model answers at the address."


class InvalidRequest(ScoringError):
    """The request holds an index, age, time or number that the model cannot work with; nothing was computed."""

    cure = "Ask a version that was trained from the tables that the request was made from: `scalr run`."


class RequestTooLarge(ScoringError):
    """The request exceeds the limit; it was not sent."""

    cure = "Raise `[serving] max_request_mb`, or shorten `[histories] length` or `[generation] batch_size`."


class DeadlineExceeded(ScoringError):
    """The deadline over all attempts has passed."""

    cure = "Raise `[serving] deadline_s`, or give the server fewer clients or more threads."


class GenerationError(ScalrError):
    """Synthetic events could not be generated."""

    cure = "Correct what the message names, then `scalr runs resume RUN`: what was made is kept."


class EmptyWindow(GenerationError):
    """The window holds no source event."""

    cure = "Choose `[generation] start` and `end` around source events, or ingest those of the window."


class SchedulerUnreachable(GenerationError):
    """The Dask scheduler does not answer."""

    cure = "Start the Dask scheduler, correct `[compute] dask`, or leave it out to work in local processes."


class PublicationError(ScalrError):
    """The run is not in a state in which it can be published or rolled back."""

    cure = "`scalr runs show RUN` tells the run's state, and the message which states will do."


class PublicationDisabled(PublicationError):
    """The project's publication is switched off: the feature view reads as empty, and nothing is published to it."""

    cure = "`scalr publication enable` switches it on again."


class EventNotFound(PublicationError):
    """The feature view has no event with this id."""

    cure = "Take an `event_id` of `synthetic_target_events`; what was rolled back or replaced is not in it."


class TrainingSetError(ScalrError):
    """The training set could not be built."""

    cure = "Correct what the message names, then `scalr dataset build`."


class TrainingSetBusy(TrainingSetError):
    """The inputs changed while it was built, or another build is at work. Nothing was kept; safe to repeat."""

    cure = "Run the same command again when the other one has ended."


class EvaluationError(ScalrError):
    """There is nothing to evaluate on, or a downstream model cannot be used."""

    cure = "Choose an earlier cutoff or fewer of them, ingest more target events, or correct the model that the message names."


class QualityError(ScalrError):
    """The audit itself could not be done; it says nothing about the rows."""

    cure = "Correct the suite or the data set that the message names, then run the same command again."


class ForgettingError(ScalrError):
    """Users cannot be forgotten, or it cannot be told who was forgotten; what was done so far stays done."""

    cure = "Correct the ids or the store that the message names, then run the same command again: it goes on."


class ReportError(ScalrError):
    """A page cannot be drawn, written or served."""

    cure = "Choose another output file or port, or correct what the message names."


class QualityGateFailed(ScalrError):
    """The gate said no; the message names the failed expectations and the report."""

    cure = "Open the report: it names each rule and rows that broke it. Mend the logs or the setting, then `scalr run`."

    exit_code = 3
