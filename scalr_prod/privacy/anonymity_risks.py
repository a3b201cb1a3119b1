# SPDX-License-Identifier: Apache-2.0
"""Singling-out, linkability and inference from a run's rows, by the protocol of Anonymeter (Giomi et al., PoPETs 2023).

Each attack makes one guess per user, from rows of parameters that were trained on the attacked users, and, as the control, from rows of
parameters that were not. Only what the first finds more often than the second is due to the users' target events. Both attack the same
users: those of one fold, whose parameter set has not seen them.

* ``backfill``: the published rows of users of the next fold, against those of other users of the users' own fold.
* ``causal``: the users' own published rows, against rows drawn again by their fold's set.

The attacks:

* *Singling-out*: the two items with the highest weights among a user's rows are claimed to be in the real events of exactly one user. Two
  items are claimed once, however many users' rows have them.
* *Linkability*: each user's real items are divided into two halves. Both are claimed to be of one user if the same user's rows are the
  most similar to both.
* *Inference*: of a user's real items all but one are known. It is claimed to be the item with the highest weight, among those not known,
  in the most similar user's rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.privacy.attack_statistics import AttackRisk, measure_risk
from scalr_prod.privacy.membership import MIN_USERS, attacked_users, item_rarity, nearest_rows, positions
from scalr_prod.privacy.run_rows import as_ones

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scalr_prod.privacy.run_rows import RunRows
    from scalr_prod.privacy.shadow_draws import ShadowDraws


#: Guesses processed at a time.
_BLOCK: Final = 256


@dataclass(frozen=True)
class AttackedFold:
    """Users of one fold, and the rows from which they are attacked.

    Attributes:
        real: scipy CSR [M, N]. Real items of M users, at least one each.
        trained: scipy CSR [V, N]. Weights of V users' rows by parameters that were trained on the M users.
        control: scipy CSR [V, N]. The same by parameters that were not.
        own_row: int64 [M]. Row of ``control`` that is the attacked user's own and does not count; -1: none.
    """

    real: Any
    trained: Any
    control: Any
    own_row: NDArray[np.int64]


@dataclass(frozen=True)
class Guesses:
    """Which guesses of an attack are right.

    Attributes:
        trained: bool [G]. About users on whom the parameters were trained.
        control: bool [H]. About the same users by the control's rows.
        chance: bool [G]. By chance.
    """

    trained: NDArray[np.bool_]
    control: NDArray[np.bool_]
    chance: NDArray[np.bool_]

    @classmethod
    def concat(cls, folds: Sequence[Guesses]) -> Guesses:
        """Concatenate the guesses of several folds, of one at least."""
        return cls(*(np.concatenate([getattr(fold, field) for fold in folds]) for field in ("trained", "control", "chance")))


def measure_risks(rows: RunRows, shadow: ShadowDraws, *, mode: str, is_aligned: bool) -> dict[str, AttackRisk]:
    """Measure the three attacks; empty if there are too few users, or if rows drawn again would differ from those of an aligned run.

    Args:
        rows: Rows of the run.
        shadow: Draws of a sample of its users.
        mode: ``backfill`` or ``causal``.
        is_aligned: Whether the run dropped draws to match popularity.
    """
    if mode == "causal":
        return {} if is_aligned else attack_folds(list(_own_rows(rows, shadow)), item_rarity(rows.real))
    return attack_folds(list(_other_rows(rows, shadow.module.folds)), item_rarity(rows.real))


def _own_rows(rows: RunRows, shadow: ShadowDraws) -> Iterator[AttackedFold]:
    members = shadow.select(rows.is_member[shadow.user] & ~shadow.newcomer)
    fold = rows.fold[members.user]
    if len(fold) < MIN_USERS:
        return
    again = members.draw_weights(fold)
    for number in np.unique(fold):
        users = np.flatnonzero(fold == number)
        published = members.user[users]
        yield AttackedFold(rows.real[published], rows.weight[published], again[users], np.full(len(users), -1))


def _other_rows(rows: RunRows, folds: int) -> Iterator[AttackedFold]:
    attacked = attacked_users(rows)
    for fold in range(folds):
        users = attacked[rows.fold[attacked] == fold]
        next_fold, own_fold = (np.flatnonzero((rows.fold == f) & ~rows.newcomer) for f in ((fold + 1) % folds, fold))
        count = min(len(next_fold), len(own_fold))  # of more rows, more are similar
        own_row = positions(users, own_fold[:count])
        yield AttackedFold(rows.real[users], rows.weight[next_fold[:count]], rows.weight[own_fold[:count]], own_row)


def attack_folds(folds: Sequence[AttackedFold], rarity: NDArray[np.float32]) -> dict[str, AttackRisk]:
    """Return the risk of each attack of which there are at least `MIN_USERS` guesses. A control of few guesses makes the interval wide.

    Args:
        folds: Users and rows.
        rarity: float32 [N]. Weight of an item in common.
    """
    rng = np.random.default_rng(0)
    guesses: dict[str, list[Guesses]] = {"singling_out": [], "linkability": [], "inference": []}
    for fold in folds:
        if not fold.trained.shape[0]:
            continue
        guesses["singling_out"].append(_single_out(fold, rng))
        has_two = np.diff(fold.real.indptr) > 1
        several = AttackedFold(fold.real[has_two], fold.trained, fold.control, fold.own_row[has_two])
        guesses["linkability"].append(_link(several, rarity, rng))
        guesses["inference"].append(_infer(several, rarity, rng))
    found = {name: Guesses.concat(of_folds) for name, of_folds in guesses.items() if of_folds}
    return {
        name: measure_risk(one.trained, one.control, one.chance)
        for name, one in found.items()
        if len(one.trained) >= MIN_USERS and len(one.control)
    }


def _single_out(fold: AttackedFold, rng: np.random.Generator) -> Guesses:
    """Guess that exactly one user has the two items of the highest weights in a row; by chance: two items at random."""
    row_owner = np.full(fold.control.shape[0], -1)
    has_row = fold.own_row >= 0
    row_owner[fold.own_row[has_row]] = np.flatnonzero(has_row)
    nobody = np.full(fold.trained.shape[0], -1)
    items = fold.real.shape[1]
    first = rng.integers(0, items, len(nobody))
    random = np.stack([first, (first + rng.integers(1, max(items, 2), len(nobody))) % items], axis=1)

    def guess(weight: Any, owner: NDArray[np.int64]) -> NDArray[np.bool_]:
        has_two = np.diff(weight.indptr) > 1
        pairs, first_row = np.unique(_heaviest_two(weight[has_two]), axis=0, return_index=True)  # each pair is one guess
        return fits_one_user(pairs, fold.real, owner[has_two][first_row])

    return Guesses(guess(fold.trained, nobody), guess(fold.control, row_owner), fits_one_user(random, fold.real, nobody))


def _heaviest_two(weight: Any) -> NDArray[np.int64]:
    """Return the two items of the highest weight in each row, which has at least two: int64 [V, 2], ascending."""
    row = np.repeat(np.arange(weight.shape[0]), np.diff(weight.indptr))
    ordered = weight.indices[np.lexsort((weight.indices, -weight.data, row))]
    first = weight.indptr[:-1]
    if not len(row):
        return np.empty((0, 2), np.int64)
    return np.sort(np.stack([ordered[first], ordered[first + 1]], axis=1), axis=1).astype(np.int64)


def fits_one_user(pairs: NDArray[np.int64], real: Any, owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for which pairs exactly one user has both items.

    Args:
        pairs: int64 [G, 2]. Two different items.
        real: scipy CSR [M, N]. Items of the users.
        owner: int64 [G]. A user who does not count for the pair; -1: none.

    Returns:
        bool [G].
    """
    from scipy import sparse

    users = np.empty(len(pairs), dtype=np.int64)
    by_item = as_ones(real).T.tocsr()
    for start in range(0, len(pairs), _BLOCK):
        block = pairs[start : start + _BLOCK]
        row = np.repeat(np.arange(len(block)), 2)
        chosen = sparse.csr_matrix((np.ones(len(row), np.float32), (row, block.ravel())), shape=(len(block), real.shape[1]))
        holders = (chosen @ by_item).tocoo()
        counts = (holders.data == 2) & (holders.col != owner[start : start + _BLOCK][holders.row])  # noqa: PLR2004 - both
        users[start : start + _BLOCK] = np.bincount(holders.row[counts], minlength=len(block))
    is_one: NDArray[np.bool_] = users == 1
    return is_one


