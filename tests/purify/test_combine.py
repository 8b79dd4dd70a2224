"""Chains, repetitions and averages: which key each part gets, and how parts come together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.purify.combine import Average, Identity, chain, repeat
from jaxpurify.random import fold, image_keys, uniform
from jaxpurify.struct import struct
from jaxpurify.types import Images, Keys

IMAGES = jnp.zeros((3, 2, 2, 1))


@struct
class Shift:
    """Adds one random number an image, `factor` times."""

    factor: float

    def __call__(self, keys: Keys, images: Images) -> Images:
        return images + self.factor * uniform(keys, (1, 1, 1))


def keys():
    return image_keys(jax.random.key(0), jnp.arange(3))


def drawn(number):
    return np.asarray(uniform(fold(keys(), number), (1, 1, 1))) * np.ones((1, 2, 2, 1))


def test_every_stage_has_its_own_key():
    chained = chain(Shift(1.0), Identity(), Shift(10.0))(keys(), IMAGES)
    np.testing.assert_allclose(chained, drawn(0) + 10 * drawn(2), rtol=1e-6)


def test_every_repetition_has_its_own_key():
    repeated = repeat(Shift(1.0), 3)(keys(), IMAGES)
    np.testing.assert_allclose(repeated, drawn(0) + drawn(1) + drawn(2), rtol=1e-6)


@pytest.mark.parametrize(("kind", "reduce"), [("mean", np.mean), ("median", np.median)])
def test_averages_are_over_independent_runs(kind, reduce):
    averaged = Average(Shift(1.0), 5, kind)(keys(), IMAGES)
    np.testing.assert_allclose(averaged, reduce([drawn(number) for number in range(5)], 0), rtol=1e-6)


def test_an_empty_chain_changes_nothing():
    np.testing.assert_array_equal(chain()(keys(), IMAGES), IMAGES)


def test_refusals():
    with pytest.raises(ValueError, match="count=0; it must be a whole number of at least 1"):
        repeat(Identity(), 0)
    with pytest.raises(ValueError, match="count=-1; it must be a whole number of at least 1"):
        Average(Identity(), -1)
    with pytest.raises(ValueError, match="kind='mode'; known: mean, median"):
        Average(Identity(), 2, "mode")
