# SPDX-License-Identifier: Apache-2.0
"""Membership inference: do a run's rows reveal whether a user's target events trained the translator?

The attacker holds a user's real target events and the rows of the whole run. A translator has one parameter set for each fold, which was
not trained on the fold's users, so every user is both trained on ("in") and not ("out"): the attack gets rows drawn by a set that was
trained on the user, and rows drawn by the user's own fold's set. Which fold a user is in is decided by a hash. So popularity, activity and
time are the same on both sides, and an AUC above 0.5 is due to the user's events alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.privacy.attack_statistics import AttackSuccess, measure_attack
from scalr_prod.translator import ALL_USERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.privacy.run_rows import RunRows
    from scalr_prod.privacy.shadow_draws import ShadowDraws


#: Smallest number of attacked users, and of users whose rows the attack reads. With fewer, sampling noise dominates the AUC.
MIN_USERS: Final = 100
#: Users that are attacked, and users whose real events show which items go together.
MAX_ATTACKED: Final = 2_000
#: Rows of users processed at a time.
_BLOCK: Final = 256
#: Attacks on what is published. The others show what folds prevent, and what the translator itself would tell.
PUBLISHED_ATTACKS: Final = ("own_rows", "closest_row_set", "item_counts", "newcomers_closest_row_set", "newcomers_item_counts")


@dataclass(frozen=True)
class DrawnByFold:
    """Rows of other users by the parameter set that drew them.

    Attributes:
        drawn: For each fold, scipy CSR [V, N]. Items of each of V users.
        own_row: For each fold, int64 [M]. The attacked user's own row, which is left out; -1: there is none.
    """

    drawn: Sequence[Any]
    own_row: Sequence[NDArray[np.int64]]


def measure_membership(
    rows: RunRows, shadow: ShadowDraws, newcomers: ShadowDraws, *, mode: str, is_aligned: bool
) -> dict[str, AttackSuccess]:
    """Measure every attack for which there are enough users.

    Args:
        rows: Rows of the run.
        shadow: Draws of a sample of its users.
        newcomers: Draws of a sample of its newcomers.
        mode: ``backfill`` or ``causal``.
        is_aligned: Whether the run dropped draws to match popularity: its rows then differ from any new draw.

    Returns:
        Attack → its success; those of `PUBLISHED_ATTACKS` are on what is published.
    """
    found = _attack_other_users(rows, shadow, newcomers, mode)
    members = shadow.select(rows.is_member[shadow.user] & ~shadow.newcomer)
    if len(members.user) < MIN_USERS:
        return found
    own_fold = rows.fold[members.user]
    real, folds = rows.real[members.user], members.module.folds
    outside, inside = members.draw(own_fold), members.draw(_other_fold(own_fold, folds))

    def similarity(drawn: Any) -> NDArray[np.float64]:
        return item_similarity(drawn, real, rows.real[:MAX_ATTACKED])

    score_outside = similarity(outside)
    if not is_aligned:
        found = {"own_rows": measure_attack(similarity(rows.drawn[members.user]), score_outside)} | found
    found["own_rows_without_folds"] = measure_attack(similarity(inside), score_outside)
    found["translator_scores"] = _attack_scores(members, own_fold, real, mode)
    return found


def _attack_scores(members: ShadowDraws, own_fold: NDArray[np.int32], real: Any, mode: str) -> AttackSuccess:
    """Attack by probabilities of the real items: by the set that a causal run uses, or the next fold's, and by the user's own fold's.

    Some items are more likely under any set: with three sets, the probability by the third is the measure.
    """
    folds = members.module.folds
    trained = np.full_like(own_fold, ALL_USERS) if mode == "causal" else _other_fold(own_fold, folds)
    inside, outside = members.mean_log_probability(trained, real), members.mean_log_probability(own_fold, real)
    reference = members.mean_log_probability(_other_fold(own_fold, folds, 2), real) if folds > 2 else 0.0  # noqa: PLR2004
    return measure_attack(inside - reference, outside - reference)


def _other_fold(fold: NDArray[np.int32], folds: int, step: int = 1) -> NDArray[np.int32]:
    """Return the set of the fold after each user's own, which was trained on the user. Every set is "in" as often as it is "out"."""
    return ((fold + step) % folds).astype(np.int32)


