# SPDX-License-Identifier: Apache-2.0
"""Popularity by cluster: what users with similar source histories, such as those of one city, interact with most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions


#: Numbers of clusters, and half-lives in days, to try on validation.
CLUSTERS: Final = (8, 32, 128)
CLUSTER_HALF_LIVES: Final = (90.0, 365.0, np.inf)
#: Singular vectors of the source domain that users are clustered by.
_DIMENSIONS: Final = 32
#: Weight of an item's share of all events beside its count in the cluster: it decides among items without an event there.
_GLOBAL_WEIGHT: Final = 1e-3


class ClusterPopularity:
    """Ranks items by their decayed number of observed events within the user's cluster, then by that of all users.

    Args:
        cluster: int32 [U]. Cluster of each user; -1: none.
        half_life: Half-life in days; infinite: no decay.
    """

    def __init__(self, cluster: NDArray[np.int32], half_life: float) -> None:
        self._cluster, self._half_life = cluster, half_life

    def fit(self, events: Interactions, *, seed: int) -> None:  # noqa: ARG002 - part of the protocol
        """Count the events of each cluster and item."""
        observed = events.take(events.in_history())
        if np.isfinite(self._half_life):
            observed = observed.decayed(self._half_life)
        shape = (
            int(self._cluster.max(initial=-1)) + 2,
            events.n_items,
        )  # the last row stays empty, for users without a cluster
        counts = np.zeros(shape)
        np.add.at(counts, (self._cluster[observed.user], observed.item), observed.weight)
        counts[-1] = 0
        share = counts.sum(0) + np.bincount(
            observed.item, weights=observed.weight * (self._cluster[observed.user] < 0), minlength=events.n_items
        )
        self._scores = (counts + _GLOBAL_WEIGHT * share / max(float(share.sum()), 1e-30)).astype(np.float32)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the counts of each user's cluster: [B, n_items]."""
        scores: NDArray[np.float32] = self._scores[self._cluster[users]]
        return scores


def cluster_users(source: Interactions, clusters: int, *, seed: int) -> NDArray[np.int32]:
    """Cluster users by their source items: k-means on the singular vectors of the weighted user-item matrix.

    Args:
        source: Source events.
        clusters: Number of clusters; fewer if there are fewer users.
        seed: Seed of the initial centres.

    Returns:
        int32 [U]. Cluster of each user; -1 for users without source events.
    """
    from scipy.cluster.vq import kmeans2
    from scipy.sparse import diags
    from scipy.sparse.linalg import svds

    matrix = source.matrix().astype(np.float64)
    matrix.data[:] = 1
    users = np.flatnonzero(np.diff(matrix.indptr) > 0)
    cluster = np.full(matrix.shape[0], -1, dtype=np.int32)
    matrix = matrix[users]
    dimensions = min(_DIMENSIONS, min(matrix.shape) - 1)
    if dimensions < 1:
        cluster[users] = 0
        return cluster
    # Rare items tell more about a user: inverse document frequency.
    matrix = matrix @ diags(np.log(len(users) / np.bincount(matrix.indices, minlength=matrix.shape[1]).clip(1)) + 1e-6)
    vectors, values, _ = svds(matrix, dimensions, random_state=seed)
    vectors = vectors * values
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    _, cluster[users] = kmeans2(vectors, min(clusters, len(users)), minit="++", seed=seed)
    return cluster
