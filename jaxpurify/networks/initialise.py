"""First weights: PyTorch's defaults, drawn so that a new network costs almost no compilation.

Eager `jax.random` compiles one program a shape, which for a network of a hundred shapes takes longer than its
first training steps. Here the numbers come from programs for powers of two; NumPy cuts and scales them.
Inside a trace (`jax.vmap` over keys, `nnx.eval_shape`) the same numbers come from the same keys.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> jax.Array:
    """Uniform float32 numbers in ±`bound`; `key` is consumed."""
    count = math.prod(shape)
    flat = _draw(key, max(count - 1, 255).bit_length())
    if isinstance(flat, jax.core.Tracer):
        return flat[:count].reshape(shape) * jnp.float32(bound)
    return jnp.asarray(np.asarray(flat)[:count].reshape(shape) * np.float32(bound))


def torch_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """PyTorch's default for convolutions and linear layers: uniform in ±1/sqrt(fan_in)."""
    return uniform(key, shape, 1 / math.sqrt(math.prod(shape[:-1]))).astype(dtype)


def xavier_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Glorot and Bengio (2010): uniform in ±sqrt(6 / (fan_in + fan_out)); kernels HWIO or [in, out]."""
    fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
    return uniform(key, shape, math.sqrt(6 / fans)).astype(dtype)


def zeros(count: int) -> jax.Array:
    """`count` zeros, without the program that `jnp.zeros` compiles for every length."""
    return jnp.asarray(np.zeros(count, np.float32))


def ones(count: int) -> jax.Array:
    """`count` ones, without the program that `jnp.ones` compiles for every length."""
    return jnp.asarray(np.ones(count, np.float32))


@functools.partial(jax.jit, static_argnums=1)
def _draw(key: jax.Array, power: int) -> jax.Array:
    # Numbers in [-1, 1) that float32 holds exactly, so that scaling rounds once, here as there.
    return 2 * jax.random.uniform(key, (2**power,)) - 1
