"""Class-wise random noise: an indiscriminate attack that makes training data useless ("unlearnable")."""

import jax
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.attack.budget import CHUNK, add_levels, levels, to_levels
from jaxpurify.attack.choose import StoredLabels, check_dataset, choose, poison_count, positions
from jaxpurify.data.poison import Poison
from jaxpurify.random import named
from jaxpurify.types import StoredImages

KINDS = ("uniform", "sign")


def class_noise(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    epsilon: float = 8 / 255,
    kind: str = "uniform",
    fraction: float = 1.0,
) -> Poison:
    """One random perturbation a class (URP of arXiv:2406.15093): x <- clip(x + delta_y).

    A victim reads the class from delta_y, learns little else, and fails on clean test images. Labels are kept.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels y, integers [N].
      key: draws the noise and, for `fraction` below 1, the poisoned examples; consumed.
      epsilon: bound of every value, units of [0, 1].
      kind: `"uniform"`: delta ~ U(-epsilon, epsilon); `"sign"`: delta = ±epsilon, the strongest for its bound.
      fraction: the share of all N examples that are poisoned.

    Raises:
      ValueError: `epsilon` outside [1/255, 1], `fraction` outside (0, 1], or an unknown `kind`.

    Warning: the paper calls the noise Gaussian; the code it builds on draws it uniformly in this norm.
    """
    check_dataset(images, labels)
    limit = levels(epsilon)
    shape = (int(labels.max()) + 1, *images.shape[1:])
    if kind == "uniform":
        noise = jax.random.uniform(named(key, "noise"), shape, minval=-epsilon, maxval=epsilon)
        change = to_levels(np.asarray(noise), epsilon)
    elif kind == "sign":
        change = limit * np.asarray(jax.random.rademacher(named(key, "noise"), shape, np.int8)).astype(np.int16)
    else:
        raise ValueError(f"kind is {kind!r}; known: {', '.join(KINDS)}")
    number = poison_count(None, fraction, len(labels))
    everything = positions(labels >= 0)
    index = choose(named(key, "choice"), everything, number, what="images")
    poisoned = np.empty((number, *images.shape[1:]), np.uint8)
    for start in range(0, number, CHUNK):
        part = index[start : start + CHUNK]
        poisoned[start : start + CHUNK] = add_levels(images[part], change[labels[part]])
    return Poison(
        images=poisoned,
        labels=labels[index].astype(np.int32),
        index=index,
        target=None,
        trigger=None,
        how={
            "attack": "class_noise",
            "labels_changed": False,
            "count": number,
            "norm": "linf",
            "epsilon": float(epsilon),
            "kind": kind,
        },
    )
