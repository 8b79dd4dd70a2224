"""WaNet: a smooth, hardly visible warp as the trigger, with covers that teach a victim this warp and no other."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jaxpurify.attack.budget import CHUNK, apply_trigger
from jaxpurify.attack.choose import (
    StoredLabels,
    check_dataset,
    check_target,
    check_whole,
    choose,
    poison_count,
    positions,
)
from jaxpurify.data.poison import Poison, WarpTrigger
from jaxpurify.random import image_keys, named
from jaxpurify.types import StoredImages

# The constant of the cubic that published upsampling uses; other libraries take -0.5.
_CUBIC = -0.75


def wanet(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    target: int,
    count: int | None = None,
    fraction: float | None = None,
    strength: float = 0.5,
    grid: int = 4,
    cover_ratio: float = 2.0,
    epsilon: float | None = None,
) -> Poison:
    """WaNet (arXiv:2102.10369): images are warped and relabelled `target`; covers are warped otherwise, labels kept.

    The flow is a `grid` × `grid` field of uniform numbers in [-1, 1], divided by their mean magnitude, times
    `strength`, enlarged bicubically: on average a displacement of about strength / 2 pixels. Covers
    ("noise mode") add to it uniform numbers in [-1, 1] / 2 pixels, drawn for every pixel of every cover.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      key: draws the flow, the poisoned examples, the covers and their noise; consumed.
      target: the class that the trigger is to mean.
      count: how many examples are poisoned, covers not counted; or
      fraction: the share of all N examples that are (published 0.1).
      strength: s of the paper; published 0.5.
      grid: points of the coarse field along each side, 2 or more; published 4.
      cover_ratio: covers a poison; published 2. 0 makes none.
      epsilon: limits how far a stored training value may move (units of [0, 1]; None: no limit). The
        trigger of the test set stays at full strength.

    Returns:
      The poison: the relabelled images first, then the covers with their own labels.

    Raises:
      ValueError: unknown target, `strength` not positive, `grid` below 2, a negative `cover_ratio`, images with
        a side of one pixel, `epsilon` below 1/255, or fewer images than poisons and covers.

    Warning: the original draws poisons and covers anew in every batch of a training that the attacker
    controls; here, as with every other attack, they are part of the data set and drawn once. On images that are
    not square the paper's field is stretched with them.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    if not strength > 0:
        raise ValueError(f"strength is {strength}; it must be above 0")
    check_whole(grid=grid)
    if grid < 2 or min(images.shape[1:3]) < 2:
        raise ValueError(f"grid is {grid} on images of {images.shape[1]}x{images.shape[2]}; both need 2 or more a side")
    if not 0 <= cover_ratio < math.inf:
        raise ValueError(f"cover_ratio is {cover_ratio}; it must be 0 or more")
    number = poison_count(count, fraction, len(labels))
    others = positions(labels != target)
    index = choose(named(key, "choice"), others, number, what=f"images of classes other than {target}")
    covers = round(cover_ratio * number)
    left = np.setdiff1d(positions(labels >= 0), index)
    cover_index = choose(named(key, "covers"), left, covers, what="images left for covers; lower cover_ratio")
    trigger = WarpTrigger(jnp.asarray(warp_flow(images.shape[1:3], named(key, "flow"), strength, grid)))
    keys = image_keys(named(key, "noise"), jnp.asarray(cover_index))
    covered = [
        apply_trigger(functools.partial(_cover, keys[start : start + CHUNK], trigger.flow), part, epsilon)
        for start, part in ((start, images[cover_index[start : start + CHUNK]]) for start in range(0, covers, CHUNK))
    ]
    return Poison(
        images=np.concatenate([apply_trigger(trigger, images[index], epsilon), *covered]),
        labels=np.concatenate([np.full(number, target, np.int32), labels[cover_index].astype(np.int32)]),
        index=np.concatenate([index, cover_index]),
        target=target,
        trigger=trigger,
        how={
            "attack": "wanet",
            "labels_changed": True,
            "count": number,
            "norm": "warp" if epsilon is None else "linf",
            "epsilon": None if epsilon is None else float(epsilon),
            "strength": float(strength),
            "grid": grid,
            "covers": covers,
        },
    )


def warp_flow(
    size: tuple[int, ...], key: Key[Array, ""], strength: float = 0.5, grid: int = 4
) -> Float[np.ndarray, "height width 2"]:
    """The displacement of every pixel of an image of `size` (H, W), in pixels, rows first; `key` draws the field."""
    field = np.asarray(jax.random.uniform(key, (grid, grid, 2), minval=-1.0, maxval=1.0), np.float64)
    field = field / np.abs(field).mean()
    height, width = size
    smooth = np.einsum("hr,wc,rcd->hwd", cubic_weights(grid, height), cubic_weights(grid, width), field)
    # One unit of the paper is strength / size in coordinates that run from -1 to 1 over size - 1 pixels.
    pixels = strength * (np.array([height, width]) - 1) / (2 * np.array([height, width]))
    return (smooth * pixels[None, None]).astype(np.float32)


def cubic_weights(points: int, size: int) -> Float[np.ndarray, "size points"]:
    """Bicubic enlargement of `points` samples to `size`, first and last samples on the first and last pixels.

    Each row sums to 1; samples beyond the ends repeat the end.
    """
    weights = np.zeros((size, points))
    for pixel, position in enumerate(np.linspace(0, points - 1, size)):
        first = int(np.floor(position)) - 1
        for sample in range(first, first + 4):
            distance = abs(position - sample)
            if distance <= 1:
                weight = (_CUBIC + 2) * distance**3 - (_CUBIC + 3) * distance**2 + 1
            else:
                weight = _CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
            weights[pixel, min(max(sample, 0), points - 1)] += weight
    return weights


@jax.jit
def _cover(keys, flow, images):
    """Every image with a warp of its own: the trigger's flow and noise of up to half a pixel on top of it."""
    height, width = flow.shape[:2]
    half = jnp.array([(height - 1) / (2 * height), (width - 1) / (2 * width)])[None, None]

    def warp(key, image):
        noise = half * jax.random.uniform(key, flow.shape, minval=-1.0, maxval=1.0)
        return WarpTrigger(flow + noise)(image[None])[0]

    return jax.vmap(warp)(keys, images)
