"""BadNets: a small patch in a corner that a victim learns to read as the target class."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.attack.budget import apply_trigger
from jaxpurify.attack.choose import StoredLabels, check_dataset, check_target, choose, poison_count, positions
from jaxpurify.data.poison import PatchTrigger, Poison
from jaxpurify.random import named
from jaxpurify.types import StoredImages

PATTERNS = ("checkerboard", "white", "black", "random")
CORNERS = ("bottom-right", "bottom-left", "top-right", "top-left")


def badnets(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    target: int,
    count: int | None = None,
    fraction: float | None = None,
    trigger: Callable[[Any], Any] | None = None,
    pattern: str = "checkerboard",
    size: int = 3,
    corner: str = "bottom-right",
    clean_label: bool = False,
    epsilon: float | None = None,
) -> Poison:
    """BadNets (arXiv:1708.06733): x <- (1 - mask) x + mask pattern, on images that are (re)labelled `target`.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      key: chooses the poisoned examples, and the cells of a `"random"` pattern; consumed.
      target: the class that the trigger is to mean.
      count: how many examples are poisoned; or
      fraction: the share of all N examples that are.
      trigger: any `images -> images` on float images in [0, 1]; replaces the patch described by the next three.
      pattern: `"checkerboard"`, `"white"`, `"black"` or `"random"` (each value 0 or 1, Bernoulli(0.5)).
      size: side of the patch in pixels.
      corner: `"bottom-right"`, `"bottom-left"`, `"top-right"` or `"top-left"`; the patch is flush in it.
      clean_label: False: images of other classes, labels changed to `target`. True: images of the target
        class, labels kept.
      epsilon: limits how far a stored training value may move (units of [0, 1]; None: no limit). The
        trigger of the test set stays at full strength.

    Returns:
      The poison with its test-time trigger.

    Raises:
      ValueError: unknown target, pattern or corner, a patch larger than the image, `epsilon` below 1/255, or
        more poisons than examples to put them on.

    Warning: published variants differ. The original changes labels; the poisoning framework of
    arXiv:2102.13624 keeps them, draws a Bernoulli(0.5) patch and adds it instead of pasting it.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    number = poison_count(count, fraction, len(labels))
    described = {"pattern": type(trigger).__name__}
    if trigger is None:
        shape = (images.shape[1], images.shape[2], images.shape[3])
        trigger = patch_trigger(shape, named(key, "pattern"), pattern=pattern, size=size, corner=corner)
        described = {"pattern": pattern, "size": size, "corner": corner}
    candidates = positions((labels == target) == clean_label)
    what = f"images of class {target}" if clean_label else f"images of classes other than {target}"
    index = choose(named(key, "choice"), candidates, number, what=what)
    return Poison(
        images=apply_trigger(trigger, images[index], epsilon),
        labels=np.full(number, target, np.int32),
        index=index,
        target=target,
        trigger=trigger,
        how={
            "attack": "badnets",
            "labels_changed": not clean_label,
            "count": number,
            "norm": "patch" if epsilon is None else "linf",
            "epsilon": None if epsilon is None else float(epsilon),
            **described,
        },
    )


def patch_trigger(
    shape: tuple[int, int, int],
    key: Key[Array, ""],
    *,
    pattern: str = "checkerboard",
    size: int = 3,
    corner: str = "bottom-right",
) -> PatchTrigger:
    """A `size` × `size` patch flush in a corner of images of `shape` (H, W, C); `key` draws a `"random"` one.

    The checkerboard is (row + column) mod 2 on all channels: its top-left cell is black.
    """
    height, width, channels = shape
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size is {size}; a patch on {height}x{width} images must be 1 … {min(height, width)}")
    if corner not in CORNERS:
        raise ValueError(f"corner is {corner!r}; known: {', '.join(CORNERS)}")
    if pattern == "checkerboard":
        cells = jnp.indices((size, size)).sum(0).astype(jnp.float32)[..., None] % 2
    elif pattern in ("white", "black"):
        cells = jnp.full((size, size, 1), float(pattern == "white"))
    elif pattern == "random":
        cells = jax.random.bernoulli(key, 0.5, (size, size, channels)).astype(jnp.float32)
    else:
        raise ValueError(f"pattern is {pattern!r}; known: {', '.join(PATTERNS)}")
    rows = slice(height - size, height) if corner.startswith("bottom") else slice(0, size)
    columns = slice(width - size, width) if corner.endswith("right") else slice(0, size)
    canvas = jnp.zeros(shape).at[rows, columns].set(jnp.broadcast_to(cells, (size, size, channels)))
    mask = jnp.zeros((height, width, 1)).at[rows, columns].set(1.0)
    return PatchTrigger(canvas, mask)