def _link(fold: AttackedFold, rarity: NDArray[np.float32], rng: np.random.Generator) -> Guesses:
    """Guess that two halves are of one user, because the same row is the most similar to both; by chance: two rows at random."""
    left, right = split_items(fold.real, np.diff(fold.real.indptr) // 2, rng)
    count = len(fold.own_row)

    def guess(weight: Any, own_row: NDArray[np.int64]) -> NDArray[np.bool_]:
        (one, likeness), (other, other_likeness) = (nearest_rows(half, weight, own_row, rarity) for half in (left, right))
        return np.asarray((one == other) & (likeness > 0) & (other_likeness > 0))

    chance = rng.integers(0, max(fold.trained.shape[0], 1), (2, count))
    return Guesses(guess(fold.trained, np.full(count, -1)), guess(fold.control, fold.own_row), chance[0] == chance[1])


def _infer(fold: AttackedFold, rarity: NDArray[np.float32], rng: np.random.Generator) -> Guesses:
    """Guess a hidden item from the row most similar to the others; by chance: a published item, as often as it was published."""
    count = len(fold.own_row)
    hidden, known = split_items(fold.real, np.ones(count, dtype=np.int64), rng)

    def guess(weight: Any, own_row: NDArray[np.int64]) -> NDArray[np.bool_]:
        nearest, likeness = nearest_rows(known, weight, own_row, rarity)
        return np.asarray((_heaviest_other(weight[nearest], known) == hidden.indices) & (likeness > 0))

    published = fold.trained.indices
    chance = rng.choice(published, count) if len(published) else np.full(count, -1)
    return Guesses(guess(fold.trained, np.full(count, -1)), guess(fold.control, fold.own_row), chance == hidden.indices)


def _heaviest_other(weight: Any, known: Any) -> NDArray[np.int64]:
    """Return the item of the highest weight that is not known, in each row: int64 [M]; -1: there is none."""
    other = (weight - weight.multiply(known)).tocoo()
    heaviest = np.full(weight.shape[0], -1, dtype=np.int64)
    order = np.lexsort((-other.col, other.data, other.row))  # the last of each row is written
    order = order[other.data[order] > 0]
    heaviest[other.row[order]] = other.col[order]
    return heaviest


def split_items(real: Any, size: NDArray[np.int64], rng: np.random.Generator) -> tuple[Any, Any]:
    """Divide each user's items at random: ``size`` (int64 [M]) of them, and the rest, both scipy CSR [M, N]."""
    from scipy import sparse

    row = np.repeat(np.arange(real.shape[0]), np.diff(real.indptr))
    order = np.lexsort((rng.random(len(row)), row))  # rows stay where they are
    is_first = np.arange(len(row)) - real.indptr[row] < size[row]
    item = real.indices[order]
    first, rest = (
        sparse.csr_matrix((np.ones(int(part.sum()), np.float32), (row[part], item[part])), shape=real.shape)
        for part in (is_first, ~is_first)
    )
    return first, rest
