# SPDX-License-Identifier: Apache-2.0
"""What a run would have drawn for a sample of its users by other parameter sets of its translator, and how they score given items."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.id_index import index_in
from scalr_prod.generation import ConsumptionIndex, RequestEncoder, confidence_weight, read_contexts
from scalr_prod.privacy.run_rows import as_ones, weight_matrix
from scalr_prod.schemas import USER_ID
from scalr_prod.translator import NO_ITEM, Contexts, TranslatorModule, load_version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.privacy.run_rows import RunRows


#: Most contexts that are drawn again by each parameter set.
MAX_CONTEXTS: Final = 2_000
#: Changes the noise of a draw: a second draw of the same context, independent of the published one.
_OTHER_NOISE: Final = 0x5CA1_AB1E
#: Users whose distribution over all items is held at a time.
_BLOCK: Final = 64


@dataclass(frozen=True)
class ShadowDraws:
    """A sample of the users of a `RunRows`, with the run's own requests for them.

    Attributes:
        module: The run's translator.
        settings: ``[generation]`` of the run.
        user: int64 [V]. Positions of the users in the `RunRows`, ascending.
        newcomer: bool [V].
        contexts: [B]. Their contexts, as the run requested them.
        owner: int64 [B]. Position of each context's user in ``user``.
        buckets: They are the run's users in hash bucket 0 of this many.
    """

    module: TranslatorModule
    settings: dict[str, Any]
    user: NDArray[np.int64]
    newcomer: NDArray[np.bool_]
    contexts: Contexts
    owner: NDArray[np.int64]
    buckets: int

    @classmethod
    def open(
        cls,
        connection: DuckDBPyConnection,
        settings: Settings,
        spec: RunSpec,
        rows: RunRows,
        *,
        newcomers_of: ShadowDraws | None = None,
    ) -> ShadowDraws:
        """Read the contexts of a sample of the users, as many as give about `MAX_CONTEXTS` contexts.

        Args:
            connection: The connection of `open_run_rows`.
            settings: The project's settings.
            spec: The run.
            rows: The run's rows.
            newcomers_of: A sample of all users. If given, read newcomers only, who may be few among all users.

        Raises:
            TranslatorError: The translator version cannot be loaded.
            LakeError: A table version that the run read is gone.
        """
        if newcomers_of is None:
            buckets = _count_buckets(connection, rows)
        else:
            is_new = f"{USER_ID} NOT IN (SELECT {USER_ID} FROM known_target_events WHERE trained)"
            buckets = _count_buckets(connection, rows, is_new)
            if buckets >= newcomers_of.buckets:
                return newcomers_of.select(newcomers_of.newcomer)
        version = load_version(settings, spec.translator_version)
        vocabulary = version.vocabulary()
        table, consumed_rows = read_contexts(connection, settings, spec, 0, buckets)
        if newcomers_of is not None:
            table = table.filter(table["newcomer"])
        position = index_in(table[USER_ID], rows.users)
        table, position = table.filter(position >= 0), position[position >= 0]
        if newcomers_of is not None and not len(table):
            return newcomers_of.select(newcomers_of.newcomer)
        consumed = None if consumed_rows is None else ConsumptionIndex.from_rows(consumed_rows, vocabulary)
        encoder = RequestEncoder(settings, spec, vocabulary, version.folds, connection=connection)
        user, first, owner = np.unique(position, return_index=True, return_inverse=True)
        return cls(
            newcomers_of.module if newcomers_of is not None else TranslatorModule.load(version.path, trusted=True),
            dict(spec.settings["generation"]),
            user.astype(np.int64),
            table["newcomer"].to_numpy()[first],
            Contexts.concat(list(encoder.iter_requests(table, consumed))),
            owner,
            buckets,
        )

    def select(self, mask: NDArray[np.bool_]) -> ShadowDraws:
        """Return some of the users: bool [V]."""
        kept = mask[self.owner]
        number = np.cumsum(mask) - 1
        return replace(
            self,
            user=self.user[mask],
            newcomer=self.newcomer[mask],
            contexts=self.contexts.take(np.flatnonzero(kept)),
            owner=number[self.owner[kept]],
        )

    def draw(self, parameter_set: NDArray[np.int32]) -> Any:
        """Draw as the run does, by given parameters and with other noise.

        Args:
            parameter_set: int32 [V]. Parameter set of each user.

        Returns:
            scipy CSR [V, N]: drawn items.
        """
        return as_ones(self.draw_weights(parameter_set))

    def draw_weights(self, parameter_set: NDArray[np.int32]) -> Any:
        """Draw as `draw` does, and return the confidence weight of each drawn item: scipy CSR float32 [V, N]."""
        options = self.settings
        contexts = replace(
            self.contexts, fold=parameter_set[self.owner].astype(np.int32), noise_key=self.contexts.noise_key ^ _OTHER_NOISE
        )
        samples = self.module.sample(
            contexts,
            options["events_per_source_event"],
            temperature=options["temperature"],
            min_lift=options["min_lift"],
            shortlist=options.get("shortlist"),
        )
        owner = np.repeat(self.owner, samples.items.shape[1])
        # Where nothing is drawn, probability and prior may be 0; such items are left out.
        prior = np.where(samples.items == NO_ITEM, 1, samples.prior.astype(np.float64))
        weight = confidence_weight(samples.probabilities.astype(np.float64), prior)
        return weight_matrix(owner, samples.items.ravel(), weight.ravel(), (len(self.user), self.module.n_target))

    def last_contexts(self, parameter_set: NDArray[np.int32]) -> Contexts:
        """Return each user's last context, for given parameters (int32 [V]), with no item excluded: [V]."""
        last = np.zeros(len(self.user), dtype=np.int64)
        last[self.owner] = np.arange(len(self.owner))
        return replace(
            self.contexts.take(last),
            fold=parameter_set.astype(np.int32),
            exclude=np.empty((len(last), 0), dtype=np.int32),
        )

    def mean_log_probability(self, parameter_set: NDArray[np.int32], items: Any) -> NDArray[np.float64]:
        """Return the mean of log P(item | last context) over each user's items, by given parameters.

        Args:
            parameter_set: int32 [V]. Parameter set of each user.
            items: scipy CSR [V, N]. Items of each user, at least one.

        Returns:
            float64 [V].
        """
        count = np.diff(items.indptr)
        candidates = np.full((len(count), int(count.max())), NO_ITEM, dtype=np.int32)
        row = np.repeat(np.arange(len(count)), count)
        candidates[row, np.arange(len(row)) - np.repeat(items.indptr[:-1], count)] = items.indices
        probability, _ = self.module.score(self.last_contexts(parameter_set), candidates)
        log_p = np.where(candidates >= 0, np.log(np.maximum(probability, 1e-30)), 0)
        return np.asarray(log_p.sum(1, dtype=np.float64) / count)

    def log_draw_probabilities(self, parameter_set: int, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return log P^(1/T) / Σ P^(1/T) of all items for some users' last contexts, by one parameter set: float32 [len(users), N]."""
        contexts = self.last_contexts(np.full(len(self.user), parameter_set, dtype=np.int32)).take(users)
        log_p = np.empty((len(users), self.module.n_target), dtype=np.float32)
        for start in range(0, len(users), _BLOCK):
            for rows, (p,) in self.module.distributions(contexts.slice(start, start + _BLOCK)):
                logits = p.clamp(min=1e-30).log() / self.settings["temperature"]
                log_p[start + rows] = logits.log_softmax(1).cpu().numpy()
        return log_p


def _count_buckets(connection: DuckDBPyConnection, rows: RunRows, condition: str = "true") -> int:
    """Return the number of hash buckets whose first has about `MAX_CONTEXTS` contexts of the users of an SQL condition."""
    ((contexts,),) = connection.execute(
        f"""SELECT count(DISTINCT ({USER_ID}, source_domain, source_item_id, source_event_timestamp)) FROM run_rows
            WHERE {condition}"""
    ).fetchall()
    # A multiple, so that the users are among those of the rows.
    return rows.buckets * max(1, -(-int(contexts) // (rows.buckets * MAX_CONTEXTS)))
