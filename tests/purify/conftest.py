"""Small models with random weights, and scanned digits, for the tests of purifiers."""

from flax import nnx
import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxpurify.networks import ConvEnergy, UNet, freeze


def make_energy(seed):
    return freeze(ConvEnergy(4, channels=1, size=8, rngs=nnx.Rngs(seed)))


def make_noise(seed):
    return freeze(UNet((8, 8), 1, (1,), channels=1, rngs=nnx.Rngs(seed)))


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
    return jax.numpy.asarray(stored[:4] / np.float32(255))
