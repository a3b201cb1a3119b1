"""What a default `scalr run` brings a recommender, and what it brings after `scalr evaluate`, scored with `implicit` alone.

Nothing of `scalr_prod.evaluation` is used to score.

Events from the 80th percentile of target time on are the test, and half of the users' target events are hidden; neither is in
the files that the project reads. ALS with 64 factors is fitted on the training set's rows with their weights, on real rows
alone and on all rows, and the better of two α on the test counts, for each arm; a cell's confidence is 1 + α × weight. Beside
them the list of what is popular lately, with its best half-life, such lists for clusters of users, and one ALS on both domains
at once, with the better of two weights of source events. NDCG@20 over the whole catalogue, of all test users and of those
without a target event in the files. One thread.

SCALR_BENCH_PAIRS names the pairs, with commas between them (default: those of `PAIRS`); the pairs of `bench_set_aside` may be named, too.
SCALR_BENCH_HIDDEN is the share of users whose target events are hidden (default: 0.5); with 0 users are as they are.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from benchmarks.bench_run import DATA
from benchmarks.bench_set_aside import NAMED_FIRST, NAMED_LATER, YELP, queries_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Folder, source and target.
PAIRS = {
    "food_from_kitchen": ("amazon_food_kitchen", "kitchen", "food"),
    "kitchen_from_food": ("amazon_food_kitchen", "food", "kitchen"),
    "yelp": ("yelp_restaurants_other", "source", "target"),
}
SOURCE_WEIGHTS = (0.1, 1.0)
FACTORS, ALPHAS = 64, (10.0, 40.0)
CLUSTERS = (8, 32, 128)
TEMPERATURES, WEIGHTS = (0.5, 1.0, 0.25), (0.1, 0.3, 1.0)
HALF_LIVES = (7.0, 30.0, 90.0, 365.0, 3650.0)
K, SEED, DAY = 20, 0, pd.Timedelta(days=1)
HIDDEN = float(os.environ.get("SCALR_BENCH_HIDDEN", "0.5"))
#: Real target events from which on a user has many.
MANY = 5
SETTINGS = """[domains.source]
name = "source"
events = "source.parquet"
timezone = "UTC"
[domains.target]
name = "target"
events = "target.parquet"
timezone = "UTC"
[translator]
threads = 1
[serving]
scorer = "local"
threads = 1
[compute]
workers = 1
"""


def main() -> dict[str, Any]:
    """By pair."""
    figures: dict[str, Any] = {}
    for name in os.environ.get("SCALR_BENCH_PAIRS", ",".join(PAIRS)).split(","):
        logs = _logs(name)
        figures[name] = {"skipped": f"the log is not in {DATA}; set SCALR_TEST_DATA"} if logs is None else judge_pair(*logs)
        print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
    return figures


def _logs(name: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Source and target events of a pair; None where the log is absent."""
    columns = ["user_id", "item_id", "timestamp"]
    if name in PAIRS:
        folder, *roles = PAIRS[name]
        paths = [DATA / folder / f"{role}.parquet" for role in roles]
        if not all(path.exists() for path in paths):
            return None
        source, target = (pd.read_parquet(path, columns=columns) for path in paths)
        return source, target
    pair = (NAMED_FIRST | NAMED_LATER)[name]
    if pair[0] == "yelp" and not YELP.exists():
        return None
    source, target = (duckdb.execute(f"{query} ORDER BY timestamp, user_id, item_id").df() for query in queries_of(pair))
    return source, target


def judge_pair(source: pd.DataFrame, target: pd.DataFrame) -> dict[str, Any]:
    """Figures of one pair of logs."""
    source, known, scene = split(source, target)
    baselines: dict[str, Any] = {
        "popular_lately": scene.best_list(),
        "als_real": scene.als(known.assign(weight=1.0)),
        "popular_in_cluster": scene.clusters(source),
        "als_both_domains": scene.joint(source),
    }
    found: dict[str, Any] = {
        "source_events": len(source),
        "target_events": len(known),
        "test_users": len(scene.users),
        "cold_test_users": int(scene.cold.sum()),
        **{name: without_users(one) for name, one in baselines.items()},
    }
    print(f"without synthetic events: {found}", file=sys.stderr, flush=True)
    with run_folder(source, known) as folder:
        default = shipped(scene, folder)
        strongest = max(baselines, key=lambda name: baselines[name]["ndcg"])

        def compared(one: dict[str, Any]) -> dict[str, Any]:
            lift = lift_over(one["als"]["by_user"], baselines[strongest]["by_user"])
            return one | {"als": without_users(one["als"]), "over_strongest": {"baseline": strongest} | lift}

        found["default"] = compared(default)
        print(f"default: {found['default']}", file=sys.stderr, flush=True)
        found["oracle"] = oracle(scene, folder)
        print(f"oracle: {found['oracle']}", file=sys.stderr, flush=True)
        return found | {"after_evaluate": compared(evaluated(scene, folder))}


