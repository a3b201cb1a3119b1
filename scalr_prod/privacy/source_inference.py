# SPDX-License-Identifier: Apache-2.0
"""Source inference: pick a user's source history among 100 from the user's published target rows.

The attacker has the translator, and the source histories of 100 users as the run read them, and takes the history under which the rows are
most likely. The control does the same with the user's real target events instead, which readers of the target domain have anyway, by
parameters that were not trained on any of the 100 users. Newcomers have no target events: without published rows, the attacker guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.privacy.attack_statistics import Estimate, bootstrap_mean
from scalr_prod.translator import ALL_USERS, COLD_USERS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.privacy.run_rows import RunRows
    from scalr_prod.privacy.shadow_draws import ShadowDraws


#: Source histories to pick from.
CANDIDATES: Final = 100


@dataclass(frozen=True)
class SourceInference(Jsonable):
    """Share of the users whose source history was picked among that of `candidates` users.

    Attributes:
        users: Number of users.
        candidates: Histories to pick from; a guess is right with a probability of 1 / candidates.
        real_rows: From the user's real target events alone: the control. None for newcomers, who have none.
        published_rows: From the published rows, without their source events.
        with_provenance: From the published rows and their source items.
    """

    users: int
    candidates: int
    real_rows: Estimate | None
    published_rows: Estimate
    with_provenance: Estimate


def measure_source_inference(rows: RunRows, shadow: ShadowDraws, *, mode: str) -> SourceInference | None:
    """Measure the attack on users with real target events, in groups of one fold; None if no fold has enough of them.

    Args:
        rows: Rows of the run.
        shadow: Draws of a sample of its users.
        mode: ``backfill`` or ``causal``.
    """
    members = shadow.select(rows.is_member[shadow.user] & ~shadow.newcomer)
    fold = rows.fold[members.user]
    hits: dict[str, list[NDArray[np.float64]]] = {"real_rows": [], "published_rows": [], "with_provenance": []}
    for own in np.unique(fold).tolist():
        for group in _groups(np.flatnonzero(fold == own)):
            held_out = members.log_draw_probabilities(own, group)
            drawn_by = held_out if mode == "backfill" else members.log_draw_probabilities(ALL_USERS, group)
            hits["real_rows"].append(hit_probability(rows.real[members.user[group]] @ held_out.T))
            _attack_rows(hits, rows, members, group, drawn_by)
    return _summarize(hits)


def measure_newcomers_source_inference(rows: RunRows, newcomers: ShadowDraws) -> SourceInference | None:
    """Measure the attack on newcomers, among newcomers; None if there are too few of them.

    Args:
        rows: Rows of the run.
        newcomers: Draws of a sample of its newcomers.
    """
    hits: dict[str, list[NDArray[np.float64]]] = {"published_rows": [], "with_provenance": []}
    for group in _groups(np.arange(len(newcomers.user))):
        _attack_rows(hits, rows, newcomers, group, newcomers.log_draw_probabilities(COLD_USERS, group))
    return _summarize(hits)


def _groups(users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Divide users into groups of `CANDIDATES`; the rest is left out."""
    return [users[start : start + CANDIDATES] for start in range(0, len(users) - CANDIDATES + 1, CANDIDATES)]


def _attack_rows(
    hits: dict[str, list[NDArray[np.float64]]],
    rows: RunRows,
    shadow: ShadowDraws,
    group: NDArray[np.int64],
    log_p: NDArray[np.float32],
) -> None:
    """Append how often the published rows of a group point to the own history; ``log_p`` is float32 [C, N], by history."""
    user = shadow.user[group]
    likelihood = rows.drawn[user] @ log_p.T
    hits["published_rows"].append(hit_probability(likelihood))
    hits["with_provenance"].append(hit_probability(likelihood + _inconsistent(rows.source[user], shadow, group)))


def _summarize(hits: dict[str, list[NDArray[np.float64]]]) -> SourceInference | None:
    if not hits["published_rows"]:
        return None
    estimates = {name: bootstrap_mean(np.concatenate(found)) for name, found in hits.items()}
    users = sum(map(len, hits["published_rows"]))
    return SourceInference(
        users, CANDIDATES, estimates.get("real_rows"), estimates["published_rows"], estimates["with_provenance"]
    )


def _inconsistent(named: Any, shadow: ShadowDraws, group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a penalty for each source item that a user's rows name and a candidate's history lacks: float64 [C, C]."""
    from scalr_prod.privacy.run_rows import user_item_matrix

    history = shadow.last_contexts(np.zeros(len(shadow.user), dtype=np.int32)).history_items[group]
    owner = np.repeat(np.arange(len(group), dtype=np.int32), history.shape[1])
    items = np.where(history > 0, history, -1).ravel()
    known = named.copy().tolil()
    known[:, 0] = 0  # items that the translator does not know
    in_common = (known.tocsr() @ user_item_matrix(owner, items, (len(group), named.shape[1])).T).toarray()
    count = np.asarray(known.sum(axis=1)).reshape(-1, 1)
    penalty: NDArray[np.float64] = -1e6 * (count - in_common).astype(np.float64)
    return penalty


def hit_probability(likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability that the attack picks each user's own history; ties are broken at random.

    Args:
        likelihood: float64 [C, C]. Log likelihood of each user's rows under each history; a user's own is on the diagonal.

    Returns:
        float64 [C].
    """
    best = likelihood >= likelihood.max(axis=1, keepdims=True)
    probability: NDArray[np.float64] = np.where(np.diagonal(best), 1 / best.sum(axis=1), 0.0)
    return probability
