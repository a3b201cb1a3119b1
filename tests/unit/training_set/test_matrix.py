"""`TrainingSet.matrix` to learn from, `TrainingSet.seen` to filter by, and what the recipes of docs/guides/scoring.md come to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shown import blocks_of
from support.training_set_folder import write_version
from threadpoolctl import threadpool_limits

from scalr_prod.errors import TrainingSetError
from scalr_prod.training_set import TrainingSet

ROOT = Path(__file__).resolve().parents[3]
STAMP = pa.timestamp("us", tz="UTC")
#: User, item, label, weight, whether it is synthetic.
ROWS = [
    ("u1", "b", 1, 1.0, False),
    ("u1", "b", 1, 2.0, False),
    ("u1", "b", 1, 0.25, True),
    ("u1", "a", 1, 0.5, True),
    ("u0", "c", 1, 0.0, False),
    ("u0", "a", 0, 1.0, False),
    ("u2", "c", 1, 0.125, True),
    ("u2", "c", 1, 0.125, True),
]


def table_of(rows: list) -> pa.Table:
    """Rows with the columns that torch reads; nobody has a history."""
    user, item, label, weight, synthetic = zip(*rows, strict=True)
    empty, number = pa.array([[]] * len(rows), pa.list_(pa.string())), pa.array([0] * len(rows), pa.int64())
    histories = {
        f"{domain}_user_history__{name}": values
        for domain in ("source", "target")
        for name, values in (("item_ids", empty), ("event_timestamps", empty.cast(pa.list_(STAMP))), ("event_count", number))
    }
    stats = {f"target_item_stats__{name}": number for name in ("event_count", "trailing_event_count")}
    return pa.table(
        {
            "user_id": user,
            "item_id": item,
            "event_timestamp": pa.array(range(len(rows)), STAMP),
            "label": pa.array(label, pa.int8()),
            "weight": pa.array(weight, pa.float32()),
            "is_synthetic": synthetic,
            **histories,
            **stats,
            "target_item_stats__first_seen": number.cast(STAMP),
        }
    )


@pytest.fixture
def opened(tmp_path) -> TrainingSet:
    return write_version(tmp_path / "set", table_of(ROWS))


def test_the_matrix_sums_the_weights_of_real_and_synthetic_events(opened):
    matrix = opened.matrix()
    assert (matrix.format, matrix.dtype) == ("csr", np.float32)
    np.testing.assert_array_equal(matrix.toarray(), [[0, 0, 0], [0.5, 3.25, 0], [0, 0, 0.25]])
    assert matrix.nnz == 3, "an event without weight, or a negative, is no cell that a model takes for an interest"
    assert matrix.has_sorted_indices


def test_what_a_user_has_seen_is_real_whatever_it_weighs(opened):
    seen = opened.seen()
    assert (seen.format, seen.dtype, seen.shape) == ("csr", np.float32, opened.matrix().shape)
    np.testing.assert_array_equal(seen.toarray(), [[0, 0, 1], [0, 2, 0], [0, 0, 0]])


def test_rows_and_columns_are_in_the_order_of_the_vocabulary(opened):
    vocabulary = opened.vocabulary()
    assert opened.matrix().shape == (len(vocabulary.users), len(vocabulary.target_items))
    index = vocabulary.index("users", ["u2", "u0"])
    assert (index.tolist(), index.dtype) == ([2, 0], np.int64)
    found = opened.matrix()[index].toarray().argmax(axis=1)
    assert vocabulary.target_items.take(found).to_pylist()[0] == "c"
    np.testing.assert_array_equal(vocabulary.index("target_items", pa.array(["c", "a"])), [2, 0])
    np.testing.assert_array_equal(index + 1, vocabulary.encode("users", ["u2", "u0"]))


@pytest.mark.parametrize(("ids", "named"), [(["u0", "stranger"], "'stranger'"), ([None], "None")])
def test_an_id_that_has_no_row_is_named(opened, ids, named):
    with pytest.raises(TrainingSetError, match=named) as caught:
        opened.vocabulary().index("users", ids)
    assert "users" in caught.value.where
    assert "encode" in caught.value.next_step


def test_an_id_of_another_type_is_an_error_of_ours(opened):
    with pytest.raises(TrainingSetError, match="string") as caught:
        opened.vocabulary().index("users", [["u0"]])
    assert "users" in caught.value.where


def test_another_sets_vocabulary_gives_its_shape(opened, tmp_path):
    later = write_version(tmp_path / "later", table_of([("u1", "a", 1, 1.0, False), ("new", "z", 1, 1.0, False)]))
    seen = later.seen(opened.vocabulary())
    np.testing.assert_array_equal(seen.toarray(), [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(later.matrix(opened.vocabulary()).toarray(), seen.toarray())


def test_a_forgotten_user_keeps_an_empty_row(opened):
    path = opened.path / "vocabulary" / "users.parquet"
    pq.write_table(pa.table({"id": ["u0", None, "u2"]}), path)
    np.testing.assert_array_equal(opened.matrix().toarray(), [[0, 0, 0], [0, 0, 0], [0, 0, 0.25]])


def test_without_synthetic_rows_both_hold_the_same_cells(tmp_path):
    opened = write_version(tmp_path / "set", table_of([row for row in ROWS if not row[4] and row[3]]))
    assert (opened.matrix() != 0).nnz == (opened.seen() != 0).nnz == 1


USERS, ITEMS, TASTES = 400, 400, 20


def tastes(folder: Path) -> tuple[TrainingSet, list[set[str]]]:
    """A set whose synthetic events tell of tastes of which real ones say little, and two later events of each user."""
    rng = np.random.default_rng(0)
    chance = np.arange(1, ITEMS // TASTES + 1) ** -0.7
    chance /= chance.sum()

    def drawn(taste: int, number: int, share: float) -> list[str]:
        follows = rng.random(number) < share
        chosen = np.where(follows, taste, rng.integers(TASTES, size=number))
        return [
            f"t{place * TASTES + of:03d}" for place, of in zip(rng.choice(len(chance), number, p=chance), chosen, strict=True)
        ]

    rows, later = [], []
    for user in range(USERS):
        taste = int(rng.integers(TASTES))
        real = drawn(taste, 3, 0.4)
        later.append(set(drawn(taste, 2, 0.7)) - set(real))
        rows += [(f"u{user:03d}", item, 1, 1.0, False) for item in real]
        rows += [(f"u{user:03d}", item, 1, 0.2, True) for item in drawn(taste, 8, 0.9)]
    return write_version(folder, table_of(rows)), later


def ndcg(top: np.ndarray, later: list[set[str]], ids: list[str]) -> float:
    """NDCG@20 of rankings [users, 20], of those with a later event."""
    gain = 1 / np.log2(np.arange(20) + 2)
    scores = [
        gain[[ids[item] in wanted for item in ranked]].sum() / gain[: len(wanted)].sum()
        for ranked, wanted in zip(top, later, strict=True)
        if wanted
    ]
    return float(np.mean(scores))


@pytest.mark.parametrize("recipe", ["AlternatingLeastSquares", "Embedding"])
def test_the_recipes_of_the_scoring_page_keep_the_gain(recipe, tmp_path):
    """As the page has them; filtered by what was learned from, as users had done; and on real events only."""
    page = blocks_of((ROOT / "docs" / "guides" / "scoring.md").read_text(encoding="utf-8"))
    (code,) = (block.text for block in page if block.language == "python" and f"import {recipe}" in block.text)
    both, later = tastes(tmp_path / "both")
    rows = both.to_arrow()
    real = write_version(tmp_path / "real", rows.filter(pa.compute.invert(rows["is_synthetic"])))

    def score(opened: TrainingSet, filtered_by: str = "seen") -> float:
        known = {"rows": opened, "matrix": opened.matrix(), "seen": opened.seen(), "vocabulary": opened.vocabulary()}
        known["seen"] = known[filtered_by]
        with threadpool_limits(1):
            exec(compile(code, "docs/guides/scoring.md", "exec"), known)  # noqa: S102 - our own page
        top = np.asarray(known["top"])
        had = opened.seen()
        if filtered_by == "seen":
            assert not any(had[user, items].nnz for user, items in enumerate(top))
        ids = known["vocabulary"].target_items.to_pylist()
        return ndcg(top, later, ids)

    kept, lost, alone = score(both), score(both, "matrix"), score(real)
    assert kept > 1.2 * alone, "synthetic events help"
    assert kept > 1.5 * lost, "and filtering by the matrix that was learned from takes their items away"
