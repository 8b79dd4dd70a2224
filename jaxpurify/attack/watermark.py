"""Watermarking: poisons that carry a faint copy of the target image."""

from collections.abc import Sequence

from jaxtyping import Array, Float, Key
import numpy as np

from jaxpurify.attack.budget import add_levels, levels, to_levels
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.attack.targeted import check_targets, choose_base
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.random import named
from jaxpurify.types import StoredImages


def watermark(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    target: int,
    targets: Targets,
    count: int | None = None,
    fraction: float | None = None,
    epsilon: float | None = 16 / 255,
    opacity: float | Sequence[float] = 0.25,
) -> Poison:
    """Watermark (the framework of arXiv:2102.13624; the start of Poison Frogs, arXiv:1804.00792): x <- x + o (t - x).

    Poison i carries target image i mod T. Nothing is optimised: it is the baseline of feature attacks.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      key: chooses the poisoned examples; consumed.
      target: the class that the targets are to be taken for; poisons are images of it, labels kept.
      targets: the images t.
      count: how many poisons; or
      fraction: the same as a share of all N images.
      epsilon: bound of every value, units of [0, 1]; None: no bound but the image box.
      opacity: o, one number or one a channel, in [0, 1]. The framework's is epsilon over the standard deviation of
        the channel, 0.254, 0.258 and 0.240 for CIFAR-10 at 16/255; Poison Frogs starts from 0.3 without a bound.

    Raises:
      ValueError: `epsilon` outside [1/255, 1], `opacity` outside [0, 1], a target of the intended class or of
        another shape, or more poisons than images of the class.
    """
    check_targets(images, labels, target, targets)
    if epsilon is not None:
        levels(epsilon)
    weights = np.atleast_1d(np.asarray(opacity, np.float32))
    if weights.shape not in ((1,), (images.shape[3],)) or not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError(f"opacity is {opacity}; it must be one number in [0, 1], or one for each channel")
    index = choose_base(named(key, "choice"), labels, target, count, fraction)
    number = len(index)
    chosen = to_float(images[index])
    aims = to_float(targets.images[np.arange(number) % len(targets)])
    delta = watermark_delta(chosen, aims, weights, 1.0 if epsilon is None else epsilon)
    return Poison(
        images=add_levels(images[index], to_levels(delta, 1.0 if epsilon is None else epsilon)),
        labels=np.full(number, target, np.int32),
        index=index,
        target=target,
        how={
            "attack": "watermark",
            "labels_changed": False,
            "count": number,
            "norm": "box" if epsilon is None else "linf",
            "epsilon": None if epsilon is None else float(epsilon),
            "opacity": [float(weight) for weight in weights],
        },
        targets=targets,
    )


def watermark_delta(
    images: Float[np.ndarray, "count height width channels"],
    aims: Float[np.ndarray, "count height width channels"],
    opacity: Float[np.ndarray, "weights"],
    epsilon: float,
) -> Float[np.ndarray, "count height width channels"]:
    """opacity · (aims - images), one weight or one a channel, clipped to ±epsilon and then to the image box."""
    delta = np.clip((aims - images) * opacity.reshape(1, 1, 1, -1), -epsilon, epsilon)
    return np.clip(delta, -images, 1 - images)