def _attack_other_users(rows: RunRows, shadow: ShadowDraws, newcomers: ShadowDraws, mode: str) -> dict[str, AttackSuccess]:
    """Attack users by other users' rows: of the run itself if the fold's sets drew them, else by the same sets' new draws."""
    attacked = attacked_users(rows)
    folds = shadow.module.folds
    found: dict[str, AttackSuccess] = {}
    if mode == "backfill":
        groups = [np.flatnonzero((rows.fold == fold) & ~rows.newcomer) for fold in range(folds)]
        drawn = DrawnByFold([rows.drawn[users] for users in groups], [positions(attacked, users) for users in groups])
    else:
        veterans = shadow.select(~shadow.newcomer)
        drawn = _draw_by_fold(veterans, attacked, folds)
    found |= attack_other_rows(rows, attacked, drawn)
    by_newcomers = attack_other_rows(rows, attacked, _draw_by_fold(newcomers, attacked, folds))
    return found | {f"newcomers_{name}": success for name, success in by_newcomers.items()}


def _draw_by_fold(shadow: ShadowDraws, attacked: NDArray[np.int64], folds: int) -> DrawnByFold:
    if len(shadow.user) < MIN_USERS:
        return DrawnByFold([], [])
    drawn = [shadow.draw(np.full(len(shadow.user), fold, dtype=np.int32)) for fold in range(folds)]
    return DrawnByFold(drawn, [positions(attacked, shadow.user)] * folds)


