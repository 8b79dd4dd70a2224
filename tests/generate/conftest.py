"""Tiny generative models and scanned digits."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxpurify.networks.layers import Conv, Linear


class SmallEnergy(nnx.Module):
    """One convolution, and the mean of its squared activations as the energy."""

    def __init__(self, seed=0):
        self.conv = Conv(1, 4, 3, padding=1, rngs=nnx.Rngs(seed))
        self.head = Linear(4, 1, rngs=nnx.Rngs(seed + 1))

    def __call__(self, images):
        hidden = jax.nn.silu(self.conv(2 * images - 1)) ** 2
        return self.head(hidden.mean((1, 2))).reshape(-1)


class SmallNoise(nnx.Module):
    """Two convolutions that know the timestep."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.first = Conv(1, 8, 3, padding=1, rngs=rngs)
        self.time = Linear(1, 8, rngs=rngs)
        self.last = Conv(8, 1, 3, padding=1, rngs=rngs)

    def __call__(self, images, timesteps):
        time = self.time(timesteps.reshape(-1, 1).astype(jnp.float32) / 100).reshape(-1, 1, 1, 8)
        return self.last(jax.nn.silu(self.first(images) + time))


@pytest.fixture(scope="session")
def digits():
    """Scanned digits, uint8 [200, 8, 8, 1]."""
    return np.rint(load_digits().images[:200, ..., None] / 16 * 255).astype(np.uint8)
