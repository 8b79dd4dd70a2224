"""The loss and the accuracy of mixed images, which carry several labels at once."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpurify.train.classifier import cross_entropy


def mixed_cross_entropy(
    logits: Float[Array, "images classes"], labels: Int[Array, "parts batch"], weights: Float[Array, "weights"]
) -> Float[Array, "images"]:
    """Σ_j λ_j CE(z, y_j) for every mixed image (mixup, arXiv:1710.09412; several parts as in arXiv:2102.13624).

    An image mixed as Σ_j λ_j x_j carries the label of each of its parts. The training loss is the mean over the batch.

    Args:
      logits: of the mixed images, [B, K].
      labels: [M, B], row j those of the images that enter with weight j; CutMix has M = 2.
      weights: λ [M], the same for the whole batch; not negative and of sum 1, which is not checked.

    Raises:
      ValueError: another number of weights than of label rows, or of labels than of logits.
    """
    _check(logits, labels, weights)
    parts = [weight * cross_entropy(logits, each) for weight, each in zip(weights, labels, strict=True)]
    return jnp.stack(parts).sum(0)


def mixed_correct(
    logits: Float[Array, "images classes"], labels: Int[Array, "parts batch"], weights: Float[Array, "weights"]
) -> Float[Array, "images"]:
    """Σ_j λ_j [argmax z = y_j] for every mixed image: the weight of the labels that the prediction hits, in [0, 1].

    The arguments are those of `mixed_cross_entropy`. The mean over the batch is a weighted accuracy; the published
    framework of arXiv:2102.13624 counts the sum.

    Raises:
      ValueError: as `mixed_cross_entropy`.
    """
    _check(logits, labels, weights)
    hit = (logits.argmax(-1)[None] == labels).astype(logits.dtype)
    return (weights[:, None] * hit).sum(0)


def _check(logits, labels, weights):
    if len(weights) != len(labels) or not len(labels):
        raise ValueError(f"{len(weights)} weights for {len(labels)} rows of labels; one each and at least one needed")
    if labels.shape[1] != len(logits):
        raise ValueError(f"{labels.shape[1]} labels a row for {len(logits)} images; one each needed")