def attacked_users(rows: RunRows) -> NDArray[np.int64]:
    """Return the positions of at most `MAX_ATTACKED` users who were trained on, equally many of each fold."""
    members = np.flatnonzero(rows.is_member & ~rows.newcomer)
    by_fold = [members[rows.fold[members] == fold] for fold in np.unique(rows.fold[members])]
    count = min([MAX_ATTACKED // max(len(by_fold), 1), *(len(users) for users in by_fold)])
    return np.sort(np.concatenate([users[:count] for users in by_fold])) if by_fold else np.empty(0, dtype=np.int64)


def positions(wanted: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each wanted value among ascending ones, -1 where it is missing."""
    position = np.searchsorted(among, wanted)
    position[position == len(among)] = 0
    return np.where(among[position] == wanted, position, -1) if len(among) else np.full(len(wanted), -1)


def attack_other_rows(rows: RunRows, attacked: NDArray[np.int64], drawn: DrawnByFold) -> dict[str, AttackSuccess]:
    """Attack users by what other users' rows of each parameter set have in common with their real events.

    ``control`` compares two sets that were both trained on the user.
    """
    if len(attacked) < MIN_USERS or not drawn.drawn or min(part.shape[0] for part in drawn.drawn) < MIN_USERS:
        return {}
    real, fold, folds = rows.real[attacked], rows.fold[attacked], len(drawn.drawn)
    rarity = item_rarity(rows.real)
    scores: dict[str, list[NDArray[np.float64]]] = {"closest_row_set": [], "item_counts": []}
    for part, own in zip(drawn.drawn, drawn.own_row, strict=True):
        scores["closest_row_set"].append(closest_records(real, part, own, rarity))
        scores["item_counts"].append(item_counts(real, part, own))
    everyone = np.arange(len(attacked))
    by_step = {
        name: [np.stack(by_fold)[_other_fold(fold, folds, step), everyone] for step in range(min(folds, 3))]
        for name, by_fold in scores.items()
    }
    found = {name: measure_attack(own[1], own[0]) for name, own in by_step.items()}
    control = by_step["closest_row_set"]
    return found | ({"control": measure_attack(control[1], control[2])} if folds > 2 else {})  # noqa: PLR2004 - a third set


def item_rarity(real: Any) -> NDArray[np.float32]:
    """Return log(users / users of the item) of each item, 0 for items that nobody has: float32 [N]."""
    count = np.asarray(real.sum(axis=0)).ravel()
    rarity: NDArray[np.float32] = np.where(count > 0, np.log((1 + real.shape[0]) / np.maximum(count, 1)), 0).astype(np.float32)
    return rarity


def closest_records(real: Any, drawn: Any, own_row: NDArray[np.int64], rarity: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the similarity of each user's real items to the most similar other user's drawn items: the distance to the closest record.

    Arguments are those of `nearest_rows`.

    Returns:
        float64 [M]. Cosine, 0 to 1.
    """
    return nearest_rows(real, drawn, own_row, rarity)[1]


def nearest_rows(
    real: Any, drawn: Any, own_row: NDArray[np.int64], rarity: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the user with the drawn items most similar to each user's real items, and the similarity.

    Args:
        real: scipy CSR [M, N]. Items of the attacked users.
        drawn: scipy CSR [V, N]. Drawn items of V users, or their weights.
        own_row: int64 [M]. Row of ``drawn`` that is the user's own and does not count; -1: none.
        rarity: float32 [N]. Weight of an item in common: popular items are in common by chance.

    Returns:
        int64 [M]: position in ``drawn``. float64 [M]: cosine, 0 to 1.
    """
    from scipy import sparse

    weights = sparse.diags_array(np.sqrt(rarity))
    left, right = (_normalized(sparse.csr_array(matrix) @ weights) for matrix in (real, drawn))
    nearest, closest, right = np.empty(real.shape[0], dtype=np.int64), np.empty(real.shape[0]), right.T.tocsc()
    for start in range(0, real.shape[0], _BLOCK):
        block = (left[start : start + _BLOCK] @ right).toarray()
        own = own_row[start : start + _BLOCK]
        block[np.flatnonzero(own >= 0), own[own >= 0]] = 0
        nearest[start : start + _BLOCK] = block.argmax(1)
        closest[start : start + _BLOCK] = block.max(1)
    return nearest, closest


def _normalized(matrix: Any) -> Any:
    from scipy import sparse

    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return (sparse.diags_array(1 / np.maximum(length, 1e-12)) @ matrix).tocsr()


def item_counts(real: Any, drawn: Any, own_row: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean log share of the other users who were given each of a user's real items: float64 [M].

    Args:
        real: scipy CSR [M, N]. Items of the attacked users, at least one each.
        drawn: scipy CSR [V, N]. Drawn items of V users.
        own_row: int64 [M]. Row of ``drawn`` that is the user's own and does not count; -1: none.
    """
    count = np.asarray(drawn.sum(axis=0)).ravel()
    row = np.repeat(np.arange(real.shape[0]), np.diff(real.indptr))
    in_own = np.zeros(len(row))
    has_own = own_row[row] >= 0
    if has_own.any():
        in_own[has_own] = np.asarray(drawn[own_row[row[has_own]], real.indices[has_own]]).ravel()
    others = drawn.shape[0] - (own_row >= 0)
    share = (count[real.indices] - in_own + 0.5) / (others[row] + 1)
    mean: NDArray[np.float64] = np.bincount(row, np.log(share), minlength=real.shape[0]) / np.diff(real.indptr)
    return mean


def item_similarity(drawn: Any, real: Any, reference: Any) -> NDArray[np.float64]:
    """Return how much better each user's drawn items go together with the user's own real items than with those of others: float64 [M].

    Two items go together as far as the same users had them: the cosine of their users, which is 1 for the same item. The score is its mean
    over pairs of a drawn and a real item, minus the mean over the real items of all reference users. So popular draws score 0, and an item
    like the real ones counts where a run never draws what its user had.

    Args:
        drawn: scipy CSR [M, N]. Drawn items.
        real: scipy CSR [M, N]. Real items, at least one each.
        reference: scipy CSR [U, N]. Real items of the users who show which items go together.
    """
    from scipy import sparse

    count = np.asarray(reference.sum(axis=0)).ravel()
    users = sparse.csr_array(reference) @ sparse.diags_array(1 / np.sqrt(np.maximum(count, 1)))
    own, others = _mean_rows(real), np.asarray(_mean_rows(reference).mean(axis=0)).ravel()
    given = _mean_rows(drawn)
    # Items of no reference user have no cosine; the same item on both sides is still the same.
    unknown = sparse.diags_array((count == 0).astype(np.float64))
    similarity = np.asarray((given @ unknown).multiply(own).sum(axis=1)).ravel()
    transposed = users.T.tocsc()
    for start in range(0, drawn.shape[0], _BLOCK):
        left, right = (matrix[start : start + _BLOCK] @ transposed for matrix in (given, own))
        similarity[start : start + _BLOCK] += np.asarray(left.multiply(right).sum(axis=1)).ravel()
    background: NDArray[np.float64] = given @ (users.T @ (users @ others))
    score: NDArray[np.float64] = similarity - background
    return score


def _mean_rows(matrix: Any) -> Any:
    """Divide each row by its number of items."""
    from scipy import sparse

    return sparse.diags_array(1.0 / np.maximum(np.diff(matrix.indptr), 1)) @ sparse.csr_array(matrix)
