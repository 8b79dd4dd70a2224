"""What victims do on test images: natural accuracy and poison success, exact under padding and sharding."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int32, Integer
import numpy as np

from jaxpurify.data.image import to_float
from jaxpurify.evaluate.counts import Counts as Counts
from jaxpurify.evaluate.statistics import auroc as auroc
from jaxpurify.evaluate.statistics import mean_and_error as mean_and_error
from jaxpurify.evaluate.statistics import perturbation_survival as perturbation_survival
from jaxpurify.evaluate.statistics import psnr as psnr
from jaxpurify.evaluate.statistics import wilson_interval as wilson_interval
from jaxpurify.networks.freeze import class_count
from jaxpurify.sharding import replicate, shard
from jaxpurify.struct import as_operand
from jaxpurify.types import StoredImages

StoredLabels = Integer[np.ndarray, "_"]
Predictor = Callable[[Any], Any]


def predict(
    classifier: Predictor, images: StoredImages, *, batch_size: int = 500, mesh: jax.sharding.Mesh | None = None
) -> Int32[np.ndarray, "_"]:
    """The class with the highest logit for every stored image (the first of equal ones).

    One program serves all batches: the last one is padded to `batch_size`. A callable pytree (a frozen
    network) is an argument of that program, so other weights do not recompile; a plain function is part of it.

    Args:
      classifier: images [B, H, W, C] in [0, 1] to logits [B, classes].
      images: uint8 [N, H, W, C].
      batch_size: images a call; with a mesh a multiple of its number of devices.
      mesh: splits each batch over these devices; None: the default device.

    Raises:
      ValueError: images that are not uint8 [N, H, W, C], or a `batch_size` that does not fit.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}; stored images must be uint8 [N, H, W, C]")
    devices = 1 if mesh is None else mesh.size
    if batch_size < 1 or batch_size % devices:
        raise ValueError(f"batch_size is {batch_size}; it must be a positive multiple of the {devices} devices")
    classifier = as_operand(classifier)
    if mesh is not None:
        classifier = replicate(mesh, classifier)
    predictions = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        batch = np.concatenate([batch, np.zeros((batch_size - len(batch), *batch.shape[1:]), np.uint8)])
        predictions.append(_predict(classifier, batch if mesh is None else shard(mesh, batch)))
    if not predictions:
        return np.zeros(0, np.int32)
    return np.concatenate(jax.device_get(predictions))[: len(images)]


@jax.jit
def _predict(classifier, images):
    return jnp.argmax(classifier(to_float(images)), -1).astype(jnp.int32)


def natural_accuracy(
    classifier: Predictor,
    images: StoredImages,
    labels: StoredLabels,
    *,
    batch_size: int = 500,
    mesh: jax.sharding.Mesh | None = None,
) -> Counts:
    """How often the classifier is right on clean test images, by true class.

    `.fraction` is the accuracy, `.lowest` that of the worst class. Arguments and errors as in `predict`.
    """
    _check_labels(images, labels)
    predictions = predict(classifier, images, batch_size=batch_size, mesh=mesh)
    return accuracy(predictions, labels)


def accuracy(predictions: StoredLabels, labels: StoredLabels) -> Counts:
    """How often predictions [N] equal labels [N], by label."""
    _check_pair(predictions, labels)
    return _counts(predictions == labels, labels, np.ones(len(labels), bool))


def poison_success(
    classifier: Predictor,
    images: StoredImages,
    labels: StoredLabels,
    target: int,
    *,
    batch_size: int = 500,
    mesh: jax.sharding.Mesh | None = None,
) -> Counts:
    """How often triggered test images of other classes are taken for the target class, by true class.

    `.fraction` is the success over all of them, `.average` its mean over true classes, `.highest` that of the
    class on which the attack works best. Images of the target class itself are not counted.

    Args:
      classifier: the victim, images [B, H, W, C] in [0, 1] to logits.
      images: test images that already carry the trigger, uint8 [N, H, W, C].
      labels: their true labels [N].
      target: the class that the attacker wants.
      batch_size, mesh: as in `predict`.

    Raises:
      ValueError: every image is of the target class, the classifier has no such class, or as in `predict`.

    The published evaluation (PureGen, arXiv:2405.18627) averages batch means, which weighs a short last batch
    too much, and its "average" and "max" are over attacks on different target classes: one call of this is
    one of those.
    """
    _check_labels(images, labels)
    classes = class_count(as_operand(classifier), images.shape[1:])
    whole = isinstance(target, int | np.integer) and not isinstance(target, bool)
    if not whole or not 0 <= target < classes:
        raise ValueError(f"target is {target!r}; the classifier has the classes 0 … {classes - 1}")
    predictions = predict(classifier, images, batch_size=batch_size, mesh=mesh)
    return success(predictions, labels, target)


def success(predictions: StoredLabels, labels: StoredLabels, target: int) -> Counts:
    """How often predictions [N] for images whose label [N] is not `target` are `target`, by label."""
    _check_pair(predictions, labels)
    if not np.any(labels != target):
        raise ValueError(f"all {len(labels)} test images are of the target class {target}; images of others are needed")
    return _counts(predictions == target, labels, labels != target)


def _counts(hits, labels, mask):
    # On the host and in 64 bits: everything is at rest here, and no count can overflow.
    classes = int(labels.max()) + 1 if len(labels) else 0
    return Counts(
        np.bincount(labels[mask & hits], minlength=classes).astype(np.int64),
        np.bincount(labels[mask], minlength=classes).astype(np.int64),
    )


def _check_labels(images, labels):
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels have the shape {labels.shape}; one label for each of {len(images)} images")


def _check_pair(predictions, labels):
    if predictions.shape != labels.shape or predictions.ndim != 1:
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must be one number an image each")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"labels hold {labels.min()}; classes are 0 or more")
