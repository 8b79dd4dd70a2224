"""A fixed random low-norm pattern over the whole image, with changed labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.attack.budget import add_levels, levels
from jaxpurify.attack.choose import StoredLabels, check_dataset, check_target, choose, poison_count, positions
from jaxpurify.data.poison import AdditiveTrigger, Poison
from jaxpurify.random import named
from jaxpurify.types import StoredImages


def pattern(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    target: int,
    epsilon: float = 0.15,
    count: int | None = None,
    fraction: float | None = None,
    cell: int = 1,
) -> Poison:
    """A low-norm trigger in the manner of Blended (arXiv:1712.05526): x <- clip(x + epsilon s), s in {-1, 1}.

    The same signs s [H, W, C] are added to images of other classes, which are relabelled `target`; at test
    time they are added to any image. Labels are changed: this is not a clean-label attack.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      key: draws the signs and chooses the poisoned examples; consumed.
      target: the class that the trigger is to mean.
      epsilon: strength in units of [0, 1]; whole 8-bit levels are used, so 0.15 becomes 38/255.
      count: how many examples are poisoned; or
      fraction: the share of all N examples that are.
      cell: signs are constant over `cell` × `cell` pixels; larger cells survive denoising longer.

    Raises:
      ValueError: unknown target, `epsilon` outside [1/255, 1], `cell` below 1, or more poisons than images.

    Warning: Blended itself mixes, x <- (1 - b) x + b t with b = 0.1 … 0.2; here nothing is mixed away, so
    that the change is bounded in the maximum norm.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    if cell < 1:
        raise ValueError(f"cell is {cell}; it must be at least 1 pixel")
    number = poison_count(count, fraction, len(labels))
    height, width, channels = images.shape[1:]
    coarse = (-(-height // cell), -(-width // cell), channels)
    signs = np.asarray(jax.random.rademacher(named(key, "signs"), coarse, np.int8))
    signs = signs.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    change = levels(epsilon) * signs.astype(np.int16)
    candidates = positions(labels != target)
    index = choose(named(key, "choice"), candidates, number, what=f"images of classes other than {target}")
    return Poison(
        images=add_levels(images[index], change),
        labels=np.full(number, target, np.int32),
        index=index,
        target=target,
        trigger=AdditiveTrigger(jnp.asarray(change, jnp.float32) / 255),
        how={
            "attack": "pattern",
            "labels_changed": True,
            "count": number,
            "norm": "linf",
            "epsilon": float(epsilon),
            "cell": cell,
        },
    )