def split(source: pd.DataFrame, target: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, Scene]:
    """Source and target events that the project may know, and the scene of what came later."""
    cutoff = target["timestamp"].quantile(0.8)
    users = np.sort(target["user_id"].unique())
    hidden = np.random.default_rng(SEED).choice(users, int(HIDDEN * len(users)), replace=False)
    source = source[source["timestamp"] < cutoff]
    known = target[(target["timestamp"] < cutoff) & ~target["user_id"].isin(hidden)]
    return source, known, Scene(known, target[target["timestamp"] >= cutoff], source)


@contextmanager
def run_folder(source: pd.DataFrame, target: pd.DataFrame) -> Iterator[Path]:
    """A folder with the logs and the shortest settings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source.to_parquet(folder / "source.parquet")
        target.to_parquet(folder / "target.parquet")
        (folder / "scalr.toml").write_text(SETTINGS)
        yield folder


def oracle(scene: Scene, folder: Path) -> dict[str, Any]:
    """The settings that are best on the test users: what no evaluation can know before."""
    found = {}
    for temperature in TEMPERATURES:
        for weight in WEIGHTS:
            settings = {"generation": {"temperature": temperature}, "training_set": {"synthetic_weight": weight}}
            als = shipped(scene, folder, **settings)["als"]
            found[f"temperature {temperature:g}, λ {weight:g}"] = als["by_user"]
    return without_users(scene.best(found))


def shipped(scene: Scene, folder: Path, **settings: Any) -> dict[str, Any]:
    """Run the project, and fit ALS on what its training set holds; on real rows alone where nothing can be published."""
    from scalr_prod import Project
    from scalr_prod.errors import ScalrError

    with Project.open(folder / "scalr.toml", **settings) as project:
        try:
            report = project.run()
        except ScalrError as error:
            return {"refused": str(error), "synthetic_rows": 0, "als": scene.als(scene.known.assign(weight=1.0))}
        rows = project.training_set().to_arrow(["user_id", "item_id", "weight", "is_synthetic"]).to_pandas()
    real = rows[~rows["is_synthetic"]]
    return {
        "real_rows": len(real),
        "synthetic_rows": len(rows) - len(real),
        "synthetic_weight": round(float(rows.loc[rows["is_synthetic"], "weight"].sum() / real["weight"].sum()), 4),
        "run_seconds": round(sum(report.seconds.values()), 1),
        "als": scene.als(rows),
    }


def evaluated(scene: Scene, folder: Path) -> dict[str, Any]:
    """Evaluate the project as `scalr evaluate` does, and run it by the policy."""
    from scalr_prod import Project
    from scalr_prod.errors import ScalrError

    with Project.open(folder / "scalr.toml") as project:
        try:
            report = project.evaluate().to_json()
        except ScalrError as error:  # too few users, say
            return shipped(scene, folder) | {"not_evaluated": str(error)}
    choice = report["choices"]["als"]
    verdict = {
        "evaluate_seconds": report["seconds"],
        "lambda": choice["lambda"],
        "draw": choice["draw"],
        "bar": choice["validation"].get("bar"),
        "own_over_others": (report["signal"] or {}).get("own_over_others"),
        "verdict": report["verdict"]["models"][0],
    }
    return shipped(scene, folder) | verdict


def without_users(one: dict[str, Any]) -> dict[str, Any]:
    """The figures without the users' own."""
    return {name: value for name, value in one.items() if name != "by_user"}


