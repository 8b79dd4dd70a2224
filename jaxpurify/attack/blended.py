"""Blended injection: a faint picture over the whole image that a victim learns to read as the target class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jaxpurify.attack.budget import apply_trigger
from jaxpurify.attack.choose import StoredLabels, check_dataset, check_target, choose, poison_count, positions
from jaxpurify.data.poison import PatchTrigger, Poison
from jaxpurify.random import named
from jaxpurify.types import StoredImages


def blended(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    target: int,
    count: int | None = None,
    fraction: float | None = None,
    ratio: float = 0.2,
    test_ratio: float | None = None,
    overlay: Float[Array | np.ndarray, "..."] | None = None,
    cell: int = 1,
    clean_label: bool = False,
    epsilon: float | None = None,
) -> Poison:
    """Blended injection (arXiv:1712.05526): x <- (1 - ratio) x + ratio overlay, on images (re)labelled `target`.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      key: draws the random overlay and chooses the poisoned examples; consumed.
      target: the class that the trigger is to mean.
      count: how many examples are poisoned; or
      fraction: the share of all N examples that are.
      ratio: weight of the overlay in training, above 0 and at most 1; published 0.1 … 0.2.
      test_ratio: its weight at test time; None: `ratio`. The paper allows a stronger one than in training.
      overlay: the picture, float [H, W, C] in [0, 1]; None draws every value uniformly from [0, 1).
      cell: random values are constant over `cell` × `cell` pixels; larger cells survive denoising longer.
      clean_label: False: images of other classes, labels changed to `target`. True: images of the target
        class, labels kept.
      epsilon: limits how far a stored training value may move (units of [0, 1]; None: no limit). The
        trigger of the test set stays at full strength.

    Returns:
      The poison; its trigger is a patch with the fractional mask `test_ratio`.

    Raises:
      ValueError: unknown target, a ratio outside of (0, 1], an overlay of another shape or range, `cell` below
        1, `epsilon` below 1/255, or more poisons than examples to put them on.

    Warning: published code uses a picture of a cartoon figure as the overlay; results depend on it. The
    random overlay is the paper's second kind of key.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    for name, value in (("ratio", ratio), ("test_ratio", ratio if test_ratio is None else test_ratio)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; it must be above 0 and at most 1")
    if cell < 1:
        raise ValueError(f"cell is {cell}; it must be at least 1 pixel")
    number = poison_count(count, fraction, len(labels))
    height, width, channels = images.shape[1:]
    picture = "given"
    if overlay is None:
        picture = "random"
        coarse = jax.random.uniform(named(key, "overlay"), (-(-height // cell), -(-width // cell), channels))
        overlay = coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    overlay = np.asarray(overlay, np.float32)
    if overlay.shape != (height, width, channels):
        raise ValueError(f"overlay has shape {overlay.shape}; the images have {(height, width, channels)}")
    if not (np.isfinite(overlay).all() and overlay.min() >= 0 and overlay.max() <= 1):
        raise ValueError(f"overlay spans {overlay.min():g} … {overlay.max():g}; its values must lie in [0, 1]")
    candidates = positions((labels == target) == clean_label)
    what = f"images of class {target}" if clean_label else f"images of classes other than {target}"
    index = choose(named(key, "choice"), candidates, number, what=what)
    at_test = ratio if test_ratio is None else test_ratio
    return Poison(
        images=apply_trigger(_blend(overlay, ratio), images[index], epsilon),
        labels=np.full(number, target, np.int32),
        index=index,
        target=target,
        trigger=_blend(overlay, at_test),
        how={
            "attack": "blended",
            "labels_changed": not clean_label,
            "count": number,
            "norm": "blend" if epsilon is None else "linf",
            "epsilon": None if epsilon is None else float(epsilon),
            "ratio": float(ratio),
            "test_ratio": float(at_test),
            "overlay": picture,
            "cell": cell,
        },
    )


def _blend(overlay: np.ndarray, ratio: float) -> PatchTrigger:
    return PatchTrigger(jnp.asarray(overlay), jnp.full((*overlay.shape[:2], 1), ratio, jnp.float32))
