"""Small models with random weights, and scanned digits, for the tests of purifiers."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxpurify.networks import ConvEnergy, freeze
from jaxpurify.networks.layers import Conv, Linear


def make_energy(seed):
    return freeze(ConvEnergy(4, channels=1, size=8, rngs=nnx.Rngs(seed)))


class SmallNoise(nnx.Module):
    """Two convolutions that know the timestep: quicker to compile than a UNet."""

    def __init__(self, rngs):
        self.first = Conv(1, 8, 3, padding=1, rngs=rngs)
        self.time = Linear(1, 8, rngs=rngs)
        self.last = Conv(8, 1, 3, padding=1, rngs=rngs)

    def __call__(self, images, timesteps):
        time = self.time(timesteps.reshape(-1, 1).astype(jnp.float32) / 100).reshape(-1, 1, 1, 8)
        return 2 * self.last(jax.nn.silu(self.first(images) + time))


def make_noise(seed):
    return freeze(SmallNoise(nnx.Rngs(seed)))


@pytest.fixture(scope="session")
def energies():
    """Two energies of the same shape with different weights."""
    return make_energy(0), make_energy(1)


@pytest.fixture(scope="session")
def noises():
    """Two noise predictors of the same shape with different weights."""
    return make_noise(0), make_noise(1)


@pytest.fixture(scope="session")
def stored():
    """Scanned digits, uint8 [1797, 8, 8, 1]."""
    return np.rint(load_digits().images[..., None] / 16 * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def images(stored):
    """The first four digits in [0, 1]."""
    return jnp.asarray(stored[:4] / np.float32(255))
