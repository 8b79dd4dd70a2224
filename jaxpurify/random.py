"""One key an image: every random number is a function of (key, index, stage, step), never of the batch.

A key is folded with the image's position in its source, then with the stage of the purifier, then with
the step, so that results do not change with batch size, device count or after an interruption.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxpurify.types import Keys


def image_keys(key: Key[Array, ""], index: Int[Array, "batch"]) -> Keys:
    """One key an image: `key` folded with each position in `index` [B] (0 … 2³²-1); `key` is consumed."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def fold(keys: Keys, data: int | Int[Array, ""]) -> Keys:
    """Folds one number, a stage or a step, into every key of a batch."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def named(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The independent stream of `key` that belongs to `name` (a checksum of the name is folded in)."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def normal(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "batch ..."]:
    """Standard normal numbers, `shape` an image; one key an image, consumed."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def uniform(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "batch ..."]:
    """Uniform numbers in [0, 1), `shape` an image; one key an image, consumed."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)
