"""The small network and the numbers of the published PyTorch code's losses, and features attacks are tested on."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpurify.data.poison import Targets


def waves(shape, shift):
    """The deterministic array sin(1.3 i + shift) (1 + 0.1 cos(0.37 i)) over the flat index i."""
    flat = np.arange(np.prod(shape), dtype=np.float64)
    return (np.sin(1.3 * flat + shift) * (1 + 0.1 * np.cos(0.37 * flat))).reshape(shape)


def network_features(rows):
    """tanh features of the golden network 6 → 5, rows [..., 6]."""
    kernel, bias = 0.5 * waves((5, 6), 0.2).T, 0.1 * waves((5,), 0.4)
    return jnp.tanh(rows @ kernel + bias.reshape((1,) * (rows.ndim - 1) + (5,)))


POISONS = waves((8, 6), 1.1)
TARGETS = waves((2, 6), 2.2)


def random_rows():
    """Five poison features and one target feature [8] of NumPy's old generator, seed 0."""
    generator = np.random.RandomState(0)
    return generator.randn(5, 8), generator.randn(1, 8)


def hidden(params, images):
    """Features [B, 32] of digits [B, 8, 8, 1]."""
    return jnp.tanh(images.reshape(len(images), -1) @ params)


def hidden_weights(seed=0):
    return jax.random.normal(jax.random.key(seed), (64, 32)) / 8


def digit_targets(digits, rows):
    rows = np.asarray(rows)
    return Targets(digits[0][rows], digits[1][rows], rows)