def lift_over(own: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Lift of the mean over another's, in percent, with its 95 % interval over 2 000 resamples of the users."""
    rng = np.random.default_rng(SEED)
    means = [(own[users].mean(), others[users].mean()) for users in rng.integers(0, len(own), (2000, len(own)))]
    low, high = np.quantile([100 * (mine / other - 1) for mine, other in means], (0.025, 0.975))
    return {"lift_pct": round(100 * (own.mean() / others.mean() - 1), 1), "ci95": [round(low, 1), round(high, 1)]}


class Scene:
    """Test users, the items that they had later, and scores of the catalogue."""

    def __init__(self, known: pd.DataFrame, later: pd.DataFrame, source: pd.DataFrame) -> None:
        self.known, self.until = known, known["timestamp"].max()
        self.items = pd.Index(np.sort(known["item_id"].unique()))
        self.had = known.groupby("user_id")["item_id"].agg(set).to_dict()
        later = later[later["item_id"].isin(self.items)]
        there = set(self.had) | set(source["user_id"])
        wanted = later[later["user_id"].isin(there)].groupby("user_id")["item_id"].agg(set)
        new = {user: items - self.had.get(user, set()) for user, items in wanted.items()}
        self.new = {user: self.items.get_indexer(list(items)) for user, items in sorted(new.items()) if items}
        self.users = pd.Index(list(self.new))
        events = known.groupby("user_id").size().reindex(self.users).fillna(0).to_numpy()
        self.cold, self.few, self.many = events == 0, (events > 0) & (events < MANY), events >= MANY

    def popular(self, half_life: float) -> np.ndarray:
        """One list for everybody: [users, items]."""
        age = (self.until - self.known["timestamp"]) / DAY
        score = np.bincount(self.items.get_indexer(self.known["item_id"]), 0.5 ** (age / half_life), len(self.items))
        return np.broadcast_to(score, (len(self.users), len(self.items)))

    def best_list(self) -> dict[str, Any]:
        """The list with the best half-life."""
        return self.best({f"{days:g}": self.ndcg(self.popular(days)) for days in HALF_LIVES})

    def clusters(self, source: pd.DataFrame) -> dict[str, Any]:
        """One list for users whom k-means on the source domain puts together, such as those of one city."""
        from scipy.cluster.vq import kmeans2
        from scipy.sparse.linalg import svds

        users, items = pd.factorize(source["user_id"]), pd.factorize(source["item_id"])
        shape = len(users[1]), len(items[1])
        matrix = csr_matrix((np.ones(len(source)), (users[0], items[0])), shape=shape).minimum(1)
        frequency = np.bincount(matrix.indices, minlength=shape[1])
        vectors, values, _ = svds(matrix.multiply(np.log(shape[0] / frequency)).tocsr(), 32, random_state=SEED)
        vectors = vectors * values
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        found = {}
        for count in CLUSTERS:
            member = pd.Series(kmeans2(vectors, count, minit="++", seed=SEED)[1], index=users[1])
            of_event = member.reindex(self.known["user_id"]).fillna(count).to_numpy(int)
            of_user = member.reindex(self.users).fillna(count).to_numpy(int)
            for days in HALF_LIVES[2:]:
                weight = 0.5 ** ((self.until - self.known["timestamp"]) / DAY / days)
                counts = np.zeros((count + 1, len(self.items)))
                np.add.at(counts, (of_event, self.items.get_indexer(self.known["item_id"])), weight)
                everybody = counts.sum(0)
                found[f"{count} clusters, {days:g}"] = self.ndcg((counts + 1e-3 * everybody / everybody.sum())[of_user])
        return self.best(found)

    def joint(self, source: pd.DataFrame) -> dict[str, Any]:
        """One ALS on both domains: source items are further columns."""
        other = source.assign(item_id="source " + source["item_id"].astype(str))
        rows = pd.concat([self.known.assign(weight=1.0), other.assign(weight=1.0)])
        found = {}
        for weight in SOURCE_WEIGHTS:
            rows["weight"] = np.repeat([1.0, weight], [len(self.known), len(other)])
            found[f"source weight {weight:g}"] = self.als(rows, self.items.append(pd.Index(np.sort(other["item_id"].unique()))))
        return max(found.values(), key=lambda one: one["ndcg"])

    def als(self, rows: pd.DataFrame, columns: pd.Index | None = None) -> dict[str, Any]:
        """The best of all settings; the first columns are the target's items."""
        from implicit.als import AlternatingLeastSquares

        everyone = pd.Index(rows["user_id"].unique()).union(self.users)
        columns = self.items if columns is None else columns
        cell = (everyone.get_indexer(rows["user_id"]), columns.get_indexer(rows["item_id"]))
        matrix = csr_matrix((rows["weight"].to_numpy(np.float32), cell), shape=(len(everyone), len(columns)))
        found = {}
        for alpha in ALPHAS:
            model = AlternatingLeastSquares(factors=FACTORS, alpha=1.0, random_state=SEED, num_threads=1)
            confidence = matrix.copy()
            confidence.data = 1 + np.float32(alpha) * confidence.data
            model.fit(confidence, show_progress=False)
            items = np.asarray(model.item_factors)[: len(self.items)]
            scores = np.asarray(model.user_factors)[everyone.get_indexer(self.users)] @ items.T
            found[f"alpha {alpha:g}"] = self.ndcg(scores)
        return self.best(found)

    def ndcg(self, scores: np.ndarray) -> np.ndarray:
        """NDCG@20 of each test user: [users]; what a user had before is not recommended."""
        discount = 1 / np.log2(np.arange(2, K + 2))
        reached = np.zeros(len(self.users))
        for row, (user, items) in enumerate(self.new.items()):
            own = np.array(scores[row], dtype=np.float64)
            own[self.items.get_indexer(list(self.had.get(user, ())))] = -np.inf
            top = np.argsort(-own, kind="stable")[:K]
            reached[row] = (np.isin(top, items) * discount).sum() / discount[: len(items)].sum()
        return reached

    def best(self, found: dict[str, np.ndarray]) -> dict[str, Any]:
        """The settings with the highest mean NDCG: that of all users, of groups of them, and of each."""
        name = max(found, key=lambda one: found[one].mean())
        groups = {"": slice(None), "_cold": self.cold, "_few": self.few, "_many": self.many}
        ndcg = {
            f"ndcg{group}": round(float(found[name][users].mean()), 4)
            for group, users in groups.items()
            if len(found[name][users])
        }
        return ndcg | {"settings": name, "by_user": found[name]}


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
