"""Perturbation budgets that hold where poisons live: in stored 8-bit images.

A budget of 8/255 is worth nothing if rounding to 8 bits can exceed it. Perturbations are therefore turned
into whole levels first, limited there, and only then added; clipping to 0 … 255 can only make them smaller.
"""

from collections.abc import Callable
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float, Int16
import numpy as np

from jaxpurify.data.image import to_float
from jaxpurify.types import StoredImages

CHUNK = 4096


def levels(epsilon: Any) -> int:
    """How many 8-bit levels fit into `epsilon` (units of [0, 1]): floor(255 epsilon).

    Raises:
      ValueError: `epsilon` is no number in [1/255, 1]: less would leave stored images unchanged.
    """
    try:
        finite = math.isfinite(epsilon)
    except TypeError:  # None, or a word
        raise ValueError(f"epsilon is {epsilon!r}; it must be from 1/255 to 1, in units of [0, 1]") from None
    # 1e-6 of a level: 255 * (8 / 255) must count as 8 in whatever precision it was computed.
    count = math.floor(epsilon * 255 + 1e-6) if finite else 0
    if not 1 <= count <= 255:
        raise ValueError(f"epsilon is {epsilon}; it must be from 1/255 to 1, in units of [0, 1]")
    return count


def to_levels(delta: Float[np.ndarray, "..."], epsilon: float) -> Int16[np.ndarray, "..."]:
    """A perturbation in units of [0, 1] as whole levels, at most floor(255 epsilon) of them each way."""
    limit = levels(epsilon)
    return np.clip(np.rint(delta * 255), -limit, limit).astype(np.int16)


def add_levels(images: StoredImages, change: Int16[np.ndarray, "..."]) -> StoredImages:
    """Stored images plus whole levels (one perturbation for all, or one an image), clipped to 0 … 255."""
    return np.clip(images.astype(np.int16) + change, 0, 255).astype(np.uint8)


def apply_trigger(trigger: Callable[[Any], Any], images: StoredImages, epsilon: float | None = None) -> StoredImages:
    """Stored images with a trigger on them, rounded to 8 bits.

    With `epsilon` (units of [0, 1]) no stored value moves by more than floor(255 epsilon) levels, whatever
    the trigger asked for.
    """
    limit = None if epsilon is None else levels(epsilon)
    parts = [images[:0]]
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        triggered = np.asarray(trigger(to_float(jnp.asarray(part))))
        stored = np.rint(np.clip(triggered, 0, 1) * 255).astype(np.int16)
        if limit is not None:
            stored = np.clip(stored, part.astype(np.int16) - limit, part.astype(np.int16) + limit)
        parts.append(stored.astype(np.uint8))
    return np.concatenate(parts)
