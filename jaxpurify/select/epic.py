"""EPIC: examples whose gradients stand alone in their class are dropped (Yang, Liu and Mirzasoleiman, ICML 2022)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int64, Integer, UInt32
import numpy as np

from jaxpurify import loop

State = tuple[Float[Array, "points"], UInt32[Array, "medoids"]]


class Selection(NamedTuple):
    """Which examples stay [N], and how large the cluster of each is [N]."""

    keep: Bool[np.ndarray, "count"]
    score: Int64[np.ndarray, "count"]


def last_layer_gradient(
    logits: Float[Array | np.ndarray, "count classes"], labels: Integer[np.ndarray, "count"]
) -> Float[np.ndarray, "count classes"]:
    """softmax(logits) − onehot(label): the gradient of the loss with respect to the logits.

    The published code takes logits without the last layer's bias, W h; give those to compare with it.
    """
    probability = np.array(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
    probability[np.arange(len(labels)), labels] -= 1
    return probability


def epic(
    gradients: Float[np.ndarray, "_ _"],
    labels: Integer[np.ndarray, "_"],
    *,
    fraction: float = 0.1,
    earlier: Bool[np.ndarray, "_"] | None = None,
) -> Selection:
    """One selection round: medoids of every class by facility location; who is alone in a cluster is dropped.

    In each class, max(1, int(fraction · size)) medoids S maximise Σ_i max_{j ∈ S} exp(−‖g_i − g_j‖ / F) greedily, every
    example belongs to its most similar medoid, and clusters of one example are dropped. Published: every 10
    epochs from epoch 10 on; what was dropped once stays dropped (`earlier`).

    Args:
      gradients: of every training example in the order of the data set [N, F], such as `last_layer_gradient`.
      labels: [N].
      fraction: published 0.1, 0.2 and 0.3.
      earlier: what earlier rounds kept, or None.

    Returns:
      The mask and the size of every example's cluster. Neither depends on the order of the examples, but for ties,
      which go to the earlier example.

    Raises:
      ValueError: lengths that differ, gradients that are not finite, or a `fraction` outside of (0, 1].

    .. warning::
       The copy of EPIC in PureGen's code (arXiv:2405.18627) reads features in a shuffled order and uses their
       positions as those of the data set, so that it drops examples at random, and computes them on augmented
       images. Its rows in the published tables are of that. Here positions are those of the arrays that are given.
    """
    if len(gradients) != len(labels) or (earlier is not None and len(earlier) != len(labels)):
        raise ValueError(f"{len(gradients)} gradients for {len(labels)} labels; give one of each an example")
    if not np.isfinite(gradients).all():
        raise ValueError("gradients hold values that are NaN or infinite; only finite ones can be compared")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}; it must be above 0 and at most 1")
    score = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        similarity = _similarity(jnp.asarray(gradients[members], jnp.float32))
        medoids = facility_location(similarity, max(1, int(fraction * len(members))))
        nearest = np.asarray(similarity)[:, medoids].argmax(1)
        score[members] = np.bincount(nearest, minlength=len(medoids))[nearest]
    keep = score > 1
    return Selection(keep if earlier is None else keep & earlier, score)


def facility_location(similarity: Float[Array, "points points"], count: int) -> Int64[np.ndarray, "_"]:
    """`count` rows that greedily maximise Σ_i max over them of similarity [i, j], in the order of their gain."""
    state = (jnp.zeros(len(similarity)), jnp.zeros(count, jnp.uint32))
    _, medoids = loop.repeat(_add_medoid, state, count, similarity)
    return np.asarray(medoids).astype(np.int64)


def _add_medoid(state: State, index: UInt32[Array, ""], similarity: Float[Array, "points points"]) -> Any:
    covered, medoids = state
    gain = jnp.maximum(similarity - covered[:, None], 0).sum(0)
    # The similarity of an example to itself is 1, so one that was taken has no gain; duplicates are never taken twice.
    gain = gain.at[medoids].add(jnp.where(jnp.arange(len(medoids)) < index, -jnp.inf, 0))
    best = gain.argmax().astype(jnp.uint32)
    return jnp.maximum(covered, similarity[:, best]), medoids.at[index].set(best)


@jax.jit
def _similarity(points):
    square = jnp.square(points).sum(1)
    distance = square[:, None] + square[None] - 2 * points @ points.T
    distance = jnp.sqrt(jnp.maximum(distance, 0)) * (1 - jnp.eye(len(points)))
    return jnp.exp(-distance / points.shape[1])
