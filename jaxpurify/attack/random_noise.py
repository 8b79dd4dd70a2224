"""Random noise: the control of targeted attacks, poisons that nothing was optimised for."""

import jax
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.attack.budget import add_levels, levels
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.attack.targeted import check_targets, choose_base
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.random import named
from jaxpurify.types import StoredImages


def random_noise(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    target: int,
    targets: Targets,
    count: int | None = None,
    fraction: float | None = None,
    epsilon: float = 8 / 255,
) -> Poison:
    """x <- clip(x + epsilon s), s in {-1, 1} drawn for every value: the largest change of the budget, without an aim.

    What a victim does with these poisons is what targeted attacks of the same budget have to beat.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      key: chooses the poisoned examples and draws the signs; consumed.
      target: the class of the poisons, labels kept, and the one that the targets are to be taken for.
      targets: the images on which success is counted; nothing else of them is used.
      count: how many poisons; or
      fraction: the same as a share of all N images.
      epsilon: of the noise, units of [0, 1]; whole 8-bit levels are used.

    Raises:
      ValueError: `epsilon` outside [1/255, 1], a target image of the intended class or of another shape, or more
        poisons than images of the class.
    """
    check_targets(images, labels, target, targets)
    limit = levels(epsilon)
    index = choose_base(named(key, "choice"), labels, target, count, fraction)
    signs = np.asarray(jax.random.rademacher(named(key, "signs"), (len(index), *images.shape[1:]), np.int8))
    return Poison(
        images=add_levels(images[index], limit * signs.astype(np.int16)),
        labels=np.full(len(index), target, np.int32),
        index=index,
        target=target,
        how={
            "attack": "random_noise",
            "labels_changed": False,
            "count": len(index),
            "norm": "linf",
            "epsilon": float(epsilon),
        },
        targets=targets,
    )
